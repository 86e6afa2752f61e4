"""Noise weighted by curvature equals its dense form, and the rates that follow from it are the best ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from families import BY_NAME, merged
from theodolite.errors import OperatorError, ProblemError
from theodolite.measures import gradients
from theodolite.measures.noise import curved_noise
from theodolite.operators import Hessian
from theodolite.problem import Problem
from theodolite.problem.data import split
from theodolite.records.curved_noise import CurvedNoise


def dense(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Per-sample gradients and Hessian."""
    family = BY_NAME[name]
    model, batches = family.model_and_data()
    whole = family.problem_of(model, batches)
    denominator, rows = whole.total_weight(whole.totals()[1]), []
    for sample in split(merged(batches)[0], 1):
        one = family.problem_of(model, [sample])
        rows.append(one.gradient() * one.total_weight(one.totals()[1]) * whole.samples / denominator)
    return torch.stack(rows).numpy(), Hessian(whole).dense().numpy()


@pytest.mark.parametrize("name", ["mlp", "mlp-weighted"])
def test_it_equals_the_dense_form(name: str) -> None:
    rows, H = dense(name)
    found = curved_noise(BY_NAME[name].problem(), probes=60, seed=1)
    covariance, mean = np.cov(rows.T), rows.mean(0)
    assert found.slope_curvature == pytest.approx(mean @ H @ mean, rel=1e-8)
    assert found.slope_square == pytest.approx(mean @ mean, rel=1e-10)
    exact = float(np.trace(H @ covariance))
    noise = found.noise_curvature
    assert abs(noise.value - exact) < 4 * noise.stderr
    assert noise.stderr < abs(exact)
    of_squares = found.squares.std(ddof=1) / math.sqrt(60)
    assert abs(found.squares.mean() - np.trace(covariance)) < 4 * of_squares


def test_the_combinations_are_those_of_the_signs() -> None:
    """With the same signs zᵀHz is that of dense gradients, to rounding."""
    rows, H = dense("mlp")
    found = curved_noise(BY_NAME["mlp"].problem(), probes=5, seed=4)
    signs = np.random.default_rng(4).choice([-1.0, 1.0], size=(5, len(rows)))
    z = signs @ (rows - rows.mean(0)) / math.sqrt(len(rows) - 1)
    np.testing.assert_allclose(found.curvatures, np.einsum("ki,ij,kj->k", z, H, z), rtol=1e-8, atol=1e-14)
    np.testing.assert_allclose(found.squares, np.square(z).sum(1), rtol=1e-10)


def test_with_a_hessian_like_the_identity_both_noise_scales_agree() -> None:
    """Inputs are the rows of an orthogonal matrix: the Hessian of squared error is 2/N times the identity."""
    g = torch.Generator().manual_seed(0)
    inputs = torch.linalg.qr(torch.randn(40, 40, generator=g, dtype=torch.float64))[0] * 40**0.5
    model = nn.Linear(40, 1, bias=False).double()
    problem = Problem(model, nn.MSELoss(), [(inputs, torch.full((40, 1), 3.0, dtype=torch.float64))])
    curved, plain = curved_noise(problem, probes=40), gradients(problem, gram=True)
    assert curved.noise_curvature.value == pytest.approx(2 * curved.squares.mean(), rel=1e-10)
    assert curved.signal_curvature.value == pytest.approx(2 * curved.signal_square, rel=1e-9, abs=1e-9)
    assert curved.slope_square == pytest.approx(plain.mean_square.value)
    assert curved.squares.mean() == pytest.approx(plain.covariance_trace.value, rel=0.2)


def record(**changes: object) -> CurvedNoise:
    values = {
        "curvatures": np.array([8.0, 12.0]),
        "squares": np.array([4.0, 6.0]),
        "slope_curvature": 2.1,
        "slope_square": 1.05,
        "samples": 100,
        "size": 7,
    }
    return CurvedNoise(**(values | changes))  # type: ignore[arg-type]


def test_the_best_rate_lowers_the_quadratic_most() -> None:
    """E L(θ − εg_B) − L = −ε|𝒢|² + ½ε²(𝒢ᵀH𝒢 + tr(HΣ)/B), with 𝒢ᵀH𝒢 = 2, |𝒢|² = 1 and tr(HΣ) = 10."""
    found = record()
    assert found.noise_scale.value == pytest.approx(5.0)
    for batch in (1, 4, 64):
        rates = np.linspace(1e-3, 1, 20_001)
        change = -rates + 0.5 * rates**2 * (2 + 10 / batch)
        assert found.best_learning_rate(batch) == pytest.approx(rates[change.argmin()], abs=1e-4)
        assert found.best_improvement(batch) == pytest.approx(-change.min(), rel=1e-6)
    assert found.trade_off(np.array([5.0]))[0].tolist() == [2.0]


def test_the_error_of_the_ratio_is_its_derivative() -> None:
    found, step = record(), 1e-5
    moved = record(curvatures=found.curvatures + step)
    slope = (moved.noise_scale.value - found.noise_scale.value) / step
    assert found.noise_scale.stderr == pytest.approx(slope * found.noise_curvature.stderr, rel=1e-4)


def test_without_curvature_along_the_gradient_there_is_no_bound() -> None:
    found = record(slope_curvature=-1.0)
    assert found.noise_scale.value == math.inf
    assert math.isnan(found.max_learning_rate)
    assert "B_noise = inf" in repr(found)


def test_what_has_no_noise_is_refused() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)).double()
    batch = torch.randn(6, 4, dtype=torch.float64), torch.randint(2, (6,))
    with pytest.raises(OperatorError, match="BatchNorm on batch statistics"):
        curved_noise(Problem(model, nn.CrossEntropyLoss(), [batch], mode="train"))
    with pytest.raises(ProblemError, match="found 1 and 6"):
        curved_noise(Problem(model, nn.CrossEntropyLoss(), [batch]), probes=1)
