"""Curvature and width of slices: exact on polynomials, errors against resampled data, and what is not reached is said."""

from __future__ import annotations

import math

import numpy as np
import pytest

from theodolite.records import Line, Plane
from theodolite.records.jackknife import jackknife_stderr
from theodolite.records.slices import curvatures, slices, width


def line(alphas: np.ndarray, losses: np.ndarray, stderrs: np.ndarray | None = None, **changes: object) -> Line:
    values = {"direction_norm": 2.0, "name": "given", "parameter_norm": 1.0, **changes}
    return Line(alphas=alphas, losses=losses, stderrs=np.zeros(alphas.size) if stderrs is None else stderrs, **values)


def test_curvature_is_exact_on_parabolas_with_uneven_steps() -> None:
    alphas = np.array([-2.0, -1.5, -0.3, 0.0, 0.1, 1.0])
    found = curvatures(line(alphas, 3.0 + alphas + 2.5 * alphas**2))
    np.testing.assert_array_equal(found.alphas, alphas[1:-1])
    np.testing.assert_allclose(found.values, 5.0 / 4, rtol=1e-12)
    assert found.at(0.02).value == pytest.approx(1.25)
    whole = line(alphas, alphas**2, np.abs(alphas), context={"chunks": 5})
    assert whole.curvature == curvatures(whole).at(0.0)


def test_errors_bound_those_of_the_data() -> None:
    rng = np.random.default_rng(0)
    alphas = np.linspace(-1, 1, 9)
    chunks = (alphas[:, None] - rng.normal(size=40)) ** 2 * rng.uniform(0.5, 1.5, size=40) + rng.normal(size=(9, 40))
    rises = chunks - chunks[4]

    def spread(each: np.ndarray) -> np.ndarray:
        left_out = ((each.sum(1, keepdims=True) - each) / 39).T
        return jackknife_stderr(left_out, whole=each.mean(1), weights=np.ones(40))

    found = curvatures(line(alphas, chunks.mean(1), spread(rises), context={"chunks": 40}))
    true = spread((rises[:-2] - 2 * rises[1:-1] + rises[2:]) / (0.25 * 2) ** 2)
    assert (found.stderrs >= true * (1 - 1e-9)).all()
    assert (found.stderrs <= 12 * true).all()
    assert found.degrees == 39


def test_nothing_is_made_of_exploded_positions() -> None:
    alphas = np.arange(-3.0, 4.0)
    losses = np.where(alphas == 3, np.inf, alphas**2)
    found = curvatures(line(alphas, losses))
    np.testing.assert_array_equal(np.isnan(found.values), [False] * 4 + [True])
    assert width(line(alphas, losses), rise=8.0).above.value == 4.0
    short = line(np.array([0.0, 1.0]), np.zeros(2))
    assert curvatures(short).values.shape == (0,)
    assert math.isnan(curvatures(short).at(0.0).value)


def test_width_of_a_parabola_and_its_error() -> None:
    alphas = np.linspace(-2, 2, 4001)
    errors = 0.1 * np.abs(alphas)
    found = width(line(alphas, alphas**2, errors, context={"chunks": 9}), rise=2.25)
    assert found.reached == (True, True)
    assert found.whole.value == pytest.approx(2 * 1.5 * 2, abs=1e-5)
    assert found.above.stderr == pytest.approx(0.15 / 3 * 2, rel=1e-3)  # error of the rise over its slope, times ‖d‖
    assert found.whole.stderr == pytest.approx(2 * found.above.stderr, rel=1e-6)
    assert found.whole.degrees == 8
    assert "at a rise of 2.25" in str(found)


def test_width_scatters_as_its_error_says() -> None:
    rng = np.random.default_rng(1)
    alphas = np.linspace(-2, 2, 41)
    bends = rng.normal(1.0, 0.2, size=(400, 25))
    means, errors = bends.mean(1), bends.std(1, ddof=1) / 5
    found = [
        width(line(alphas, mean * alphas**2, error * alphas**2), rise=1.0)
        for mean, error in zip(means, errors, strict=True)
    ]
    values = np.array([one.above.value for one in found])
    assert np.mean([one.above.stderr for one in found]) == pytest.approx(values.std(), rel=0.15)


def test_a_height_that_is_not_reached_is_said() -> None:
    alphas = np.linspace(-1, 1, 21)
    found = width(line(alphas, np.where(alphas > 0, 10 * alphas, 0.0)), rise=5.0)
    assert found.reached == (False, True)
    assert found.whole.value == math.inf
    assert found.at_least == pytest.approx(2.0 + 1.0)
    assert "at least 3: a rise of 5 is not reached at negative positions" in str(found)
    with pytest.raises(ValueError, match="more than 0; found 0"):
        width(line(alphas, alphas), rise=0.0)
    with pytest.raises(ValueError, match="finite loss at position 0, found nan"):
        width(line(alphas + 5, alphas), rise=1.0)


def test_slices_of_a_plane_are_its_axes() -> None:
    x, y = np.linspace(-1, 1, 5), np.linspace(-2, 1, 4)
    plane = Plane(
        alphas=x,
        betas=y,
        losses=x[:, None] ** 2 + 3 * y[None] ** 2,
        stderrs=np.ones((5, 4)),
        directions=(np.array([2.0, 0.0]), np.array([0.0, 3.0])),
        direction_norms=(2.0, 3.0),
        cosine=0.0,
        name="given",
        parameter_norm=1.0,
        scalars={"accuracy": x[:, None] + y},
        scalar_stderrs={"accuracy": np.ones((5, 4))},
        evaluated=np.ones((5, 4), dtype=bool) & (x != 1)[:, None],
        interpolation_error=0.25,
        context={"chunks": 3},
    )
    first, second = slices(plane)
    np.testing.assert_array_equal(first.losses, x**2)
    np.testing.assert_array_equal(second.scalars["accuracy"], y)
    assert first.center == second.center == 0.0
    np.testing.assert_allclose(curvatures(first).values, 2 / 4)
    np.testing.assert_allclose(curvatures(second).values, 6 / 9)
    assert first.curvature == plane.curvatures[0]
    assert (first.notes, second.notes) == (("1 position read from a spline, which is off by 0.25 of the range",), ())
    with pytest.raises(ValueError, match="centre on its grid"):
        slices(plane.replace(alphas=x + 0.1))
