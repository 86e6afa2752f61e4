"""Sums over all pairs of rows in tiles: exact, differentiable to any order, memory linear in the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from theodolite.losses.contract import widened
from theodolite.losses.numerics import NEGLIGIBLE, unit


def at_full_precision(like: Tensor) -> torch.autocast:
    """Return a context without autocast: cosines times a large scale lose the digits that rank negatives in half."""
    return torch.autocast(device_type=like.device.type, enabled=False)


def unit_rows(x: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
    """Return rows of unit length in float32 at least."""
    return unit(widened(x))


def log_normalizers(
    u: Float[Tensor, "n k"],
    v: Float[Tensor, "m k"],
    scale: float | Float[Tensor, ""],
    *,
    tile: int | None,
    skip_diagonal: bool = False,
) -> tuple[Float[Tensor, " n"], Float[Tensor, " m"]]:
    """Return the log-sum-exp of scale·u·vᵀ along its rows and along its columns.

    Each tile gives its own log-sum-exps, n·m/tile numbers in all; only they stay in memory, the tile is computed again
    when a derivative needs it.
    """
    if tile is None:
        return _tile(u, v, torch.as_tensor(scale), skip_diagonal)
    if tile < 1:
        raise ValueError(f"A tile has at least one row. Found tile = {tile}.")
    factor = torch.as_tensor(scale)
    blocks, along, down = v.split(tile), [], []
    for i, rows in enumerate(u.split(tile)):
        found = [
            checkpoint(_tile, rows, columns, factor, skip_diagonal and i == j, use_reentrant=False)
            for j, columns in enumerate(blocks)
        ]
        along.append(torch.logsumexp(torch.stack([row for row, _ in found]), 0))
        down.append(torch.cat([column for _, column in found]))
    return torch.cat(along), torch.logsumexp(torch.stack(down), 0)


def _tile(rows: Tensor, columns: Tensor, scale: Tensor, skip_diagonal: bool) -> tuple[Tensor, Tensor]:
    scores = scale * (rows @ columns.T)
    if skip_diagonal:
        own = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
        scores = scores.masked_fill(own, NEGLIGIBLE)
    return torch.logsumexp(scores, 1), torch.logsumexp(scores, 0)


def scored_tiles(
    score: Callable[[Tensor, Tensor], Tensor], u: Float[Tensor, "n k"], v: Float[Tensor, "m k"], *, tile: int | None
) -> Iterator[Tensor]:
    """Yield a function of each pair of row blocks, holding on to none of its inside."""
    if tile is None:
        yield score(u, v)
        return
    blocks = v.split(tile)
    for rows in u.split(tile):
        for columns in blocks:
            yield checkpoint(score, rows, columns, use_reentrant=False)
