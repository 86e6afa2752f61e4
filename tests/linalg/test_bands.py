from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from linalg.matrices import with_spectrum
from theodolite.errors import OperatorError
from theodolite.linalg import Diagonal, Quadrature, cumulative, decompose, mass, slq

RANDOM = np.random.default_rng(0)
MODELS = {
    "outliers": (np.concatenate([7.2 * 0.8 ** np.arange(20), 0.01 * RANDOM.exponential(size=280)]), (-1.0, 0.02)),
    "flat bulk": (np.concatenate([6.6 * np.arange(1, 31) ** -0.8, 0.5 * RANDOM.normal(size=270)]), (-9.0, -0.001)),
    "indefinite": (np.linspace(-3, 3.5, 300), (-9.0, 0.0)),
}


def share(spectrum: np.ndarray, lower: float, upper: float) -> float:
    return float(((spectrum >= lower) & (spectrum < upper)).mean())


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_intervals_of_a_mass_from_one_run_cover_as_often_as_they_say(name: str) -> None:
    spectrum, interval = MODELS[name]
    A, exact = Diagonal(torch.from_numpy(spectrum)), share(spectrum, *interval)
    hits = 0
    for seed in range(200):
        rule = decompose(A, k=1, tol=1.0, steps=60, probes=2, seed=seed).quadrature
        assert rule is not None
        found = mass(rule, *interval)
        hits += bool(found.lower <= exact <= found.upper)
    assert 0.90 <= hits / 200 <= 0.98


def test_intervals_of_a_mass_from_several_probes_cover_as_often_as_they_say() -> None:
    spectrum = np.concatenate([np.full(120, 0.0), np.full(180, 1.0)])  # two levels: the rules resolve them
    A = Diagonal(torch.from_numpy(spectrum))
    hits = 0
    for seed in range(200):
        found = mass(slq(A, probes=3, steps=4, seed=seed), -1.0, 0.5)
        assert found.resolution == 0
        hits += bool(found.lower <= 0.4 <= found.upper)
    assert 0.90 <= hits / 200 <= 0.98


def test_the_border_of_a_gap_is_within_the_band() -> None:
    # Few steps: the rules know the bulk as a few nodes, and next to the gap half a node is missing.
    spectrum = np.concatenate([7.2 * 0.8 ** np.arange(20), np.linspace(0, 0.01, 280)])
    A = Diagonal(torch.from_numpy(spectrum))
    found = [mass(slq(A, probes=4, steps=10, seed=seed), 0.02, 10.0) for seed in range(40)]
    assert sum(bool(one.lower <= share(spectrum, 0.02, 10) <= one.upper) for one in found) >= 36


@pytest.mark.parametrize("name", MODELS)
def test_the_certain_bound_holds_for_the_measure_of_the_probe(name: str) -> None:
    spectrum, _ = MODELS[name]
    A, points = Diagonal(torch.from_numpy(spectrum)), np.linspace(spectrum.min(), spectrum.max(), 57) + 1e-4
    rule = slq(A, probes=1, steps=25, seed=3)
    v = torch.randn(300, generator=torch.Generator().manual_seed(3)).double().numpy()
    masses = np.array([(v**2)[spectrum <= point].sum() / (v**2).sum() for point in points])
    found = cumulative(rule, points)
    assert (np.abs(found.value - masses) <= found.resolution + 1e-4).all()  # converged nodes are so to 1e-2 of a gap
    assert (found.lower <= found.value).all()
    assert (found.value <= found.upper).all()
    assert (np.diff(found.value) >= -1e-12).all()


def test_the_law_of_one_vector_is_inverted() -> None:
    # 100 eigenvalues at 0 and at 1, half the mass each: K/N lies where Beta(K/2, (N − K)/2) puts 2.5 % beyond one half.
    rule = Quadrature(
        nodes=torch.tensor([[0.0, 1.0]]).double(),
        weights=torch.tensor([[0.5, 0.5]]).double(),
        size=200,
        products=2,
        converged=torch.tensor([[True, True]]),
    )
    found = mass(rule, -1.0, 0.5)
    reach = 1.96 * math.sqrt(2 * 0.25 / 202)
    assert float(found.value) == 0.5
    assert float(found.lower) == pytest.approx(0.5 - reach, abs=0.003)
    assert float(found.upper) == pytest.approx(0.5 + reach, abs=0.003)
    everywhere = mass(rule, -math.inf, math.inf)
    assert float(everywhere.lower) == float(everywhere.upper) == 1


def test_known_eigenvalues_are_counted_exactly_and_ends_mean_what_they_say() -> None:
    spectrum = np.array([-2.0, -1.0, 0.0, 1.0, 2.0, 2.0])
    rule = decompose(with_spectrum(spectrum), k=1, steps=6).quadrature
    assert rule is not None
    assert rule.unknown == 0
    for lower, upper in ((-math.inf, -0.5), (0.5, math.inf), (-1.5, 1.5)):
        found = mass(rule, lower, upper)
        assert float(found.value) == float(found.lower) == float(found.upper) == share(spectrum, lower, upper)
    integers = Quadrature(
        nodes=torch.zeros(1, 0).double(),
        weights=torch.zeros(1, 0).double(),
        size=3,
        products=0,
        known=torch.tensor([1.0, 2.0, 3.0]).double(),
    )
    assert float(mass(integers, 1.0, 3.0).value) == pytest.approx(2 / 3)
    np.testing.assert_allclose(cumulative(integers, np.array([1.0, 2.0, 3.0])).value, [1 / 3, 2 / 3, 1])


def test_a_null_space_has_no_negative_mass() -> None:
    spectrum = np.concatenate([np.linspace(1, 2, 100), np.zeros(200)])
    for seed in range(5):
        rule = decompose(with_spectrum(spectrum), k=1, steps=60, seed=seed).quadrature
        assert rule is not None
        found = mass(rule, -math.inf, -1e-6)
        assert float(found.value) == float(found.upper) == 0
        zero = mass(rule, -1e-6, 1e-6)
        assert float(zero.lower) < 2 / 3 < float(zero.upper)
        assert float(zero.upper - zero.lower) < 0.2


def test_nonsense_is_refused_with_the_scene() -> None:
    rule = slq(with_spectrum([1.0, 2.0]), probes=1, steps=1)
    with pytest.raises(OperatorError, match=r"lower ≤ upper, found 2.0 and 1.0"):
        mass(rule, 2.0, 1.0)
    with pytest.raises(OperatorError, match=r"coverage between 0 and 1, for example 0.95; found 95"):
        mass(rule, 0.0, 1.0, level=95.0)
