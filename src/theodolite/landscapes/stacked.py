"""Many points in one vectorised evaluation: parameters stacked, the batch shared."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn

from theodolite.landscapes.batchnorm import statistics
from theodolite.landscapes.sweep import Manner, Move, Sums, evaluated, explosion, precision
from theodolite.problem import Chunk, Problem


def stacked_sums(
    problem: Problem, moves: Sequence[Move], manner: Manner, *, only: list[Chunk] | None = None
) -> list[Sums]:
    """As ``sums``, all points at once on each chunk. What no direction displaces is computed once for all of them.

    Cost: one forward pass a point; memory for the displaced parameters and activations of all of them.

    Raises:
        Exception: whatever a model raises that cannot be vectorised: statistics of batches, control flow that depends on data,
            random numbers, operations without a rule for batches.
    """
    with problem.session():
        problem.ensure_checked()
        leaves = tuple(leaf.detach() for leaf in problem.point().leaves)
        moving = [any(bool(part.any()) for part in parts) for parts in zip(*moves[0].axes, strict=True)]
        stack = _stack(moves, leaves, moving)
        found, start = [Sums() for _ in moves], 0
        for chunk in problem.chunks() if only is None else only:
            live = [place for place, point in enumerate(found) if not point.left]
            if live:
                here = stack if len(live) == len(found) else [part[live] for part in stack]
                run = _at_one(problem, chunk, leaves, moving, manner, start=start)
                _take(problem, manner, chunk, [found[place] for place in live], _vectorised(run, here))
            start += chunk.samples
        return found


def _stack(moves: Sequence[Move], leaves: Sequence[Tensor], moving: Sequence[bool]) -> list[Tensor]:
    """Displaced parameters of all points, (points, *leaf) each, to the bits that the loop writes."""
    chosen = [leaf for leaf, moves_ in zip(leaves, moving, strict=True) if moves_]
    stack = [torch.empty((len(moves), *leaf.shape), dtype=leaf.dtype, device=leaf.device) for leaf in chosen]
    with torch.no_grad():
        for place, move in enumerate(moves):
            move.on(moving)([part[place] for part in stack])
    return stack


def _at_one(
    problem: Problem, chunk: Chunk, leaves: Sequence[Tensor], moving: Sequence[bool], manner: Manner, *, start: int
) -> Callable[..., tuple[Tensor, ...]]:
    """Totals of a chunk, then weights, as a function of the displaced parameters."""

    def run(model: nn.Module) -> tuple[Tensor, ...]:
        fixed: AbstractContextManager[None] = nullcontext()
        if manner.batchnorm is not None:
            fixed = statistics(model, batch=manner.batchnorm == "batch")
        with fixed, precision(problem, manner):
            pairs = evaluated(problem, model, chunk, manner.quantities, start=start)
        weights = [torch.as_tensor(weight, dtype=torch.float64, device=problem.device) for _, weight in pairs]
        return (*(total.double() for total, _ in pairs), *weights)

    def at_one(*parts: Tensor) -> tuple[Tensor, ...]:
        given = iter(parts)
        there = tuple(next(given) if moves else leaf for leaf, moves in zip(leaves, moving, strict=True))
        return problem.call(run, replace(problem.point(), leaves=there), chunk=chunk.index)

    return at_one


def _vectorised(function: Callable[..., tuple[Tensor, ...]], stack: Sequence[Tensor]) -> tuple[Tensor, ...]:
    with torch.no_grad(), warnings.catch_warnings():
        # An operation without a rule is run point by point, slower than the loop, with a warning.
        warnings.filterwarnings("error", message=".*batching rule.*")
        found: tuple[Tensor, ...] = torch.func.vmap(function)(*stack)
    return found


def _take(problem: Problem, manner: Manner, chunk: Chunk, points: Sequence[Sums], found: tuple[Tensor, ...]) -> None:
    """Totals and weights of a chunk to the points that they are of."""
    totals, weights = torch.stack(found).cpu().chunk(2)
    for place, point in enumerate(points):
        point.pairs.append(list(zip(totals[:, place].unbind(), weights[:, place].unbind(), strict=True)))
        if len(point.pairs) == 1:
            point.loss = explosion(problem, manner, *point.pairs[0][0], samples=chunk.samples)
