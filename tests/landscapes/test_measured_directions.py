"""Gradients, SAM's ascent and eigenvectors against dense oracles, and the names by which lines and planes know them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from families import BY_NAME
from theodolite.errors import NotConvergedWarning, ProblemError
from theodolite.landscapes import directions, line, plane
from theodolite.landscapes.directions import ascent, cosine, eigenvectors, gradient
from theodolite.measures import spectrum
from theodolite.problem import Problem


class Saddle(nn.Module):
    """½wᵀHw + bᵀw with eigenvalues 4, 1, ½, −2 in a rotated basis."""

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(5)
        self.w = nn.Parameter(torch.randn(4, generator=g, dtype=torch.float64))
        self.register_buffer("basis", torch.linalg.qr(torch.randn(4, 4, generator=g, dtype=torch.float64))[0])
        self.register_buffer("b", torch.randn(4, generator=g, dtype=torch.float64))

    @property
    def H(self) -> torch.Tensor:
        return self.basis @ torch.diag(torch.tensor([4.0, 1.0, 0.5, -2.0], dtype=torch.float64)) @ self.basis.T

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 0.5 * self.w @ self.H @ self.w + self.b @ self.w + 0 * x


def saddle() -> Problem:
    return Problem.from_loss(Saddle(), lambda model, x: model(x).mean(), [torch.zeros(3, dtype=torch.float64)])


def test_the_gradient_is_the_slope_of_the_line_along_it() -> None:
    problem = saddle()
    g = gradient(problem)
    found = line(problem, direction="gradient", points=3, span=(-1e-4, 1e-4))
    assert found.name == "gradient"
    assert found.seed is None
    assert found.cost.gradients == 1
    slope = (found.losses[2] - found.losses[0]) / 2e-4
    assert slope == pytest.approx(float(g @ g), rel=1e-9)


def test_ascent_rises_as_the_quadratic_says() -> None:
    problem = saddle()
    g, H = gradient(problem), problem.model.H
    unit = g / g.norm()
    found = line(problem, direction=ascent(problem, rho=0.3), points=2, span=(0, 1))
    expected = 0.3 * g.norm() + 0.5 * 0.3**2 * unit @ H @ unit
    assert found.losses[1] - found.losses[0] == pytest.approx(float(expected), rel=1e-12)
    assert line(problem, direction="ascent", points=3).direction_norm == pytest.approx(0.05, rel=1e-14)


def test_adaptive_ascent_by_its_formula() -> None:
    problem = saddle()
    g, theta = gradient(problem), problem.model.w.detach()
    T = theta.abs() + 0.01
    found = ascent(problem, rho=0.5, adaptive=True)
    torch.testing.assert_close(found, 0.5 * T**2 * g / (T * g).norm())
    assert float((found / T).norm()) == pytest.approx(0.5, rel=1e-14)


@pytest.mark.parametrize(("which", "order"), [("largest", [0, 1]), ("smallest", [3, 2]), ("both", [0, 3])])
def test_eigenvectors_of_a_known_hessian(which: str, order: list[int]) -> None:
    problem = saddle()
    own = spectrum(problem, k=2, which="both", tol=1e-10)
    for given in (None, own):
        found = eigenvectors(problem, k=2, which=which, spectrum=given, tol=1e-10)
        for row, index in zip(found, order, strict=True):
            expected = problem.model.basis[:, index]
            assert abs(float(row @ expected)) == pytest.approx(1, abs=1e-9)
            assert float(row[row.abs().argmax()]) > 0


def test_a_plane_of_eigenvectors_is_the_quadratic_of_their_eigenvalues() -> None:
    problem = saddle()
    g, values = gradient(problem).numpy(), (4.0, -2.0)
    found = plane(problem, directions="hessian-ends", points=5)
    assert found.name == "hessian-ends"
    assert abs(found.cosine) < 1e-9
    assert found.cost.products > 0
    assert any("d₂ is the unit eigenvector of the hessian with eigenvalue -2, residual" in n for n in found.notes)
    assert found.directions is not None
    slopes = [g @ d for d in found.directions]
    for i, alpha in enumerate(found.alphas):
        for j, beta in enumerate(found.betas):
            rise = alpha * slopes[0] + beta * slopes[1] + 0.5 * (values[0] * alpha**2 + values[1] * beta**2)
            assert found.losses[i, j] == pytest.approx(found.center + rise, rel=1e-9)
    assert found.curvatures[0].value == pytest.approx(4, rel=1e-8)
    assert found.curvatures[1].value == pytest.approx(-2, rel=1e-8)


def test_ggn_eigenvectors() -> None:
    problem = BY_NAME["mlp"].problem()
    own = spectrum(problem, k=2, operator="ggn", tol=1e-8)
    found = eigenvectors(problem, k=2, operator="ggn", tol=1e-8)
    for row, expected in zip(found.numpy(), own.eigenvectors, strict=True):
        assert abs(row @ expected) == pytest.approx(1, abs=1e-6)


def test_names_stand_in_the_record() -> None:
    problem = BY_NAME["mlp"].problem()
    g, vector = gradient(problem), directions.gaussian(problem, seed=7)
    mixed = plane(problem, directions=("gradient", vector), points=2, span=(0, 1))
    assert (mixed.name, mixed.seed, mixed.cost.gradients) == ("gradient, given", None, 1)
    assert mixed.cosine == pytest.approx(cosine(g, vector), abs=1e-14)
    drawn = plane(problem, directions=("filter", "uniform"), points=2, span=(0, 1), seed=3)
    assert (drawn.name, drawn.seed, drawn.context["one_dimensional"]) == ("filter, uniform", 3, "zero")
    twice = plane(problem, directions=("filter", "filter"), points=2, span=(0, 1), seed=3)
    assert twice.directions is not None
    for vector_found, seed in zip(twice.directions, (3, 4), strict=True):
        np.testing.assert_array_equal(vector_found, directions.filter_normalised(problem, seed=seed).numpy())
    named = plane(problem, directions={"downhill": -g, "probe": vector}, points=2, span=(0, 1))
    assert named.name == "downhill, probe"
    assert line(problem, direction={"downhill": -g}, points=3).name == "downhill"
    assert plane(problem, directions="uniform", points=2, span=(0, 1)).name == "uniform"


def test_refusals() -> None:
    problem, other = saddle(), BY_NAME["mlp"].problem()
    top = spectrum(problem, k=2, tol=1e-8)
    with pytest.raises(
        ProblemError, match=r"spectrum of the hessian in this problem's .* found that of the hessian in 4"
    ):
        eigenvectors(other, spectrum=top)
    with pytest.raises(ProblemError, match="1 eigenvectors of the smallest eigenvalues, found 2 of the largest"):
        eigenvectors(problem, which="smallest", spectrum=top)
    with pytest.raises(ProblemError, match="3 eigenvectors of the largest eigenvalues, found 2"):
        eigenvectors(problem, k=3, spectrum=top)
    with pytest.raises(ProblemError, match=r"found 0 of the largest.*keep_vectors_below"):
        eigenvectors(problem, spectrum=top.replace(eigenvectors=None))
    with pytest.warns(NotConvergedWarning, match="1 of 2 eigenvectors of the given spectrum did not converge"):
        eigenvectors(problem, k=2, spectrum=top.replace(converged=np.array([True, False])))
    with pytest.raises(ProblemError, match="rho to be positive and finite, found 0"):
        ascent(problem, rho=0.0)
    with torch.no_grad():
        problem.model.w.copy_(torch.linalg.solve(problem.model.H, -problem.model.b))
        problem.model.b.zero_()
        problem.model.w.zero_()
    with pytest.raises(ProblemError, match="at a stationary point SAM does not move"):
        ascent(problem)
    with pytest.raises(ProblemError, match="2 named vectors, found 1: a"):
        plane(problem, directions={"a": torch.ones(4)})
