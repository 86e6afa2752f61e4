"""The check that rides on the first pass: same data, same loss, and totals that add up."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from theodolite.errors import DataError, NotDeterministicError, ProblemError, TheodoliteError
from theodolite.problem.criteria import Generic
from theodolite.problem.data import cause_of_change, fingerprint, move, piece
from theodolite.problem.objective import CriterionObjective, Evaluation

if TYPE_CHECKING:
    from theodolite.problem.problem import Problem

FEW = 16


def check(problem: Problem) -> None:
    """Evaluate the first batch twice, from two iterators where the data is not a list, and in eight parts; see that its
    loss depends on the parameters.

    Cost: two forward passes of the first batch, four for a loss function whose weighting is not known.

    Raises:
        NotDeterministicError: data or loss differ between the two, with the likely cause.
        ProblemError: the loss of the batch is not the weighted mean of its parts, so batches cannot be combined, or does not
            depend on the parameters.
    """
    batch = problem.batches.first()
    _same_data(problem, batch)
    placed = move(batch, device=problem.device, dtype=problem.cast)
    point = problem.point()

    def forward(model: nn.Module) -> Evaluation:
        with torch.no_grad():
            return problem.objective.evaluate(model, placed)

    def parts(model: nn.Module) -> list[Evaluation]:
        with torch.no_grad():
            return problem.objective.parts(model, placed)

    with _explained(problem, placed):
        first = problem.call(forward, point)
    _same_loss(first, problem.call(forward, point), problem)

    def again() -> object:
        return problem.call(forward, point)

    with _of_a_part(again):
        _depends(problem, piece(batch, 0, FEW))
    # Weights are a matter of the loss alone: without dropout and batch statistics, whatever the mode.
    plain = problem if problem.mode == "eval" else problem.replace(mode="eval")
    if _weighting_is_assumed(problem) and not plain.coupled and problem.objective.samples(placed) > 1:
        with _of_a_part(again):
            in_parts = plain.call(parts, point)
        _adds_up(plain.call(forward, point), in_parts, problem)


@contextmanager
def _explained(problem: Problem, batch: object) -> Iterator[None]:
    """Says what of a batch the model cannot have liked; what a model takes by itself is its own matter."""
    try:
        yield
    except TheodoliteError:
        raise
    except (RuntimeError, TypeError) as error:
        leaves = tree_leaves(batch)
        if any(isinstance(leaf, np.ndarray) for leaf in leaves):
            raise DataError(
                f"Expected tensors in the batches, found NumPy arrays: {error}. Turn them by torch.as_tensor."
            ) from error
        types = {leaf.dtype for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()}
        if types - {problem.dtype} and "type" in str(error):
            found = ", ".join(sorted(str(dtype) for dtype in types))
            raise DataError(
                f"Expected inputs of the parameters' type {problem.dtype}, found {found}: {error}. "
                f"Problem(..., dtype={problem.dtype}) turns model and data into one type."
            ) from error
        raise


@contextmanager
def _of_a_part(whole: Callable[[], object]) -> Iterator[None]:
    """Says what an error means that the whole batch does not raise."""
    try:
        yield
    except TheodoliteError:
        raise
    except (RuntimeError, ValueError, IndexError) as error:
        if not _runs(whole):
            raise
        raise ProblemError(
            f"Expected a loss that can be evaluated on some samples of a batch, found that only the whole batch can be: {error}. "
            "The first dimension of every tensor must count samples; where time or features come first, turn the tensors in the "
            "batch and back in the model or loss function."
        ) from error


def _runs(function: Callable[[], object]) -> bool:
    try:
        function()
    except Exception:  # whatever it is, the caller has an error of its own to raise
        return False
    return True


def _depends(problem: Problem, few: object) -> None:
    placed, point = move(few, device=problem.device, dtype=problem.cast), problem.point()

    def reaches(model: nn.Module) -> bool:
        total, _ = problem.objective.evaluate(model, placed)
        if not total.requires_grad:
            return False
        return any(part is not None for part in torch.autograd.grad(total, point.leaves, allow_unused=True))

    if not problem.call(reaches, point):
        raise ProblemError(
            f"Expected a loss that depends on the {problem.n:,} parameters surveyed, found one that none of them reaches. Does the "
            "loss function use the model that it is given, not another one, and without .detach() or .item() on the way?"
        )


def _same_data(problem: Problem, batch: object) -> None:
    if problem.batches.is_list:
        return
    now, before = fingerprint(problem.batches.first_again()), fingerprint(batch)
    if now != before:
        raise NotDeterministicError(cause_of_change(now, before, where="the first batch"))


def _same_loss(first: Evaluation, second: Evaluation, problem: Problem) -> None:
    a, b = float(first[0]), float(second[0])
    if a == b or (a != a and b != b) or abs(a - b) <= _tolerance(problem) * max(abs(a), abs(b)):
        return
    raise NotDeterministicError(
        f"Expected the same loss for the same batch and seed, found {a / max(first[1], 1):.8g} and then "
        f"{b / max(second[1], 1):.8g}. Something draws random numbers of its own or keeps state: augmentation or noise inside "
        f"the model or loss function, a private generator, or a layer updated in forward (mode={problem.mode!r})."
    )


def _adds_up(whole: Evaluation, parts: list[Evaluation], problem: Problem) -> None:
    total, weight = sum(float(t) for t, _ in parts), sum(w for _, w in parts)
    if weight <= 0 or whole[1] <= 0 or not math.isfinite(float(whole[0])):
        return
    mean, split_mean = float(whole[0]) / whole[1], total / weight
    # Losses of transformers are computed in float32 whatever the model's type, and sums there round to some 1e-6.
    tolerance = max(_tolerance(problem), 2e-5)
    if abs(mean - split_mean) <= tolerance * max(abs(mean), abs(split_mean), 1e-12):
        return
    raise ProblemError(
        f"Expected a loss that is the mean over samples, found {mean:.6g} on the first batch but {split_mean:.6g} as the mean "
        "of its parts. It averages over something else (valid tokens, class weights), sums, or couples samples. Return a "
        "pair (total, count) with the denominator that it uses, or pass the torch loss module itself."
    )


def _weighting_is_assumed(problem: Problem) -> bool:
    """Whether the denominator of a batch is our assumption rather than known from the criterion."""
    objective = problem.objective
    return not isinstance(objective, CriterionObjective) or isinstance(objective.loss, Generic)


def _tolerance(problem: Problem) -> float:
    return 64 * torch.finfo(problem.dtype).eps
