from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import t as student

from linalg.matrices import SPECTRA, Counted, Explodes, vector, with_spectrum
from theodolite.errors import NonFiniteError, OperatorError
from theodolite.linalg import Dense, Diagonal, hutchinson, hutchpp
from theodolite.linalg.probes import Probes

DECAYING = 1.0 / np.arange(1, 201) ** 1.5


def covered(estimates: list[tuple[float, float]], exact: float, *, samples: int) -> float:
    """Share of 95 % intervals (Student's, for the few samples there are) that hold the exact value."""
    reach = student.ppf(0.975, samples - 1)
    return float(np.mean([abs(value - exact) <= reach * stderr for value, stderr in estimates]))


def test_hutchinson_is_exact_on_a_diagonal_with_one_probe() -> None:
    A = Diagonal(vector(40))
    estimate = hutchinson(A, probes=1, seed=9)
    assert estimate.value == pytest.approx(float(A.entries.sum()), abs=1e-13)
    assert math.isnan(estimate.stderr)
    assert estimate.products == 1


def test_samples_are_the_quadratic_forms_of_the_probes() -> None:
    A = Counted(Dense(vector(30, columns=30)))
    V = Probes(A, seed=4, distribution="rademacher").draw(7).T
    parts = [slice(0, 10), slice(10, 30)]
    forms = V * (A.operator.dense() @ V)
    for memory in (2**30, 3 * 4 * 30 * 8):
        A.blocks.clear()
        estimate = hutchinson(A, probes=7, seed=4, parts=parts, memory=memory)
        assert A.blocks == ([7] if memory == 2**30 else [3, 3, 1])
        np.testing.assert_allclose(estimate.samples, forms.sum(dim=0), atol=1e-12)
        assert estimate.value == pytest.approx(float(estimate.samples.mean()))
        assert estimate.stderr == pytest.approx(float(estimate.samples.std() / math.sqrt(7)))
        for part, value, stderr in zip(parts, estimate.parts, estimate.part_stderrs, strict=True):
            of_part = forms[part].sum(dim=0)
            assert float(value) == pytest.approx(float(of_part.mean()))
            assert float(stderr) == pytest.approx(float(of_part.std() / math.sqrt(7)))
        assert float(estimate.parts.sum()) == pytest.approx(estimate.value)


def test_the_variance_is_the_known_one() -> None:
    A = with_spectrum(SPECTRA["indefinite"])
    expected = 2 * float((A.matrix**2).sum() - (A.matrix.diagonal() ** 2).sum())
    variance = float(hutchinson(A, probes=4000).samples.var())
    assert variance == pytest.approx(expected, rel=4 * math.sqrt(2 / 4000) * 1.5)


@pytest.mark.parametrize("name", ["indefinite", "geometric"])
def test_intervals_of_hutchinson_cover_as_often_as_they_say(name: str) -> None:
    A = with_spectrum(SPECTRA[name])
    estimates = [hutchinson(A, probes=12, seed=seed, parts=[slice(0, 20)]) for seed in range(200)]
    whole = [(estimate.value, estimate.stderr) for estimate in estimates]
    part = [(float(estimate.parts[0]), float(estimate.part_stderrs[0])) for estimate in estimates]
    assert 0.90 <= covered(whole, float(SPECTRA[name].sum()), samples=12) <= 0.98
    assert 0.90 <= covered(part, float(A.matrix.diagonal()[:20].sum()), samples=12) <= 0.98


def test_intervals_of_hutchpp_cover_as_often_as_they_say() -> None:
    A = with_spectrum(DECAYING)
    estimates = [hutchpp(A, products=36, seed=seed) for seed in range(200)]
    assert 0.90 <= covered([(e.value, e.stderr) for e in estimates], DECAYING.sum(), samples=12) <= 0.98
    bias = np.mean([e.value for e in estimates]) - DECAYING.sum()
    assert abs(bias) < 4 * np.std([e.value for e in estimates]) / math.sqrt(200)


def test_the_error_of_hutchpp_falls_faster() -> None:
    A = with_spectrum(DECAYING)

    def error(estimator: str, products: int) -> float:
        run = {"hutch++": lambda s: hutchpp(A, products=products, seed=s)}.get(
            estimator, lambda s: hutchinson(A, probes=products, seed=s)
        )
        return math.sqrt(np.mean([(run(seed).value - DECAYING.sum()) ** 2 for seed in range(30)]))

    # Eightfold products divide Hutchinson's error by √8 ≈ 2.8, and that of Hutch++ by 8 or more.
    assert 2 < error("hutchinson", 12) / error("hutchinson", 96) < 4.2
    assert error("hutch++", 12) / error("hutch++", 96) > 8
    assert error("hutch++", 96) < error("hutchinson", 96) / 10


@pytest.mark.parametrize("name", ["low rank", "zero", "one", "identity"])
def test_hutchpp_is_exact_when_the_sketch_holds_the_range(name: str) -> None:
    A = Counted(with_spectrum(SPECTRA[name]))
    estimate = hutchpp(A, products=3 * len(SPECTRA[name]))
    assert estimate.value == pytest.approx(float(SPECTRA[name].sum()), abs=1e-10)
    assert estimate.stderr == pytest.approx(0, abs=1e-10)
    assert estimate.products == A.products <= 3 * len(SPECTRA[name])


def test_products_of_hutchpp_are_those_asked_for_and_memory_does_not_change_it() -> None:
    A = Counted(with_spectrum(DECAYING))
    free = hutchpp(A, products=20, seed=3)
    assert A.blocks == [6, 6, 8]
    A.blocks.clear()
    capped = hutchpp(A, products=20, seed=3, memory=5 * 4 * 200 * 8)
    assert A.blocks == [5, 1, 5, 1, 5, 3]
    assert capped.value == pytest.approx(free.value, rel=1e-12)
    assert free.products == capped.products == A.products == 20
    assert free.value == pytest.approx(float(free.samples.mean()))
    assert math.isnan(hutchpp(A, products=3).stderr)


def test_unsymmetric_operators_have_traces() -> None:
    A = Dense(vector(30, columns=30))
    exact = float(A.matrix.trace())
    for estimate in (hutchinson(A, probes=500), hutchpp(A, products=60)):
        assert abs(estimate.value - exact) < 4 * estimate.stderr


def test_single_precision() -> None:
    A = with_spectrum(DECAYING, dtype=torch.float32)
    double = with_spectrum(DECAYING)
    assert hutchinson(A, probes=5).value == pytest.approx(hutchinson(double, probes=5).value, rel=1e-5)
    assert hutchpp(A, products=30).value == pytest.approx(hutchpp(double, products=30).value, rel=1e-5)


def test_nonsense_is_refused_with_the_scene() -> None:
    A = with_spectrum([1.0, 2.0])
    with pytest.raises(OperatorError, match="Only a square operator has a trace, found <Dense: 2×3"):
        hutchinson(Dense(vector(2, columns=3)), probes=1)
    with pytest.raises(OperatorError, match="at least one probe, found probes=0"):
        hutchinson(A, probes=0)
    with pytest.raises(OperatorError, match=r"at least 3 products .*, found 2"):
        hutchpp(A, products=2)
    with pytest.raises(NonFiniteError, match="Product 8 with <Explodes"):
        hutchpp(Explodes(9, at=8), products=12, memory=4 * 9 * 8)
    with pytest.raises(NonFiniteError, match="Product 3 with <Explodes"):
        hutchinson(Explodes(9, at=3), probes=4, memory=4 * 9 * 8)
