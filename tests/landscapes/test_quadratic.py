"""On a quadratic every cell, error and curvature is known in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from theodolite.errors import ProblemError
from theodolite.landscapes import line, plane
from theodolite.landscapes.grids import positions
from theodolite.problem import Problem

SIZES = (7, 7, 3, 1)


class Bowl(nn.Module):
    """w = (a, b) with one matrix and one vector, and a loss ½wᵀHw + xᵀw + c that is negative near its minimum."""

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.a = nn.Parameter(torch.randn(3, 2, generator=g, dtype=torch.float64))
        self.b = nn.Parameter(torch.randn(4, generator=g, dtype=torch.float64))
        root = torch.randn(10, 10, generator=g, dtype=torch.float64)
        self.register_buffer("H", root + root.T)

    def forward(self, x: Tensor) -> Tensor:
        w = torch.cat([self.a.flatten(), self.b])
        return 0.5 * w @ self.H @ w + x @ w - 50


def bowl(sizes: tuple[int, ...] = SIZES) -> tuple[Problem, np.ndarray]:
    """The problem and all its samples x."""
    g = torch.Generator().manual_seed(1)
    batches = [torch.randn(size, 10, generator=g, dtype=torch.float64) for size in sizes]
    problem = Problem.from_loss(Bowl(), lambda model, x: model(x).mean(), batches)
    return problem, torch.cat(batches).numpy()


def closed_form(problem: Problem, samples: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Loss of θ + shift, of every sample."""
    theta = np.concatenate([leaf.detach().numpy().ravel() for leaf in problem.point().leaves])
    w = theta + shift
    return 0.5 * w @ problem.model.H.numpy() @ w + samples @ w - 50


@pytest.mark.parametrize("directions", ["filter", "gaussian", "given"])
@pytest.mark.parametrize(
    ("points", "span"),
    [(5, (-1, 1)), ((4, 7), (-0.3, 2.1)), ((3, 6), ((-1, 0), (0.5, 2)))],
    ids=["square", "asymmetric", "0 at an end and outside"],
)
def test_every_cell_is_the_closed_form(directions: str, points: object, span: object) -> None:
    problem, samples = bowl()
    g = np.random.default_rng(2)
    vectors = (g.standard_normal(10), g.standard_normal(10)) if directions == "given" else directions
    found = plane(problem, directions=vectors, points=points, span=span, seed=3)  # type: ignore[arg-type]
    assert found.directions is not None
    first, second = found.directions
    assert found.losses.shape == (points if isinstance(points, tuple) else (points, points))
    for i, alpha in enumerate(found.alphas):
        for j, beta in enumerate(found.betas):
            expected = closed_form(problem, samples, alpha * first + beta * second).mean()
            assert found.losses[i, j] == pytest.approx(expected, rel=1e-10)
    assert (found.losses < 0).any()


def test_the_centre_is_the_loss_bit_for_bit_and_costs_nothing_extra() -> None:
    problem, _ = bowl()
    surveyed = plane(problem, points=(5, 4))
    along = line(problem, points=6)
    assert surveyed.center == along.center == problem.loss()
    assert surveyed.cost.forwards == 20
    assert along.cost.forwards == 6
    assert surveyed.stderrs[2, 2 if surveyed.betas[2] == 0 else 1] == 0


def test_a_span_without_the_centre_says_so() -> None:
    problem, samples = bowl()
    found = line(problem, points=4, span=(0.5, 2))
    assert np.isnan(found.center)
    assert found.cost.forwards == 5
    assert any("leaves out the centre, where the loss is" in note for note in found.notes)
    assert found.direction is not None
    expected = [closed_form(problem, samples, alpha * found.direction).mean() for alpha in found.alphas]
    np.testing.assert_allclose(found.losses, expected, rtol=1e-10)
    assert np.isfinite(found.stderrs).all()


def test_curvature_of_the_record_is_that_of_the_quadratic() -> None:
    problem, _ = bowl()
    hessian = problem.model.H.numpy()
    found = plane(problem, points=(4, 5), directions="gaussian", seed=7)
    assert found.directions is not None
    for direction, estimate in zip(found.directions, found.curvatures, strict=True):
        expected = direction @ hessian @ direction / (direction @ direction)
        assert estimate.value == pytest.approx(expected, rel=1e-9)
    straight = line(problem, points=4, direction="gaussian", seed=7)
    assert straight.curvature.value == pytest.approx(found.curvatures[0].value, rel=1e-9)


def test_a_plane_holds_the_line_of_its_seed() -> None:
    problem, _ = bowl()
    surveyed, along = plane(problem, points=5, seed=9), line(problem, points=5, seed=9)
    np.testing.assert_array_equal(surveyed.losses[:, 2], along.losses)
    np.testing.assert_array_equal(surveyed.stderrs[:, 2], along.stderrs)
    assert surveyed.parameter_norm == along.parameter_norm


@given(
    points=st.integers(3, 60),
    low=st.floats(-1e3, 1e3, allow_subnormal=False),
    width=st.floats(1e-3, 1e3),
)
@settings(max_examples=200, deadline=None)
def test_positions(points: int, low: float, width: float) -> None:
    high = low + width
    found = positions(points, (low, high))
    assert found.size == points
    assert found[0] == low
    assert found[-1] == high
    assert (np.diff(found) > 0).all()
    if low <= 0 <= high:
        assert (found == 0).sum() == 1
    for side in (found[found <= 0], found[found >= 0]):
        if side.size > 2:
            np.testing.assert_allclose(np.diff(side), np.diff(side)[0], rtol=1e-6)


@given(points=st.integers(1, 40), high=st.floats(1e-3, 1e3))
def test_symmetric_spans_of_odd_points_are_even_and_symmetric(points: int, high: float) -> None:
    found = positions(2 * points + 1, (-high, high))
    np.testing.assert_array_equal(found, -found[::-1])
    np.testing.assert_allclose(np.diff(found), high / points, rtol=1e-9)


@pytest.mark.parametrize(
    ("points", "span", "message"),
    [
        (1, (0, 1), r"at least 2 points for the span \(0, 1\), both ends, found 1"),
        (2, (-1, 1), r"at least 3 points for the span \(-1, 1\), both ends and 0 between them, found 2"),
        (5, (1, -1), r"that increases, found \(1, -1\)"),
        (5, (1, 1), r"that increases, found \(1, 1\)"),
        (5, (0, float("inf")), r"two finite numbers that increases, found \(0, inf\)"),
    ],
)
def test_bad_grids(points: int, span: tuple[float, float], message: str) -> None:
    problem, _ = bowl()
    with pytest.raises(ProblemError, match=message):
        line(problem, points=points, span=span)
    with pytest.raises(ProblemError, match=message):
        plane(problem, points=(3, points), span=((-1, 1), span))


def test_interpolated_cells_of_a_quadratic_are_exact_and_a_third_of_them_is_evaluated() -> None:
    problem, _ = bowl()
    whole = plane(problem, points=25)
    few = plane(problem, points=25, interpolate=1e-3)
    np.testing.assert_allclose(few.losses, whole.losses, rtol=1e-10)
    assert few.center == whole.center
    assert few.evaluated is not None
    assert whole.evaluated is None
    assert few.evaluated.sum() == few.cost.forwards == 13 * 13 + 24
    np.testing.assert_array_equal(few.stderrs[few.evaluated], whole.stderrs[few.evaluated])
    np.testing.assert_allclose(few.stderrs, whole.stderrs, atol=0.1 * whole.stderrs.max())
    assert "193 of them evaluated" in repr(few)
