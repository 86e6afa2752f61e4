"""The known cases of gradient-normalised smoothness."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from families import BY_NAME
from measures.quadratics import Vector, quadratic, symmetric
from theodolite.errors import ProblemError
from theodolite.measures import gradients
from theodolite.measures.smoothness import smoothness
from theodolite.problem import Problem
from theodolite.records import Smoothness
from theodolite.records.jackknife import jackknife_stderr


def test_a_quadratic_with_its_own_hessian_has_no_limit() -> None:
    H, g = symmetric(5, positive=True), torch.ones(5, dtype=torch.float64)
    found = smoothness(quadratic([H], [g]))
    assert found.gamma == math.inf
    assert np.isinf(found.bounds).all()
    assert found.regularisation == 0.0
    assert smoothness(quadratic([H], [0 * g])).gradient_norm == 0.0


def test_without_curvature_gamma_is_the_gradient_over_the_lipschitz_constant() -> None:
    H = torch.eye(5, dtype=torch.float64) * 3.0
    g = torch.tensor([1.0, 2.0, -1.0, 0.5, 0.0], dtype=torch.float64)
    found = smoothness(quadratic([H], [g]), operator="none")
    assert found.bounds == pytest.approx([float(g.norm()) / 3] * len(found.bounds), rel=1e-6)
    assert found.gamma == pytest.approx(float(g.norm()) / 3, rel=1e-6)
    assert found.regularisation == pytest.approx(3.0, rel=1e-6)
    assert found.cost.products == 0


class Cubic(nn.Module):
    """f = bθ + cθ³/6: the Hessian is c-Lipschitz, R(h) = ch²/2, so that γ = √(2b/c) at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self) -> Tensor:
        return (0.7 * self.theta + 2.0 * self.theta**3 / 6).sum()


def test_a_cubic_attains_the_bound_of_a_lipschitz_hessian() -> None:
    problem = Problem.from_loss(Cubic(), lambda model, _: model(), [torch.zeros(1)])
    found = smoothness(problem, refine=12)
    gamma = math.sqrt(2 * 0.7 / 2.0)
    assert found.gamma == pytest.approx(gamma, rel=5e-3)
    lower, upper = found.bracket  # one dimension: the directions are all that there are
    assert lower <= gamma <= upper < 1.01 * lower
    lower, upper = smoothness(problem, refine=0).bracket
    assert lower <= gamma <= upper
    assert upper > 1.1 * lower


def test_a_better_model_reaches_further() -> None:
    problem = BY_NAME["mlp"].problem()
    exact, rough, none = (
        smoothness(problem, operator=each, draws=2, shells=4, refine=3) for each in ("hessian", "ggn", "none")
    )
    assert exact.gamma >= rough.gamma > none.gamma > 0
    assert exact.radii.tolist() == sorted(exact.radii.tolist())
    assert len(exact.radii) == 4 + 3
    assert set(exact.worst) <= set(exact.directions) == {"gradient", "top eigenvector", "random 0", "random 1"}


def by_hand(bounds: list[float]) -> Smoothness:
    radii = np.array([0.1, 1.0, 10.0])
    return Smoothness(radii=radii, bounds=np.array(bounds), gradient_norm=1.0, loss=0.0, operator="hessian")


def test_gamma_by_hand() -> None:
    assert by_hand([5.0, 5.0, 5.0]).bracket == (5.0, 5.0)
    assert by_hand([5.0, 0.5, 5.0]).bracket == (0.5, 1.0)
    assert by_hand([5.0, 0.01, 5.0]).bracket == (0.1, 1.0)
    assert by_hand([20.0, 1.5, 0.3]).bracket == (1.0, 1.5)
    assert by_hand([math.inf, math.inf, math.inf]).gamma == math.inf
    assert "an upper bound from these directions (they fail by 1)" in repr(by_hand([5.0, 0.5, 5.0]))
    assert by_hand([20.0, 15.0, 12.0]).gamma == 12.0
    assert by_hand([math.inf, math.nan, math.inf]).gamma == 0.1


def test_a_loss_that_breaks_down_bounds_the_radius() -> None:
    problem = Problem.from_loss(
        Vector(torch.ones(1)), lambda model, _: (-(2 - model.theta).log()).sum(), [torch.zeros(1)]
    )
    assert smoothness(problem).gamma < 1.0


@pytest.mark.parametrize("options", [{"shells": 1}, {"draws": -1}, {"refine": -1}])
def test_what_makes_no_sense_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(ProblemError, match="draws and refine of at least 0 and two shells or more"):
        smoothness(BY_NAME["mlp"].problem(), **options)


def test_loss_and_norm_have_errors_from_the_data() -> None:
    problem = BY_NAME["mlp"].problem()
    found = smoothness(problem, draws=0, shells=2, refine=0)
    assert found.loss_stderr == pytest.approx(gradients(problem).loss_stderr, rel=1e-9)
    g = problem.gradient()
    assert found.gradient_norm == pytest.approx(float(g.norm()), rel=1e-12)
    totals = np.array([float(part @ g / g.norm()) for *_, part in problem.chunk_gradients()])
    weights = np.array([7.0, 7.0, 3.0])
    left_out = (totals.sum() - totals) / (17 - weights)
    error = jackknife_stderr(left_out, whole=np.asarray(totals.sum() / 17), weights=weights)
    assert found.gradient_norm_stderr == pytest.approx(float(error), rel=1e-9)
