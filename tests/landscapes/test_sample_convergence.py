"""Convergence with samples: exact over all orders, bounds, rates, and losses of single samples that add up."""

from __future__ import annotations

import math
from itertools import pairwise, permutations

import numpy as np
import pytest
import torch
from torch import nn

from families import BY_NAME
from theodolite.errors import ProblemError
from theodolite.landscapes.sample_convergence import sample_convergence, sample_losses
from theodolite.problem import Problem
from theodolite.records import SampleConvergence


def regression(samples: int, *, noise: float = 1.0) -> Problem:
    g = torch.Generator().manual_seed(0)
    inputs = torch.randn(samples, 3, generator=g, dtype=torch.float64)
    model = nn.Linear(3, 1, bias=False).double()
    with torch.no_grad():
        targets = model(inputs) + noise * torch.randn(samples, 1, generator=g, dtype=torch.float64)
    cuts = [*range(0, samples, 16), samples]
    return Problem(model, nn.MSELoss(), [(inputs[a:b], targets[a:b]) for a, b in pairwise(cuts)])


def record(losses: np.ndarray) -> SampleConvergence:
    """A record of one place with the given losses of samples."""
    spread = np.array([losses.std(ddof=1)])
    empty = np.zeros(0)
    return SampleConvergence(
        radius=0.0, samples=losses.size, spreads=spread, spread_stderrs=0 * spread, rise_spreads=empty,
        rise_spread_stderrs=empty, ranges=np.array([np.ptp(losses)]), largest=float(np.abs(losses).max()),
        sizes=np.zeros(0, dtype=np.int64), changes=empty, change_stderrs=empty, orders=1,
    )  # fmt: skip


def test_changes_and_errors_are_exact_over_all_orders() -> None:
    losses = np.array([0.3, 2.0, -1.0, 5.0, 0.0, 0.7])
    orders = np.array(list(permutations(losses)))
    means = np.cumsum(orders, axis=1) / np.arange(1, 7)
    found = record(losses)
    for k in range(1, 6):
        changes = means[:, k] - means[:, k - 1]
        assert found.change(k).value == pytest.approx(math.sqrt(np.square(changes).mean()), rel=1e-12)
        assert np.abs(changes).max() <= found.bound(k)
        errors = np.square(means[:, k - 1] - losses.mean()).mean()
        assert found.error(k).value ** 2 * (1 - k / 6) == pytest.approx(errors, rel=1e-12)  # of a finite population


@pytest.mark.parametrize("name", ["mlp", "mlp-weighted", "mlp-sum", "convnet", "transformer", "from-loss"])
def test_losses_of_samples_average_to_the_loss(name: str) -> None:
    problem = BY_NAME[name].problem()
    assert sample_losses(problem, problem.point()).mean() == pytest.approx(problem.loss(), rel=1e-12)


def test_what_is_read_in_random_orders_agrees_with_what_is_derived() -> None:
    problem = regression(200)
    found = sample_convergence(problem, points=5, orders=200, seed=1)
    assert found.sizes[0] == 1
    assert found.sizes[-1] == 199
    derived = np.array([found.change(int(k)).value for k in found.sizes])
    assert (found.changes <= derived + 3 * found.change_stderrs).all()  # the mean is below the root mean square
    assert (found.changes >= 0.5 * derived).all()
    bounds = np.array([found.bound(int(k)) for k in found.sizes])
    assert (found.changes < bounds).all()
    assert found.rate.value == pytest.approx(-1.0, abs=0.05)
    assert found.cost.forwards == 6
    assert "one sample more changes" in repr(found)


def test_spreads_and_rises_are_those_of_the_model() -> None:
    problem = regression(200)
    near, far = (sample_convergence(problem, points=6, radius=radius, orders=2) for radius in (1e-3, 2e-3))
    np.testing.assert_allclose(far.rise_spreads / near.rise_spreads, 2.0, rtol=0.01)
    weights = next(problem.model.parameters()).detach()
    inputs, targets = (torch.cat(parts) for parts in zip(*problem.batches, strict=True))
    losses = (inputs @ weights.T - targets).square().numpy()
    assert near.spreads[0] == pytest.approx(losses.std(ddof=1), rel=1e-10)
    scatter = [
        np.random.default_rng(seed).choice(losses.ravel(), 200).std(ddof=1) for seed in range(300)
    ]  # fmt: skip
    assert near.spread_stderrs[0] == pytest.approx(np.std(scatter), rel=0.25)
    assert near.spread("rises").value < 0.02 * near.spread("losses").value


def test_the_bound_by_curvature_holds_in_the_ball_around_a_common_minimum() -> None:
    problem = regression(60, noise=0.0)
    found = sample_convergence(problem, points=20, radius=0.7, orders=20)
    inputs = torch.cat([x for x, _ in problem.batches])
    curvature = 2 * float(inputs.square().sum(1).max())
    assert found.largest == pytest.approx(0.0, abs=1e-25)
    assert found.bound(9) <= found.bound(9, curvature=curvature) == pytest.approx(curvature * 0.49 / 10)


def test_sufficient_samples_are_the_fewest() -> None:
    found = sample_convergence(regression(80), points=2, orders=2)
    for tol in (1e-1, 1e-2, 3e-3):
        for by in ("change", "error"):
            k = int(found.sufficient(tol, by=by).value)
            value = found.change if by == "change" else found.error
            assert value(k).value <= tol
            assert k == 1 or value(k - 1).value > tol
    near, far = found.sufficient(1e-3), found.sufficient(1e-3, by="error")
    relative = found.spread().stderr / found.spread().value
    assert near.stderr / near.value == pytest.approx(relative, rel=0.01)
    assert far.stderr / far.value == pytest.approx(2 * relative, rel=0.01)


def test_mistakes_are_told() -> None:
    problem = BY_NAME["convnet"].problem(mode="train")
    with pytest.raises(ProblemError, match="BatchNorm on batch statistics"):
        sample_convergence(problem)
    with pytest.raises(ProblemError, match="found -1 and 100"):
        sample_convergence(regression(8), points=-1)
    with pytest.raises(ProblemError, match=r"at least 2 samples, .* found 1"):
        sample_convergence(regression(1))
    with pytest.raises(ValueError, match="above 0 in units of the loss, found 0"):
        record(np.arange(3.0)).sufficient(0.0)
