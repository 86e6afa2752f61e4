"""Heavy ball with the recommended rate and momentum shrinks every mode of a quadratic by √β a step."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from families import BY_NAME
from measures.quadratics import quadratic
from theodolite.errors import ProblemError
from theodolite.linalg import slq
from theodolite.measures import spectrum
from theodolite.measures.tuning import tuning
from theodolite.operators import GGN, Hessian
from theodolite.records import Tuning


def record(largest: float, smallest: float) -> Tuning:
    return Tuning(largest=largest, smallest=smallest, lanczos_steps=10, condition_cap=1e4, size=5)


def radius(curvature: float, rate: float, momentum: float) -> float:
    return float(np.abs(np.linalg.eigvals([[1 + momentum - rate * curvature, -momentum], [1, 0]])).max())


def test_the_golden_values() -> None:
    found = record(20.0, 0.5)
    assert found.learning_rate == pytest.approx(0.1491171, abs=1e-7)
    assert found.momentum == pytest.approx(0.5284503, abs=1e-7)
    assert found.rate == pytest.approx(0.7269459, abs=1e-7)
    assert found.learning_rate == pytest.approx(4 / (math.sqrt(20) + math.sqrt(0.5)) ** 2, rel=1e-12)


@pytest.mark.parametrize(("largest", "smallest"), [(20.0, 0.5), (3.0, 3.0), (1.0, 1e-2)])
def test_every_mode_shrinks_by_the_rate_and_no_other_pair_is_faster(largest: float, smallest: float) -> None:
    found = record(largest, smallest)
    curvatures = np.linspace(smallest, largest, 7)
    radii = [radius(each, found.learning_rate, found.momentum) for each in curvatures]
    # At both ends the roots coincide, where rounding of 1e-16 moves them by its square root.
    assert radii == pytest.approx([found.rate] * 7, abs=1e-7)
    for rate in (0.9, 1.1):
        for momentum in (-0.05, 0.05):
            beta = min(max(found.momentum + momentum, 0.0), 0.999)
            assert max(radius(each, rate * found.learning_rate, beta) for each in curvatures) > found.rate


def test_a_capped_momentum_stays_stable() -> None:
    found = record(1.0, 1e-8)
    assert found.momentum == 0.99
    assert max(radius(each, found.learning_rate, found.momentum) for each in np.geomspace(1e-8, 1, 30)) < 1


def test_enough_steps_find_both_ends() -> None:
    curvatures = torch.tensor([0.5, 1.0, 4.0, 9.0, 20.0], dtype=torch.float64)
    problem = quadratic([torch.diag(curvatures)], [torch.ones(5, dtype=torch.float64)])
    found = tuning(problem, steps=10, operator="hessian")
    assert (found.largest, found.smallest) == pytest.approx((20.0, 0.5), rel=1e-9)
    assert tuning(problem, operator="hessian", condition_cap=10.0).smallest == pytest.approx(2.0, rel=1e-9)
    later = tuning(problem, operator="hessian", earlier=found.replace(largest=40.0), smoothing=0.75)
    assert later.largest == pytest.approx(35.0, rel=1e-9)


def test_null_and_negative_curvature_are_left_out() -> None:
    problem = quadratic([torch.diag(torch.tensor([-3.0, 0.0, 2.0, 8.0]).double())], [torch.ones(4).double()])
    found = tuning(problem, operator="hessian")
    assert (found.largest, found.smallest) == pytest.approx((8.0, 2.0), rel=1e-9)
    none = tuning(quadratic([-torch.eye(3).double()], [torch.ones(3).double()]), operator="hessian")
    assert none.notes == ("no positive curvature was found",)
    assert math.isnan(none.momentum)
    assert math.isnan(none.learning_rate)


def test_on_a_network_the_extremes_are_those_of_the_ggn() -> None:
    problem = BY_NAME["mlp-squared"].problem()
    values = torch.linalg.eigvalsh(GGN(problem).dense())
    found = tuning(problem)
    assert found.largest == pytest.approx(float(values[-1]), rel=1e-4)
    assert found.smallest >= found.largest / 1e4
    assert found.lanczos_steps == 20


@pytest.mark.parametrize("options", [{"steps": 0}, {"condition_cap": 0.5}, {"smoothing": 1.0}])
def test_what_makes_no_sense_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(ProblemError, match="Expected steps and condition_cap of at least 1 and smoothing"):
        tuning(BY_NAME["mlp"].problem(), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(6))
def test_the_residual_is_added_to_the_largest_ritz_value(seed: int) -> None:
    """Three steps fall short of λ₁ = 10 by up to 1.6; an eigenvalue lies within the residual, which leaves 0.5 either way."""
    curvatures = torch.linspace(0.1, 10.0, 40, dtype=torch.float64)
    problem = quadratic([torch.diag(curvatures)], [torch.ones(40, dtype=torch.float64)])
    short = tuning(problem, steps=3, operator="hessian", seed=seed)
    ritz = float(slq(Hessian(problem), probes=1, steps=3, seed=seed).nodes.max())
    assert short.lanczos_steps == 3
    assert ritz < short.largest
    assert abs(short.largest - 10) < min(10 - ritz, 0.54)


def test_an_earlier_result_is_smoothed_with_unless_it_found_nothing() -> None:
    problem = quadratic([torch.diag(torch.tensor([2.0, 8.0]).double())], [torch.ones(2).double()])
    alone = tuning(problem, operator="hessian")
    half = tuning(problem, operator="hessian", earlier=record(16.0, 4.0))
    assert (half.largest, half.smallest) == pytest.approx((12.0, 3.0), rel=1e-9)
    after = tuning(problem, operator="hessian", earlier=record(-1.0, math.nan))
    assert (after.largest, after.smallest) == (alone.largest, alone.smallest)


def test_the_error_from_the_data_is_that_of_the_largest_eigenvalue() -> None:
    problem = BY_NAME["mlp-squared"].problem()
    found, exact = tuning(problem, steps=40), spectrum(problem, k=1, operator="ggn", tol=1e-9)
    assert found.largest_stderr == pytest.approx(float(exact.data_stderr[0]), rel=1e-4)
    assert found.largest_estimate.degrees == 2
    assert found.residual < 1e-6
    assert "± " in repr(found)
    assert "an upper bound after" in repr(found)
    again = tuning(problem, steps=40, earlier=found.replace(largest_stderr=3 * found.largest_stderr), smoothing=0.5)
    assert again.largest_stderr == pytest.approx(2 * found.largest_stderr, rel=1e-9)


@pytest.mark.parametrize("smallest", [10.0, 0.5, 1e-7])
def test_the_error_of_the_rate_is_that_of_the_curvature_to_first_order(smallest: float) -> None:
    found = record(20.0, smallest).replace(largest_stderr=1e-4)
    moved = record(20.0 + 1e-4, smallest).learning_rate - record(20.0 - 1e-4, smallest).learning_rate
    assert found.learning_rate_estimate.stderr == pytest.approx(abs(moved) / 2, rel=1e-5)


def test_one_chunk_leaves_the_error_unknown() -> None:
    found = tuning(quadratic([torch.eye(2).double()], [torch.ones(2).double()]), operator="hessian")
    assert math.isnan(found.largest_stderr)
    assert math.isnan(found.learning_rate_estimate.stderr)
    assert "±" not in repr(found)
