"""Sums over all pairs of rows in tiles: exact, differentiable twice, memory linear in the batch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
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
    """Return the log-sum-exp of scale·u·vᵀ along its rows and along its columns."""
    factor = torch.as_tensor(scale, dtype=u.dtype, device=u.device)
    if tile is None:
        return _normalizers_of_tile(u, v, factor, skip_diagonal)
    found: tuple[Tensor, Tensor] = _Normalizers.apply(u, v, factor, _checked(tile), skip_diagonal)  # type: ignore[no-untyped-call]
    return found


def softplus_sum(
    u: Float[Tensor, "n k"],
    v: Float[Tensor, "m k"],
    scale: float | Float[Tensor, ""],
    bias: float | Float[Tensor, ""],
    *,
    tile: int | None,
) -> Float[Tensor, ""]:
    """Return the sum over all pairs of log(1 + e^x), x = scale·u·vᵀ + bias."""
    factor, offset = (torch.as_tensor(x, dtype=u.dtype, device=u.device) for x in (scale, bias))
    if tile is None:
        return _softplus_of_tile(u, v, factor, offset)
    total: Tensor = _SoftplusSum.apply(u, v, factor, offset, _checked(tile))  # type: ignore[no-untyped-call]
    return total


def _checked(tile: int) -> int:
    if tile < 1:
        raise ValueError(f"A tile has at least one row. Found tile = {tile}.")
    return tile


def _normalizers_of_tile(rows: Tensor, columns: Tensor, scale: Tensor, skip_diagonal: bool) -> tuple[Tensor, Tensor]:
    scores = _scores(rows, columns, scale, skip_diagonal)
    return torch.logsumexp(scores, 1), torch.logsumexp(scores, 0)


def _scores(rows: Tensor, columns: Tensor, scale: Tensor, skip_diagonal: bool) -> Tensor:
    scores = scale * (rows @ columns.T)
    if skip_diagonal:
        scores = scores.masked_fill(torch.eye(len(rows), dtype=torch.bool, device=rows.device), NEGLIGIBLE)
    return scores


def _softplus_of_tile(rows: Tensor, columns: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return F.softplus(scale * (rows @ columns.T) + bias).sum()


def _blocks(u: Tensor, v: Tensor, tile: int) -> Iterator[tuple[slice, slice]]:
    for i in range(0, len(u), tile):
        for j in range(0, len(v), tile):
            yield slice(i, i + tile), slice(j, j + tile)


class _Normalizers(torch.autograd.Function):
    """Log-sum-exps with buffers made once: a graph node a tile would hold the C library's heap open at full size.

    (Small lasting allocations between the large temporary ones keep glibc from using their room again: 16 GiB at
    n = 65,536 instead of the tiles' own.) The second derivative goes through checkpointed tiles.
    """

    @staticmethod
    def forward(u: Tensor, v: Tensor, scale: Tensor, tile: int, skip: bool) -> tuple[Tensor, Tensor]:
        rows, columns = u.new_full((len(u),), -math.inf), u.new_full((len(v),), -math.inf)
        for i, j in _blocks(u, v, tile):
            along, down = _normalizers_of_tile(u[i], v[j], scale, skip and i == j)
            rows[i] = torch.logaddexp(rows[i], along)
            columns[j] = torch.logaddexp(columns[j], down)
        return rows, columns

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        u, v, scale, ctx.tile, ctx.skip = inputs
        ctx.save_for_backward(u, v, scale, *output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        u, v, scale, rows, columns = ctx.saved_tensors
        if torch.is_grad_enabled():
            u, v, scale = _aliases(u, v, scale)
            again = _checkpointed_normalizers(u, v, scale, ctx.tile, ctx.skip)
            return (*_derivatives(again, (u, v, scale), gradients), None, None)
        du, dv, dscale = torch.zeros_like(u), torch.zeros_like(v), torch.zeros_like(scale)
        for i, j in _blocks(u, v, ctx.tile):
            scores = _scores(u[i], v[j], scale, ctx.skip and i == j)
            weight = gradients[0][i, None] * torch.exp(scores - rows[i, None])
            weight += gradients[1][j] * torch.exp(scores - columns[j])
            moved = weight @ v[j]
            dscale += (moved * u[i]).sum()
            du[i] += scale * moved
            dv[j] += scale * (weight.T @ u[i])
        return du, dv, dscale, None, None


class _SoftplusSum(torch.autograd.Function):
    """The sum of softplus over all pairs, with buffers made once as in :class:`_Normalizers`."""

    @staticmethod
    def forward(u: Tensor, v: Tensor, scale: Tensor, bias: Tensor, tile: int) -> Tensor:
        total = u.new_zeros(())
        for i, j in _blocks(u, v, tile):
            total += _softplus_of_tile(u[i], v[j], scale, bias)
        return total

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        u, v, scale, bias, ctx.tile = inputs
        ctx.save_for_backward(u, v, scale, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        u, v, scale, bias = ctx.saved_tensors
        if torch.is_grad_enabled():
            u, v, scale, bias = _aliases(u, v, scale, bias)
            parts = [
                checkpoint(_softplus_of_tile, rows, columns, scale, bias, use_reentrant=False)
                for rows in u.split(ctx.tile)
                for columns in v.split(ctx.tile)
            ]
            return (*_derivatives((torch.stack(parts).sum(),), (u, v, scale, bias), gradients), None)
        du, dv, dscale, dbias = (torch.zeros_like(x) for x in (u, v, scale, bias))
        for i, j in _blocks(u, v, ctx.tile):
            weight = gradients[0] * torch.sigmoid(scale * (u[i] @ v[j].T) + bias)
            moved = weight @ v[j]
            dscale += (moved * u[i]).sum()
            dbias += weight.sum()
            du[i] += scale * moved
            dv[j] += scale * (weight.T @ u[i])
        return du, dv, dscale, dbias, None


def _checkpointed_normalizers(u: Tensor, v: Tensor, scale: Tensor, tile: int, skip: bool) -> tuple[Tensor, Tensor]:
    blocks, along, down = v.split(tile), [], []
    for i, rows in enumerate(u.split(tile)):
        found = [
            checkpoint(_normalizers_of_tile, rows, columns, scale, skip and i == j, use_reentrant=False)
            for j, columns in enumerate(blocks)
        ]
        along.append(torch.logsumexp(torch.stack([row for row, _ in found]), 0))
        down.append(torch.cat([column for _, column in found]))
    return torch.cat(along), torch.logsumexp(torch.stack(down), 0)


def _aliases(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return views, so that a tensor given twice (a batch against itself) has two derivatives."""
    return tuple(x.view_as(x) for x in tensors)


def _derivatives(
    outputs: tuple[Tensor, ...], inputs: tuple[Tensor, ...], gradients: tuple[Tensor, ...]
) -> tuple[Tensor | None, ...]:
    """Differentiate with a graph, for the inputs that ask for it."""
    asked = [x for x in inputs if x.requires_grad]
    found = iter(torch.autograd.grad(outputs, asked, gradients, create_graph=True))
    return tuple(next(found) if x.requires_grad else None for x in inputs)
