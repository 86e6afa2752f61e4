"""Bits of inductive bias: closed forms, far tails in many digits, coverage of both intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from theodolite.records.bits import bits, gaussian_bits, log_chi2


@pytest.mark.parametrize(("points", "variance", "target"), [(20, 0.3, 0.1), (5, 1.0, 0.9), (50, 2.0, 3.0)])
def test_isotropic_gaussians_give_the_exact_tail(points: int, variance: float, target: float) -> None:
    found = gaussian_bits(np.zeros(points), variance * np.eye(points), target=target)
    exact = stats.chi2.cdf(points * target / variance, points)
    assert found == pytest.approx(-math.log2(exact), rel=1e-10)
    if points == 20:
        assert found == pytest.approx(8.729215, abs=5e-7)


def test_moments_are_those_of_the_mean_square() -> None:
    rng = np.random.default_rng(0)
    residual, root = rng.normal(size=6), rng.normal(size=(6, 6)) / 2
    squares = np.square(residual + rng.normal(size=(40_000, 6)) @ root.T).mean(1)
    target = float(np.quantile(squares, 0.1))
    assert gaussian_bits(residual, root @ root.T, target=target) == pytest.approx(math.log2(10), abs=0.35)
    mean, variance = squares.mean(), squares.var()
    scaled = -math.log2(stats.chi2.cdf(target / (variance / (2 * mean)), 2 * mean**2 / variance))
    assert gaussian_bits(residual, root @ root.T, target=target) == pytest.approx(scaled, abs=0.05)


def test_far_tails_follow_their_first_terms() -> None:
    degrees = np.array([3.0, 40.0, 4000.0])
    x = 1e-3 * degrees
    near = np.array([0.7, 1.0, 1.0000001, 2.0])
    np.testing.assert_allclose(log_chi2(near * 40, np.full(4, 40.0)), np.log(stats.chi2.cdf(near * 40, 40)), rtol=1e-9)
    half = degrees / 2
    first = half * np.log(x / 2) - x / 2 - [math.lgamma(each + 1) for each in half]
    ratio = x / 2 / (half + 1)  # of the terms that follow, all positive and falling faster than a geometric series
    found = log_chi2(x, degrees)
    assert (found > first).all()
    assert (found < first - np.log1p(-ratio)).all()
    assert found[2] < -700  # beyond the smallest double


def test_counted_bits_have_the_interval_of_the_binomial() -> None:
    rng = np.random.default_rng(1)
    inside = []
    for _ in range(400):
        found = bits(rng.uniform(size=60), target=0.1)
        inside.append(found.low <= -math.log2(0.1) <= found.high)
        result = stats.binomtest(round(found.probability * 60), 60).proportion_ci(method="exact")
        assert 2**-found.high == pytest.approx(result.low, abs=1e-12)
        assert 2**-found.low == pytest.approx(result.high, abs=1e-12)
    assert np.mean(inside) >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / 400)


def test_none_and_all_are_told_apart() -> None:
    none, everything = bits(np.arange(1.0, 31.0), target=0.5), bits(np.arange(1.0, 31.0), target=30.0)
    assert (none.value, none.high, none.probability) == (math.inf, math.inf, 0.0)
    assert none.low == pytest.approx(-math.log2(1 - 0.025 ** (1 / 30)), rel=1e-9)
    assert (everything.value, everything.low) == (0.0, 0.0)
    assert "inf bits to a loss of 0.5 (counted, 95% interval" in str(none)


@pytest.mark.parametrize("shape", ["chi2", "lognormal"])
def test_fitted_bits_cover_and_fall_with_the_target(shape: str) -> None:
    rng = np.random.default_rng(2)
    model = stats.chi2(12, scale=0.2) if shape == "chi2" else stats.lognorm(0.4)
    true = -math.log2(model.cdf(0.5))
    inside = []
    for seed in range(60):
        found = bits(model.rvs(size=100, random_state=rng), target=0.5, shape=shape, seed=seed, draws=200)
        inside.append(found.low <= true <= found.high)
    assert np.mean(inside) >= 0.95 - 0.05 - 3 * math.sqrt(
        0.05 * 0.95 / 60
    )  # the bootstrap covers a little less than it says
    losses = model.rvs(size=50, random_state=rng)
    falling = [bits(losses, target=target, shape=shape, draws=20).value for target in (0.1, 0.5, 1.0, 2.0, 50.0)]
    assert (np.diff(falling) < 0).all()
    assert falling[-1] == pytest.approx(0.0, abs=1e-6)
    far = bits(1.0 + 0.01 * losses, target=0.1, shape=shape, draws=20)
    assert far.extrapolated
    assert "EXTRAPOLATED" in str(far)
    assert math.isfinite(far.value)


def test_mistakes_are_told() -> None:
    with pytest.raises(ValueError, match="found 3 of which 1 are NaN"):
        bits(np.array([1.0, np.nan, 2.0]), target=1.0)
    with pytest.raises(ValueError, match="positive and finite with shape='chi2'"):
        bits(np.array([1.0, np.inf]), target=1.0, shape="chi2")
    with pytest.raises(ValueError, match="losses that differ"):
        bits(np.ones(3), target=1.0, shape="lognormal")
    with pytest.raises(ValueError, match="level=1"):
        bits(np.ones(3), target=1.0, level=1.0)
