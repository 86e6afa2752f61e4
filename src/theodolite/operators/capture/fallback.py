"""Per-sample gradients without interception: one sample after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from theodolite.operators.capture.rows import Rows
from theodolite.operators.capture.use import Use, whole_block
from theodolite.problem import Chunk, Point, Problem
from theodolite.problem.data import split
from theodolite.problem.objective import CriterionObjective, with_outputs


def one_by_one(
    problem: Problem, chunk: Chunk, point: Point, names: Sequence[str], *, cotangent: Tensor | None = None
) -> list[Use]:
    """Per-sample gradients of some parameters, each from a backward pass of its own.

    Cost: a forward and backward pass of the chunk, one sample at a time; with dropout, whose masks a sample alone would not
    have, one backward pass of the whole chunk for each sample.

    Args:
        problem: what to differentiate.
        chunk: the samples.
        point: where.
        names: of the parameters.
        cotangent: gradient of the outputs to start from; None starts from the loss.
    """
    leaves = dict(zip(problem.layout.names, point.leaves, strict=True))
    wanted = [leaves[name] for name in names]
    gradients = _together if problem.mode != "eval" and isinstance(problem.objective, CriterionObjective) else _alone
    rows = gradients(problem, chunk, point, wanted, cotangent)
    return [
        Rows(whole_block(name, tuple(leaf.shape)), "fallback", -1, torch.stack(parts))
        for name, leaf, parts in zip(names, wanted, zip(*rows, strict=True), strict=True)
    ]


def _alone(
    problem: Problem, chunk: Chunk, point: Point, leaves: list[Tensor], cotangent: Tensor | None
) -> list[tuple[Tensor, ...]]:
    found = []
    for index, batch in enumerate(split(chunk.batch, 1)):
        sample = replace(chunk, batch=batch, samples=1)
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
