"""Outliers with opposing signals that a generator plants are found, oppose each other and hold the curvature."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from families import BY_NAME, FAMILIES, Family
from theodolite.errors import OperatorError, ProblemError
from theodolite.measures import next_update, opposing_samples, opposing_signals, spectrum
from theodolite.problem import Problem
from theodolite.problem.data import split
from theodolite.records import Log, differences, read

RATE = 1.0


def logistic(inputs: torch.Tensor, targets: torch.Tensor) -> Problem:
    torch.manual_seed(0)
    return Problem(nn.Linear(inputs.shape[1], 1).double(), nn.SoftMarginLoss(), [(inputs, targets)])


def descend_until_the_loss_rises(problem: Problem, optimizer: torch.optim.Optimizer) -> None:
    """The first loss oscillation after the start."""
    inputs, targets = problem.batches.first()
    last = math.inf
    for step in range(400):
        optimizer.zero_grad()
        loss = nn.functional.soft_margin_loss(problem.model(inputs), targets)
        loss.backward()
        if loss.item() > last and step > 20:
            break
        last = loss.item()
        optimizer.step()


@pytest.mark.parametrize("seed", range(3))
def test_planted_outliers_are_found_and_oppose_each_other(seed: int) -> None:
    inputs, targets, planted = opposing_samples(1000, strength=60.0, seed=seed)
    problem = logistic(inputs, targets)
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=RATE)
    descend_until_the_loss_rises(problem, optimizer)
    found = opposing_signals(problem, next_update(problem, optimizer))
    optimizer.step()
    next_one = opposing_signals(problem, next_update(problem, optimizer), curvature=False)
    hits = int(planted[found.samples].sum())
    recall, precision = hits / planted.sum(), hits / len(found.samples)
    print(f"recall {recall:.2f}, precision {precision:.2f}, cos {found.opposition}, share {found.share:.2f}")
    assert recall >= 0.95
    assert precision >= 0.95
    assert (
        found.cosine < -0.9
    )  # in as many dimensions the groups of mere noise have −0.6, as they are chosen by what they lose
    assert found.share > 0.8
    assert sum(found.curvature_shares) > 0.8
    assert found.alternation(next_one).value < -0.9


def test_they_hold_the_curvature_and_adam_is_less_affected() -> None:
    """Without the planted samples descent at this rate is stable; Adam spreads what its step changes over the others."""
    inputs, targets, planted = opposing_samples(1000, strength=60.0, seed=0)
    whole, rest = logistic(inputs, targets), logistic(inputs[~planted], targets[~planted])
    top, without = (spectrum(problem, k=1, probes=0).max for problem in (whole, rest))
    assert top > 2 / RATE > without
    optimizer = torch.optim.SGD(whole.model.parameters(), lr=RATE)
    descend_until_the_loss_rises(whole, optimizer)
    found = opposing_signals(whole, next_update(whole, optimizer))
    adam = torch.optim.Adam(whole.model.parameters(), lr=found.norm / math.sqrt(whole.n))
    assert opposing_signals(whole, next_update(whole, adam)).share < found.share


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_changes_are_those_of_the_samples_alone(family: Family) -> None:
    model, batches = family.model_and_data()
    problem = family.problem_of(model, batches)
    generator = torch.Generator().manual_seed(0)
    update = 0.1 * torch.randn(problem.n, generator=generator, dtype=torch.float64) / problem.n**0.5
    found = opposing_signals(problem, update, count=3, curvature=False)
    before, after = problem.totals(), problem.totals(problem.displaced(_moved(problem, update)))
    scale = problem.samples / problem.total_weight(before[1])
    change = float((after[0] - before[0]).sum())
    assert found.changes.sum() == pytest.approx(scale * change, rel=1e-8, abs=1e-11)
    assert found.losses.mean() == pytest.approx(problem.loss(), rel=1e-10)
    order = np.argsort(found.changes)
    assert set(found.up) == set(order[found.changes[order] > 0][-3:].tolist())
    assert set(found.down) == set(order[found.changes[order] < 0][:3].tolist())


def _moved(problem: Problem, update: torch.Tensor) -> tuple[torch.Tensor, ...]:
    parts = zip(problem.point().leaves, problem.layout.unflatten(update), strict=True)
    return tuple((leaf.detach() + part).requires_grad_() for leaf, part in parts)


def test_cosine_and_curvature_are_those_of_the_groups_by_hand() -> None:
    family = BY_NAME["mlp"]
    model, batches = family.model_and_data()
    problem = family.problem_of(model, batches)
    update = torch.linspace(-0.1, 0.2, problem.n, dtype=torch.float64)
    found = opposing_signals(problem, update, count=3)
    singles = [sample for batch in batches for sample in split(batch, 1)]
    groups = [family.problem_of(model, [singles[place] for place in places]) for places in (found.up, found.down)]
    first, second = (group.gradient() for group in groups)
    assert found.cosine == pytest.approx(float(first @ second / first.norm() / second.norm()), rel=1e-8)
    whole, *parts = (_second_derivative(each, update) for each in (problem, *groups))
    assert found.curvature_shares == pytest.approx([3 / 17 * part / whole for part in parts], rel=1e-3)


def _second_derivative(problem: Problem, d: torch.Tensor, size: float = 1e-3) -> float:
    total, weights = problem.totals()
    ends = [problem.totals(problem.displaced(_moved(problem, sign * size * d)))[0].sum() for sign in (1, -1)]
    return float((ends[0] + ends[1] - 2 * total.sum()) / weights.sum()) / size**2


def test_what_makes_no_sense_is_refused() -> None:
    problem = BY_NAME["mlp"].problem()
    with pytest.raises(ProblemError, match=r"finite numbers, one for each parameter .* found shape \(3,\)"):
        opposing_signals(problem, torch.zeros(3))
    with pytest.raises(ProblemError, match="found count=0"):
        opposing_signals(problem, torch.ones(problem.n), count=0)
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).double()
    batch = torch.randn(4, 2, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
    coupled = Problem(model, nn.MSELoss(), [batch], mode="train")
    with pytest.raises(OperatorError, match="BatchNorm on batch statistics"):
        opposing_signals(coupled, torch.ones(coupled.n))
    one = opposing_signals(problem, torch.zeros(problem.n))
    with pytest.raises(ValueError, match="changes of the same 17 samples, found 16"):
        one.alternation(one.replace(changes=one.changes[1:], losses=one.losses[1:]))


def test_a_step_of_zero_has_no_groups_and_a_log_keeps_it(tmp_path) -> None:  # type: ignore[no-untyped-def]
    problem = BY_NAME["mlp"].problem()
    still = opposing_signals(problem, torch.zeros(problem.n, dtype=torch.float64), step=4)
    assert len(still.samples) == 0
    assert still.share == 0
    assert math.isnan(still.replace(changes=np.where(np.arange(len(still.changes)) == 0, np.nan, 1.0)).share)
    assert np.isnan(still.cosine)
    with Log(tmp_path / "run") as log:
        log.append(still)
    assert not differences(read(tmp_path / "run").records[0], still, ignore={"context"})
