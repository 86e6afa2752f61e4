"""Loss, gradient and parameter norms with their errors."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from theodolite.problem import Problem
from theodolite.records import Cost, Gradients
from theodolite.records.jackknife import jackknife_stderr

OVER_THE_CAP = "no errors for the norms: the gradients of the chunks exceed the memory cap"


def gradients(problem: Problem, *, step: int | None = None) -> Gradients:
    """Loss and gradient of the problem, norms by layer, with standard errors over the chunks of its data.

    Cost: one gradient. Gradients of the chunks are held for the errors while they fit the problem's memory cap.

    Args:
        problem: what to survey.
        step: optimiser step, kept in the record.

    Returns:
        A record; a loss or norm that is not finite is a reading, not an error.

    Example:
        >>> inputs, targets = torch.randn(64, 10), torch.randint(3, (64,))
        >>> model = torch.nn.Sequential(torch.nn.Linear(10, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3))
        >>> gradients(Problem(model, torch.nn.CrossEntropyLoss(), [(inputs, targets)])).layers
        ('0', '2')

    References:
        Busing, Meijer & van der Leeden, "Delete-m jackknife for unequal m" (1999).
    """
    started = time.perf_counter()
    ranks = problem.ranks
    with problem.together("gradients"):
        totals, here, summed, parts = _read(problem)
    totals, weights = (ranks.join(torch.from_numpy(values)).numpy() for values in (totals, here))
    summed = ranks.sum(summed)
    denominator = problem.total_weight(torch.from_numpy(weights))
    left = _left(denominator, weights, weights)
    slices = tuple(problem.layout.layer_slices.values())
    pieces = (slice(None), *slices)
    gradient = summed / denominator
    norms = _norms(gradient, pieces)
    # Gradients of chunks stay on the rank that they were taken on.
    without = ranks.join(
        torch.from_numpy(_norms_without(summed, parts, _left(denominator, weights, here), pieces))
    ).numpy()
    errors = jackknife_stderr(without, whole=norms, weights=weights)
    kept = ranks.sum(torch.tensor(float(parts is None))) == 0
    loss = totals.sum() / denominator
    with np.errstate(invalid="ignore"):  # a loss that is not finite is a reading
        left_out = (totals.sum() - totals) / left
    return Gradients(
        step=step,
        cost=Cost(gradients=1.0, seconds=time.perf_counter() - started),
        notes=() if kept else (OVER_THE_CAP,),
        context=problem.context() | {"chunks": int((weights > 0).sum())},
        loss=float(loss),
        loss_stderr=float(jackknife_stderr(left_out, whole=np.asarray(loss), weights=weights)),
        norm=float(norms[0]),
        norm_stderr=float(errors[0]),
        layers=tuple(problem.layout.layer_slices),
        layer_norms=norms[1:],
        layer_norm_stderrs=errors[1:],
        parameter_norms=_norms(problem.layout.flatten(problem.point().leaves).detach(), slices),
        samples=problem.samples,
    )


def _read(
    problem: Problem,
) -> tuple[Float[np.ndarray, " c"], Float[np.ndarray, " c"], Float[Tensor, " n"], list[Float[Tensor, " n"]] | None]:
    """Totals and weights of the chunks, the summed gradient, and that of each chunk while all fit the memory."""
    totals: list[float] = []
    weights: list[float] = []
    parts: list[Tensor] | None = []
    room = problem.memory
    # At least single precision: a sum of many chunks in half precision keeps three digits.
    wide = torch.promote_types(problem.dtype, torch.float32)
    summed = torch.zeros(problem.n, dtype=wide, device=problem.device)
    for _, total, weight, part in problem.chunk_gradients():
        totals.append(float(total))
        weights.append(weight)
        summed += part
        if parts is not None:
            parts.append(part)
            # One more is taken for the gradient that leaves a chunk out.
            if part.nbytes * len(parts) + summed.nbytes > room:
                parts = None
    return np.array(totals), np.array(weights), summed, parts


def _left(
    denominator: float, weights: Float[np.ndarray, " c"], chunks: Float[np.ndarray, " d"]
) -> Float[np.ndarray, " d"]:
    """What is left of all weights without each of some chunks keeps the denominator that its share has in the whole."""
    rest = weights.sum() - chunks
    return np.where(rest > 0, denominator * rest / (weights.sum() or 1.0), np.nan)


def _norms_without(
    summed: Float[Tensor, " n"],
    parts: list[Float[Tensor, " n"]] | None,
    left: Float[np.ndarray, " c"],
    pieces: Sequence[slice],
) -> Float[np.ndarray, "c L"]:
    """Norms of the gradient without each chunk of this rank, NaN where they were not kept."""
    if parts is None:
        return np.full((len(left), len(pieces)), np.nan)
    left_out = (torch.sub(summed, part).div_(rest) for part, rest in zip(parts, left.tolist(), strict=True))
    return np.array([_norms(gradient, pieces) for gradient in left_out])


def _norms(flat: Float[Tensor, " n"], pieces: Sequence[slice]) -> Float[np.ndarray, " L"]:
    return np.array([float(torch.linalg.vector_norm(flat[where], dtype=torch.float64)) for where in pieces])
