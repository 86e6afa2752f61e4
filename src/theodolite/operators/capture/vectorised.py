"""Per-sample gradients without interception: all samples at once through ``torch.func``, where the model allows it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from theodolite.problem import Chunk, Point, Problem
from theodolite.problem.data import map_tensors, tensors_of
from theodolite.problem.objective import CriterionObjective, pair


def all_at_once(
    problem: Problem, chunk: Chunk, point: Point, leaves: Sequence[Tensor], cotangent: Tensor
) -> list[Tensor] | None:
    """Gradients of ⟨outputs, cotangent⟩ of every sample, (samples, *leaf) for each leaf.

    Returns:
        None where ``torch.func`` cannot run the model: functions with a backward of their own, control flow that depends on
        data, operations without a rule for batches, random numbers.
    """
    inputs, _ = pair(chunk.batch)
    flat = list(tensors_of(inputs))
    places = [0 if part.dim() and part.shape[0] == chunk.samples else None for part in flat]
    objective = problem.objective
    if not isinstance(objective, CriterionObjective):
        return None

    def projected(values: tuple[Tensor, ...], parts: tuple[Tensor, ...], own: Tensor) -> Tensor:
        pieces = iter([part if place is None else part[None] for part, place in zip(parts, places, strict=True)])
        sample = (map_tensors(inputs, lambda _: next(pieces)), None)
        swap = {id(leaf): value for leaf, value in zip(leaves, values, strict=True)}
        there = replace(point, leaves=tuple(swap.get(id(leaf), leaf.detach()) for leaf in point.leaves))

        def run(model: nn.Module) -> Any:
            found = objective.outputs(model, sample)
            return found if isinstance(found, Tensor) else found.logits

        outputs: Tensor = problem.call(run, there, chunk=chunk.index)
        return (outputs * own[None]).sum()

    each = torch.func.vmap(torch.func.grad(projected), in_dims=(None, tuple(places), 0))
    try:
        with problem.session(), warnings.catch_warnings():
            warnings.simplefilter("error")  # an operation without a rule is run sample by sample, with a warning
            found = each(tuple(leaf.detach() for leaf in leaves), tuple(flat), cotangent)
    except Exception:  # whatever a model raises under these transformations, the loop over samples does not need them
        return None
    return [part.detach() for part in found]
