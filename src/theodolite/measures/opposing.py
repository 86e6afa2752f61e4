"""Outliers with opposing signals: which samples a step hurts and helps most, and how they pull against each other."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from theodolite.errors import ProblemError
from theodolite.measures.arguments import surveyed
from theodolite.measures.excursions import displaced
from theodolite.measures.separable import refuse_mixed_samples
from theodolite.operators import Hessian
from theodolite.operators.capture import sample_gram
from theodolite.problem import Chunk, Point, Problem
from theodolite.problem.arguments import optional, shown, whole
from theodolite.problem.subsets import Drawn, Rows
from theodolite.records import Cost, OpposingSignals
from theodolite.records.groups import group_alignment
from theodolite.records.opposing import extremes


def opposing_signals(
    problem: Problem,
    update: Float[Tensor, " n"],
    *,
    count: int | None = None,
    curvature: bool = True,
    step: int | None = None,
) -> OpposingSignals:
    """Which samples' losses a step raises and lowers most, whether the two groups oppose each other, and what they weigh.

    At the edge of stability a few samples with one strong feature but opposite labels hold the curvature: each step helps one half
    at the other's expense. Take the update of such a step, of the optimiser or a gradient step.

    Cost: two forward passes; the gradients of the samples of both groups; with ``curvature`` a product with all data and one with
    either group.

    Args:
        problem: at the parameters before the step; its samples must not be coupled.
        update: flat d = θ' − θ, such as ``next_update(problem, optimizer)``.
        count: samples in each group at most; None takes 5 or half a per cent of the data, whichever is more. Groups larger than
            what opposes itself hold bystanders.
        curvature: whether to say what the groups bring to dᵀHd.
        step: optimiser step, kept in the record.

    Returns:
        A record; places are those of the samples in the data of the problem.

    Raises:
        ProblemError: the update is not of the parameters of the problem, or ``count`` is less than 1.
        OperatorError: samples are coupled, or ranks share the data.

    Example:
        >>> inputs, targets, planted = opposing_samples(1000, strength=60.0, seed=1)
        >>> model = nn.Linear(inputs.shape[1], 1)
        >>> problem = Problem(model, nn.SoftMarginLoss(), [(inputs.float(), targets.float())])
        >>> found = opposing_signals(problem, -0.1 * problem.gradient())
        >>> found.up.shape, found.down.shape
        ((5,), (5,))

    References:
        Rosenfeld & Risteski, "Outliers with opposing signals have an outsized effect on neural network optimization" (2023).
    """
    started = time.perf_counter()
    surveyed(problem)
    refuse_mixed_samples(problem)
    if not isinstance(update, Tensor):
        raise ProblemError(
            f"Expected an update as a flat tensor, found {shown(update)}. next_update(problem, optimizer) gives one."
        )
    if update.shape != (problem.n,) or not bool(torch.isfinite(update).all()):
        raise ProblemError(
            f"Expected an update of {problem.n:,} finite numbers, one for each parameter in the order of named_parameters(), found "
            f"shape {tuple(update.shape)} with {int((~torch.isfinite(update)).sum())} not finite."
        )
    optional(whole, count=count)
    if count is not None and count < 1:
        raise ProblemError(f"Expected at least 1 sample in a group, found count={count}.")
    update = update.to(problem.device, problem.dtype)
    before, after = (sample_losses(problem, point) for point in (problem.point(), displaced(problem, update)))
    up, down = extremes(after - before, count=count)
    cosine, stderr = _opposition(problem, up, down)
    shares, products = (math.nan, math.nan), 0.0
    if curvature and len(up) and len(down):
        shares = _curvature_shares(problem, update, (up, down))
        products = 1.0 + (len(up) + len(down)) / problem.samples
    part = (len(up) + len(down)) / problem.samples
    return OpposingSignals(
        step=step,
        cost=Cost(products=products, gradients=1.5 * part, forwards=2.0, seconds=time.perf_counter() - started),
        context=problem.context(),
        losses=before,
        changes=after - before,
        up=up,
        down=down,
        cosine=cosine,
        cosine_stderr=stderr,
        curvature_shares=shares,
        notes=() if bool(update.any()) else ("the update is 0: no loss changes, and no samples oppose each other",),
        norm=float(update.norm()),
        size=problem.n,
    )


def opposing_samples(
    samples: int, *, signals: int = 8, strength: float = 30.0, share: float = 0.01, seed: int = 0
) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b 1"], Bool[np.ndarray, " b"]]:
    """Data with planted outliers of opposing signals, to try a finder of them on.

    Labels ±1 follow from many small coordinates. In a small share of the samples one more coordinate is large, of either sign
    whatever the label, and zero in all others.

    Args:
        samples: how many.
        signals: small coordinates, that make the label.
        strength: size of the large coordinate.
        share: of the samples with it.
        seed: of the draw.

    Returns:
        Inputs, labels and which samples are planted.

    Example:
        >>> inputs, targets, planted = opposing_samples(1000)
        >>> inputs.shape, int(planted.sum())
        (torch.Size([1000, 9]), 10)
    """
    rng = np.random.default_rng(seed)
    small = rng.standard_normal((samples, signals))
    labels = np.where(small.sum(axis=1) > 0, 1.0, -1.0)
    large, planted = np.zeros((samples, 1)), np.zeros(samples, dtype=bool)
    chosen = rng.choice(samples, size=max(round(share * samples), 2), replace=False)
    planted[chosen] = True
    # As many with the sign of their label as against it, so that the two signals balance.
    agrees = np.where(np.arange(len(chosen)) % 2 == 0, 1.0, -1.0)
    large[chosen, 0] = strength * agrees * labels[chosen]
    return torch.from_numpy(np.concatenate([small, large], axis=1)), torch.from_numpy(labels[:, None]), planted


def sample_losses(problem: Problem, point: Point) -> Float[np.ndarray, " b"]:
    """Loss of every sample at a point, in the order of the data, scaled so that their mean is the loss.

    Cost: two forward passes of each chunk; with ``from_loss`` samples are evaluated one by one.
    """
    found: list[Tensor] = []
    weights: list[float] = []

    def evaluate(model: nn.Module, chunk: Chunk) -> tuple[Tensor, float]:
        with torch.no_grad():
            return problem.objective.shares(model, chunk.batch), problem.objective.evaluate(model, chunk.batch)[1]

    with problem.session():
        for chunk in problem.chunks():
            shares, weight = problem.call(partial(evaluate, chunk=chunk), point, chunk=chunk.index)
            found.append(shares.double().cpu())
            weights.append(weight)
    divisor = problem.total_weight(torch.tensor(weights, dtype=torch.float64))
    return (torch.cat(found) * problem.samples / divisor).numpy()


def chosen_samples(problem: Problem, places: Int[np.ndarray, " c"]) -> tuple[Problem, Int[np.ndarray, " c"]]:
    """The problem on some samples alone, and their places in the data in the order in which it has them."""
    sizes = [problem.objective.samples(batch) for batch in problem.batches]
    wanted = torch.zeros(sum(sizes), dtype=torch.bool)
    wanted[torch.from_numpy(np.sort(places))] = True
    rows: Sequence[Rows] = [part.nonzero()[:, 0] for part in wanted.split(sizes)]
    numbered = Drawn(list(zip(problem.batches, torch.arange(sum(sizes)).split(sizes), strict=True)), sizes, rows)
    return problem.only(rows), torch.cat([index for _, index in numbered]).numpy()


def _opposition(problem: Problem, up: Int[np.ndarray, " u"], down: Int[np.ndarray, " v"]) -> tuple[float, float]:
    """Cosine between the mean gradients of the groups, with its error over their samples."""
    if not len(up) or not len(down):
        return math.nan, math.nan
    part, order = chosen_samples(problem, np.concatenate([up, down]))
    groups = np.isin(order, down).astype(np.int64)
    found = group_alignment(sample_gram(part).gram.cpu().numpy(), groups, ("up", "down"))
    return float(found.cosines[0, 1]), float(found.cosine_stderrs[0, 1])


def _curvature_shares(
    problem: Problem, d: Float[Tensor, " n"], groups: tuple[Int[np.ndarray, " u"], Int[np.ndarray, " v"]]
) -> tuple[float, float]:
    """What each group's samples bring to dᵀHd; both are of means, weighted by what the groups weigh."""
    whole = float(d.double() @ (Hessian(problem) @ d).double())
    weight = problem.total_weight(problem.totals()[1])
    shares = []
    for places in groups:
        part, _ = chosen_samples(problem, places)
        mine = part.total_weight(part.totals()[1]) / weight
        shares.append(mine * float(d.double() @ (Hessian(part) @ d).double()) / whole if whole else math.nan)
    return shares[0], shares[1]
