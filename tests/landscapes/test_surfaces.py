"""A surface from few cells: exact where evaluated, within its stated error elsewhere, all cells where it must."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from jaxtyping import Float

from theodolite.landscapes.readings import Reading
from theodolite.landscapes.surfaces import Cells, Surface, surface

AXIS = np.linspace(-1, 1, 51)
Function = Callable[[Float[np.ndarray, "..."], Float[np.ndarray, "..."]], Float[np.ndarray, "..."]]


def quadratic(x: Float[np.ndarray, "..."], y: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    return 3 * x**2 - 2 * x * y + 0.5 * y**2 + x - 7


def bowl(x: Float[np.ndarray, "..."], y: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    return 0.05 + np.logaddexp(0, 3 * x + y) * (1 + y**2) + x**4


def rugged(x: Float[np.ndarray, "..."], y: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    return np.exp(4 * np.sin(9 * x) * np.cos(7 * y) + 6 * (x**2 + y**2))


def half_rugged(x: Float[np.ndarray, "..."], y: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    return 1 + x**2 + y**2 + np.where(x > 0.5, np.abs(np.sin(40 * (x - 0.5) * y)), 0.0)


def exploding(x: Float[np.ndarray, "..."], y: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    return np.where(x + y > 1.5, np.nan, 1 + x**2 + y**2)


def surveyed(
    function: Function, alphas: Float[np.ndarray, " a"] = AXIS, betas: Float[np.ndarray, " b"] = AXIS, tol: float = 1e-3
) -> tuple[Surface, Float[np.ndarray, "a b"]]:
    truth = function(*np.meshgrid(alphas, betas, indexing="ij"))

    def evaluate(cells: Cells) -> list[Reading]:
        return [Reading(float(truth[i, j]), np.ones(1), np.ones(1), 1.0) for i, j in cells.tolist()]

    return surface(evaluate, alphas, betas, tol=tol, seed=0), truth


@pytest.mark.parametrize("function", [quadratic, bowl, rugged, half_rugged, exploding])
def test_evaluated_cells_are_exact_and_the_ends_and_the_centre_are_among_them(function: Function) -> None:
    found, truth = surveyed(function)
    known = found.evaluated
    np.testing.assert_array_equal(found.losses[known], truth[known])
    assert known[0, 0] and known[-1, -1] and known[25, 25]  # noqa: PT018
    assert known.sum() == len(found.readings)


def test_a_quadratic_is_exact_everywhere_from_a_thirteenth_of_its_cells() -> None:
    found, truth = surveyed(quadratic)
    np.testing.assert_allclose(found.losses, truth, atol=1e-12)
    assert found.evaluated.sum() == 13 * 13 + 24
    assert found.error < 1e-13
    assert np.isnan(found.log_error)  # the losses are negative


def test_a_smooth_surface_keeps_to_its_tolerance() -> None:
    found, truth = surveyed(bowl)
    assert found.evaluated.sum() <= truth.size / 8
    assert 0 < found.error <= 1e-3
    assert np.abs(found.losses - truth).max() <= 4e-3 * np.ptp(truth)


def test_what_the_coarsest_grid_misses_is_tried_on_a_finer_one() -> None:
    found, truth = surveyed(lambda x, y: 5 + np.sin(7 * x) + np.cos(5 * y), tol=1e-3)
    assert 17 * 17 + 24 <= found.evaluated.sum() <= 17 * 17 + 13 * 13 + 2 * 24
    assert np.abs(found.losses - truth).max() <= 4e-3 * np.ptp(truth)


def test_a_rugged_surface_is_refused_and_evaluated_until_its_logarithm_is_right() -> None:
    found, truth = surveyed(rugged)
    assert found.evaluated.sum() > truth.size / 3
    log_range = np.ptp(np.log(truth))
    assert np.abs(np.log(found.losses) - np.log(truth)).max() <= 0.03 * log_range


def test_a_narrow_valley_is_not_smoothed_over() -> None:
    """As of a network trained to a loss of 1e-4 in a plane that explodes: random cells alone fall beside the valley."""
    found, truth = surveyed(lambda x, y: 1e-4 + 1e4 * (x**2 + y**2) ** 2 / (0.01 + x**2 + y**2))
    assert found.evaluated.sum() > 17 * 17 + 24
    assert np.abs(np.log(found.losses) - np.log(truth)).max() <= 0.02 * np.ptp(np.log(truth))


def test_only_the_rugged_part_is_refined() -> None:
    found, truth = surveyed(half_rugged)
    rough, smooth = found.evaluated[AXIS > 0.5].mean(), found.evaluated[AXIS < 0.3].mean()
    assert rough > 0.7
    assert smooth < 0.4
    assert np.abs(found.losses - truth)[AXIS < 0.3].max() <= 4e-3 * np.ptp(truth)


def test_what_is_not_finite_is_evaluated_and_never_invented() -> None:
    found, truth = surveyed(exploding)
    np.testing.assert_array_equal(np.isnan(found.losses), np.isnan(truth))
    finite = np.isfinite(truth)
    np.testing.assert_allclose(found.losses[finite], truth[finite], rtol=1e-2)


def test_a_plane_that_is_not_finite_anywhere_is_read_whole() -> None:
    found, truth = surveyed(lambda x, y: np.full_like(x, np.inf))
    assert found.evaluated.all()
    np.testing.assert_array_equal(found.losses, truth)


@pytest.mark.parametrize(("a", "b"), [(3, 3), (2, 9), (5, 40), (17, 17), (1 + 2 * 8, 51)])
def test_grids_of_any_shape(a: int, b: int) -> None:
    alphas, betas = np.linspace(0, 2, a), np.linspace(-1, 0.3, b)
    found, truth = surveyed(quadratic, alphas, betas)
    np.testing.assert_allclose(found.losses, truth, atol=1e-11)


def test_the_stated_error_foretells_the_true_one() -> None:
    def family(k: int) -> Function:
        return lambda x, y: 1 + np.sin((1 + 0.3 * k) * x + k) * np.cos((2 + 0.2 * k) * y)

    stated, true = [], []
    for k in range(1, 12):
        found, truth = surveyed(family(k), tol=0.02)
        stated.append(found.error)
        true.append(float(np.abs(found.losses - truth).max() / np.ptp(truth)))
    assert all(most <= 6 * said + 1e-12 for said, most in zip(stated, true, strict=True)), (stated, true)
