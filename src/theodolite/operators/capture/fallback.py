"""Per-sample gradients without interception: all at once where that is possible, or one sample after the other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from theodolite.operators.capture.learning import tolerance_of
from theodolite.operators.capture.rows import Rows
from theodolite.operators.capture.use import Use, whole_block
from theodolite.operators.capture.vectorised import all_at_once
from theodolite.problem import Chunk, Point, Problem
from theodolite.problem.data import piece
from theodolite.problem.objective import CriterionObjective, pair, with_outputs


def one_by_one(
    problem: Problem, chunk: Chunk, point: Point, names: Sequence[str], *, cotangent: Tensor | None = None
) -> list[Use]:
    """Per-sample gradients of some parameters, each from a backward pass of its own.

    Cost: a forward and backward pass of the chunk, one sample at a time, unless ``torch.func`` runs the model on all samples
    at once and agrees on two of them: some 30 times faster for small layers; with dropout, whose masks a sample alone would
    not have, one backward pass of the whole chunk for each sample.

    Args:
        problem: what to differentiate.
        chunk: the samples.
        point: where.
        names: of the parameters.
        cotangent: gradient of the outputs to start from; None starts from the loss.
    """
    leaves = dict(zip(problem.layout.names, point.leaves, strict=True))
    wanted = [leaves[name] for name in names]
    if problem.mode != "eval" and isinstance(problem.objective, CriterionObjective):
        found = _stacked(_together(problem, chunk, point, wanted, cotangent))
    else:
        found = _vectorised(problem, chunk, point, wanted, cotangent) or _stacked(
            _alone(problem, chunk, point, wanted, cotangent, range(chunk.samples))
        )
    return [
        Rows(whole_block(name, tuple(leaf.shape)), "fallback", -1, part)
        for name, leaf, part in zip(names, wanted, found, strict=True)
    ]


def _stacked(rows: list[tuple[Tensor, ...]]) -> list[Tensor]:
    return [torch.stack(parts) for parts in zip(*rows, strict=True)]


def _vectorised(
    problem: Problem, chunk: Chunk, point: Point, leaves: list[Tensor], cotangent: Tensor | None
) -> list[Tensor] | None:
    """Gradients from ``torch.func`` if the first and the last sample have those that they have alone."""
    if not isinstance(problem.objective, CriterionObjective):
        return None
    start = _slope(problem, chunk, point) if cotangent is None else cotangent
    found = None if start is None else all_at_once(problem, chunk, point, leaves, start)
    if found is None:
        return None
    ends = [0, chunk.samples - 1]
    expected = _stacked(_alone(problem, chunk, point, leaves, cotangent, ends))
    tolerance = tolerance_of(problem.dtype)
    pairs = [(part[ends], alone) for part, alone in zip(found, expected, strict=True)]
    return found if all(bool((a - b).norm() <= tolerance * b.norm()) for a, b in pairs) else None


def _slope(problem: Problem, chunk: Chunk, point: Point) -> Tensor | None:
    """Gradient of the summed loss by the outputs, None where it does not depend on them."""
    objective = with_outputs(problem.objective)
    outputs = _outputs(problem, chunk, point).detach().requires_grad_()
    total, _ = objective.loss.evaluate(outputs, pair(chunk.batch)[1])
    return torch.autograd.grad(total, outputs)[0] if total.requires_grad else None


def _alone(
    problem: Problem,
    chunk: Chunk,
    point: Point,
    leaves: list[Tensor],
    cotangent: Tensor | None,
    samples: Iterable[int],
) -> list[tuple[Tensor, ...]]:
    found = []
    for index in samples:
        sample = replace(chunk, batch=piece(chunk.batch, index, index + 1), samples=1)
        if cotangent is None:
            root, own = problem.evaluate(sample, point)[0], None
        else:
            root, own = _outputs(problem, sample, point), cotangent[index : index + 1]
        found.append(_gradient(root, leaves, own, retain=False))
    return found


def _together(
    problem: Problem, chunk: Chunk, point: Point, leaves: list[Tensor], cotangent: Tensor | None
) -> list[tuple[Tensor, ...]]:
    objective = with_outputs(problem.objective)
    if cotangent is None:
        roots = problem.call(lambda model: objective.shares(model, chunk.batch), point, chunk=chunk.index)
    else:
        roots = (_outputs(problem, chunk, point) * cotangent).flatten(1).sum(1)
    return [_gradient(root, leaves, None, retain=True) for root in roots]


def _outputs(problem: Problem, chunk: Chunk, point: Point) -> Tensor:
    objective = with_outputs(problem.objective)

    def run(model: nn.Module) -> Any:
        found = objective.outputs(model, chunk.batch)
        return found if isinstance(found, Tensor) else found.logits

    found: Tensor = problem.call(run, point, chunk=chunk.index)
    return found


def _gradient(root: Tensor, leaves: list[Tensor], cotangent: Tensor | None, *, retain: bool) -> tuple[Tensor, ...]:
    if not root.requires_grad:
        return tuple(torch.zeros_like(leaf) for leaf in leaves)
    return torch.autograd.grad(root, leaves, cotangent, retain_graph=retain, materialize_grads=True)
