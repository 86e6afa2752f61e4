from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from linalg.matrices import SPECTRA, Counted, Explodes, vector, with_spectrum
from theodolite.errors import NonFiniteError, OperatorError
from theodolite.linalg import Dense, Diagonal, LinearOperator, TraceEstimate, hutchinson, xnystrace, xtrace
from theodolite.linalg.probes import Probes

RANDOM = np.random.default_rng(0)
DECAYING = 1 / np.arange(1, 151) ** 1.5
MODELS = {
    "outliers": np.concatenate([7.2 * 0.8 ** np.arange(20), 0.01 * RANDOM.exponential(size=130)]),
    "flat bulk": np.concatenate([6.6 * np.arange(1, 31) ** -0.8, 0.5 * RANDOM.normal(size=120)]),
    "indefinite": np.linspace(-3, 3.5, 150),
}
Estimator = Callable[..., TraceEstimate]


@pytest.mark.parametrize("products", [12, pytest.param(24, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", MODELS)
def test_intervals_of_xtrace_cover_with_few_vectors(name: str, products: int) -> None:
    A, exact = with_spectrum(MODELS[name]), MODELS[name].sum()
    found = [xtrace(A, products=products, seed=seed) for seed in range(200)]
    assert 0.90 <= np.mean([one.interval()[0] <= exact <= one.interval()[1] for one in found]) <= 0.995
    # The plain error, the spread of the samples, is too small: that is why it is not what is stated.
    plain = np.mean([abs(one.value - exact) <= 2 * float(one.samples.std()) / math.sqrt(products / 2) for one in found])
    assert plain < 0.93
    bias = np.mean([one.value for one in found]) - exact
    assert abs(bias) < 4 * np.std([one.value for one in found]) / math.sqrt(200)


@pytest.mark.parametrize("products", [6, pytest.param(12, marks=pytest.mark.slow)])
def test_intervals_of_xnystrace_cover_with_few_vectors(products: int) -> None:
    for spectrum in (MODELS["outliers"], DECAYING):
        A, exact = with_spectrum(spectrum), spectrum.sum()
        found = [xnystrace(A, products=products, seed=seed) for seed in range(200)]
        assert 0.90 <= np.mean([one.interval()[0] <= exact <= one.interval()[1] for one in found]) <= 0.995
        bias = np.mean([one.value for one in found]) - exact
        assert abs(bias) < 4 * np.std([one.value for one in found]) / math.sqrt(200)


def test_samples_are_those_of_the_definition() -> None:
    A, s, n = Dense(vector(30, columns=30)), 5, 30
    found = xtrace(A, products=2 * s, seed=3)
    Omega = Probes(A, seed=3).draw(s).T
    for i in range(s):
        Q = torch.linalg.qr((A.matrix @ Omega)[:, [j for j in range(s) if j != i]]).Q
        rest = Omega[:, i] - Q @ (Q.T @ Omega[:, i])
        rest = rest * math.sqrt(n - s + 1) / rest.norm()
        assert float(found.samples[i]) == pytest.approx(float((Q.T @ A.matrix @ Q).trace() + rest @ A.matrix @ rest))
    assert found.value == pytest.approx(float(found.samples.mean()))


def test_samples_of_xnystrace_are_those_of_the_definition() -> None:
    A, s, n = with_spectrum(DECAYING), 6, 150
    found = xnystrace(A, products=s, seed=3)
    Omega = Probes(A, seed=3).draw(s).T
    for i in range(s):
        others = Omega[:, [j for j in range(s) if j != i]]
        Y = A.matrix @ others
        rest = A.matrix - Y @ torch.linalg.solve(others.T @ Y, Y.T)
        w = Omega[:, i] - others @ torch.linalg.lstsq(others, Omega[:, [i]]).solution[:, 0]
        w = w * math.sqrt(n - s + 1) / w.norm()
        expected = float((A.matrix - rest).trace() + w @ rest @ w)
        assert float(found.samples[i]) == pytest.approx(expected, rel=1e-8)


def test_they_beat_hutchinson_where_eigenvalues_decay() -> None:
    A = with_spectrum(DECAYING)

    def error(run: Callable[[int], TraceEstimate]) -> float:
        return math.sqrt(np.mean([(run(seed).value - DECAYING.sum()) ** 2 for seed in range(30)]))

    by_hutchinson = error(lambda seed: hutchinson(A, probes=48, seed=seed))
    by_xtrace = error(lambda seed: xtrace(A, products=48, seed=seed))
    by_nystrom = error(lambda seed: xnystrace(A, products=48, seed=seed))
    assert by_nystrom < by_xtrace < by_hutchinson / 10


@pytest.mark.parametrize("estimator", [xtrace, xnystrace])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_low_ranks_are_exact_and_zero_is_zero(estimator: Estimator, dtype: torch.dtype) -> None:
    tolerance = 1e-8 if dtype == torch.float64 else 2e-3
    assert estimator(with_spectrum(SPECTRA["low rank"], dtype=dtype), products=16).value == pytest.approx(
        6, abs=tolerance
    )
    assert estimator(with_spectrum(SPECTRA["zero"], dtype=dtype), products=8).value == 0


@pytest.mark.parametrize(("estimator", "largest"), [(xtrace, 2e6), (xnystrace, 1e8)])
def test_a_bulk_below_rounding_of_the_largest_is_counted(estimator: Estimator, largest: float) -> None:
    n = 4000
    A, exact = Diagonal(torch.cat([torch.tensor([largest]), torch.ones(n - 1)])), largest + n - 1
    for seed in range(3):
        found = estimator(A, products=40, seed=seed)
        assert found.products == 40
        assert 0 < found.stderr < n
        low, high = found.interval()
        rounding = 4e-7 * largest
        assert low - rounding <= exact <= high + rounding


@pytest.mark.parametrize("estimator", [xtrace, xnystrace])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_say_how_little_they_know(estimator: Estimator, dtype: torch.dtype) -> None:
    spectrum = np.concatenate([[20.0], np.full(299, 0.25)])
    A = Diagonal(torch.from_numpy(spectrum).to(dtype))
    for seed in range(3):
        found = estimator(A, products=24, seed=seed)
        assert found.stderr > 0
        assert abs(found.value - spectrum.sum()) < 4 * found.stderr + 4 * torch.finfo(dtype).eps * spectrum.sum()


@pytest.mark.parametrize("products", [4, 5, 6])
def test_the_smallest_budgets_leave_an_error_for_dependent_sketches(products: int) -> None:
    A = Counted(with_spectrum([3.0] + [0.0] * 19))
    found = [xtrace(A, products=products, seed=seed) for seed in range(200)]
    assert A.products == 200 * (products // 2) * 2
    # Two probes of a single direction are chi squares: skewed, so that Student's intervals miss some.
    assert np.mean([one.interval()[0] - 1e-9 <= 3 <= one.interval()[1] + 1e-9 for one in found]) > 0.8
    values = [one.value for one in found]
    assert abs(np.mean(values) - 3) < 4 * np.std(values) / math.sqrt(200) + 1e-9


@pytest.mark.parametrize("estimator", [xtrace, xnystrace])
def test_products_are_counted_and_seeds_decide(estimator: Estimator) -> None:
    A = Counted(with_spectrum(DECAYING))
    found = estimator(A, products=16, seed=1)
    assert found.products == A.products == 16
    assert estimator(A, products=16, seed=1).value == found.value != estimator(A, products=16, seed=2).value
    single = estimator(with_spectrum(DECAYING, dtype=torch.float32), products=16, seed=1)
    assert single.value == pytest.approx(found.value, rel=1e-4)


def test_nonsense_is_refused_with_the_scene() -> None:
    A: LinearOperator = with_spectrum(SPECTRA["indefinite"])
    with pytest.raises(OperatorError, match=r"positive semidefinite operator, <Dense.* has negative curvature"):
        xnystrace(A, products=20)
    with pytest.raises(OperatorError, match=r"needs a symmetric positive operator"):
        xnystrace(Dense(vector(4, columns=4)), products=4)
    with pytest.raises(OperatorError, match=r"Only a square operator"):
        xtrace(Dense(vector(4, columns=3)), products=4)
    with pytest.raises(OperatorError, match=r"takes 4 products or more .*, found products=3"):
        xtrace(A, products=3)
    with pytest.raises(OperatorError, match=r"no more vectors than 80, .*dense\(\) is exact"):
        xtrace(A, products=162)
    with pytest.raises(OperatorError, match=r"sketch of 8 vectors .* takes 20 KiB, found memory=1e"):
        xtrace(A, products=16, memory=1000)
    with pytest.raises(NonFiniteError, match=r"Product 4 with <Explodes"):
        xtrace(Explodes(9, at=4), products=8)
