"""The check that rides on the first pass: same data, same loss, and totals that add up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from theodolite.errors import NotDeterministicError, ProblemError
from theodolite.problem.criteria import Generic
from theodolite.problem.data import cause_of_change, fingerprint, move
from theodolite.problem.objective import CriterionObjective, Evaluation

if TYPE_CHECKING:
    from theodolite.problem.problem import Problem


def check(problem: Problem) -> None:
    """Evaluate the first batch twice, from two iterators where the data is not a list, and in halves.

    Cost: two forward passes of the first batch, four for a loss function whose weighting is not known.

    Raises:
        NotDeterministicError: data or loss differ between the two, with the likely cause.
        ProblemError: the loss of the batch is not the weighted mean of its halves, so batches cannot be combined.
    """
    batch = problem.batches.first()
    _same_data(problem, batch)
    placed = move(batch, device=problem.device, dtype=problem.cast)
    point = problem.point()

    def forward(model: nn.Module) -> Evaluation:
        with torch.no_grad():
            return problem.objective.evaluate(model, placed)

    def halves(model: nn.Module) -> tuple[Evaluation, Evaluation]:
        with torch.no_grad():
            return problem.objective.halves(model, placed)

    first = problem.call(forward, point)
    _same_loss(first, problem.call(forward, point), problem)
    # Weights are a matter of the loss alone: without dropout and batch statistics, whatever the mode.
    plain = problem if problem.mode == "eval" else problem.replace(mode="eval")
    if _weighting_is_assumed(problem) and not plain.coupled and problem.objective.samples(placed) > 1:
        _adds_up(plain.call(forward, point), plain.call(halves, point), problem)


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


def _adds_up(whole: Evaluation, parts: tuple[Evaluation, Evaluation], problem: Problem) -> None:
    total, weight = sum(float(t) for t, _ in parts), sum(w for _, w in parts)
    if weight <= 0 or whole[1] <= 0 or total != total:
        return
    mean, split_mean = float(whole[0]) / whole[1], total / weight
    # Losses of transformers are computed in float32 whatever the model's type; wrong weights err by per cents.
    tolerance = max(100 * _tolerance(problem), 1e-5)
    if abs(mean - split_mean) <= tolerance * max(abs(mean), abs(split_mean), 1e-12):
        return
    raise ProblemError(
        f"Expected a loss that is the mean over samples, found {mean:.6g} on the first batch but {split_mean:.6g} as the mean "
        "of its two halves. It averages over something else (valid tokens, class weights), sums, or couples samples. Return a "
        "pair (total, count) with the denominator that it uses, or pass the torch loss module itself."
    )


def _weighting_is_assumed(problem: Problem) -> bool:
    """Whether the denominator of a batch is our assumption rather than known from the criterion."""
    objective = problem.objective
    return not isinstance(objective, CriterionObjective) or isinstance(objective.loss, Generic)


def _tolerance(problem: Problem) -> float:
    return 64 * torch.finfo(problem.dtype).eps
