from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from scipy.special import stdtrit

from linalg.matrices import SPECTRA, Counted, vector, with_spectrum
from theodolite.errors import OperatorError
from theodolite.linalg import Dense, Diagonal, DiagonalEstimate, diagonal, hutchinson, lanczos, xdiag
from theodolite.linalg.probes import Probes

RANDOM = np.random.default_rng(0)
OUTLIERS = np.concatenate([7.2 * 0.8 ** np.arange(20), 0.01 * RANDOM.exponential(size=180)])
FLAT = np.concatenate([6.6 * np.arange(1, 31) ** -0.8, 0.5 * RANDOM.normal(size=170)])


def covered(found: DiagonalEstimate, exact: torch.Tensor) -> float:
    assert found.degrees is not None
    reach = float(stdtrit(found.degrees, 0.975)) * found.stderr
    return float(((found.value - exact).abs() <= reach).double().mean())


@pytest.mark.parametrize("spectrum", [OUTLIERS, FLAT], ids=["outliers", "flat bulk"])
def test_intervals_cover_as_often_as_they_say(spectrum: np.ndarray) -> None:
    A = with_spectrum(spectrum)
    exact, pairs = A.matrix.diagonal(), lanczos(A, k=10)
    for deflate in (None, pairs):
        found = [diagonal(A, probes=12, seed=seed, deflate=deflate) for seed in range(20)]
        assert 0.93 <= np.mean([covered(one, exact) for one in found]) <= 0.97
    for products in (6, 12, 24, 96):
        found = [xdiag(A, products=products, seed=seed) for seed in range(20)]
        # Above 0.98 with 12 and 24 products on outliers alone, where the jackknife overstates most.
        assert 0.94 <= np.mean([covered(one, exact) for one in found]) <= (0.995 if spectrum is OUTLIERS else 0.985)


def test_errors_fall_as_the_estimators_promise() -> None:
    A = with_spectrum(OUTLIERS)
    exact, pairs = A.matrix.diagonal(), lanczos(A, k=10)

    def error(found: DiagonalEstimate) -> float:
        return float((found.value - exact).norm() / exact.norm())

    plain = error(diagonal(A, probes=96))
    assert error(diagonal(A, probes=96, deflate=pairs)) < plain / 6
    assert error(xdiag(A, products=96)) < plain / 20


def test_deflation_is_unbiased_with_pairs_that_have_not_converged() -> None:
    A = with_spectrum(FLAT)
    pairs = lanczos(A, k=8, max_products=12)
    assert not pairs.converged.all()
    exact, parts = A.matrix.diagonal(), [slice(0, 50), slice(50, 200)]
    found = diagonal(A, probes=4000, deflate=pairs)
    assert float(((found.value - exact) / found.stderr).abs().max()) < 5
    trace = hutchinson(A, probes=4000, deflate=pairs, parts=parts)
    assert abs(trace.value - FLAT.sum()) < 4 * trace.stderr
    for part, value, stderr in zip(parts, trace.parts, trace.part_stderrs, strict=True):
        assert abs(float(value - exact[part].sum())) < 4 * float(stderr)
    assert float(trace.parts.sum()) == pytest.approx(trace.value)
    assert trace.stderr < hutchinson(A, probes=4000).stderr / 1.3


@pytest.mark.parametrize("name", ["low rank", "zero", "identity"])
def test_everything_known_is_exact(name: str) -> None:
    A = with_spectrum(SPECTRA[name])
    pairs = lanczos(A, k=3 if name == "low rank" else A.shape[0], tol=1e-10)
    exact = A.matrix.diagonal()
    found = diagonal(A, probes=2, deflate=pairs)
    torch.testing.assert_close(found.value, exact, atol=1e-9, rtol=0)
    assert float(found.stderr.max()) < 1e-9
    assert hutchinson(A, probes=2, deflate=pairs).value == pytest.approx(float(exact.sum()), abs=1e-9)
    if name != "identity":
        torch.testing.assert_close(xdiag(A, products=16).value, exact, atol=1e-8, rtol=0)


def test_a_bulk_below_rounding_of_the_largest_is_counted() -> None:
    n, largest = 400, 2e6
    u = torch.nn.functional.normalize(vector(n), dim=0)
    dense = torch.eye(n, dtype=torch.float64) + largest * u[:, None] * u
    A, exact = Dense(dense.float(), symmetric=True), dense.diagonal()
    found = xdiag(A, products=24)
    assert found.products == 24
    assert found.degrees is not None
    assert float((found.value - exact).abs().median()) < 0.3
    reach = float(stdtrit(found.degrees, 0.975)) * found.stderr + 1e-6 * exact
    assert float(((found.value - exact).abs() <= reach).double().mean()) > 0.9


def test_samples_are_those_of_the_definition() -> None:
    A, s = with_spectrum(FLAT), 4
    found = xdiag(A, products=2 * s, seed=3)
    Omega = Probes(A, seed=3).draw(s).sign().T

    def samples(vectors: list[int]) -> torch.Tensor:
        stack = []
        for i in vectors:
            Q = torch.linalg.qr((A.matrix @ Omega)[:, [j for j in vectors if j != i]]).Q
            w, y = Omega[:, i], A.matrix @ Omega[:, i]
            stack.append((Q * (A.matrix @ Q)).sum(dim=1) + w * (y - Q @ (Q.T @ y)))
        return torch.stack(stack)

    everything = list(range(s))
    torch.testing.assert_close(found.value, samples(everything).mean(dim=0))
    deleted = torch.stack([samples([i for i in everything if i != j]).mean(dim=0) for j in everything])
    jackknife = ((s - 1) * deleted.var(dim=0, correction=0)).sqrt()
    spread = samples(everything).std(dim=0) / math.sqrt(s)
    torch.testing.assert_close(found.stderr, (spread * jackknife).sqrt())


def test_strips_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    A = with_spectrum(FLAT)
    whole = xdiag(A, products=10)
    monkeypatch.setattr(sys.modules[xdiag.__module__], "STRIP", 7)
    strips = xdiag(A, products=10)
    torch.testing.assert_close(strips.value, whole.value)
    torch.testing.assert_close(strips.stderr, whole.stderr)


def test_memory_changes_the_blocks_and_not_the_estimate() -> None:
    A = Counted(with_spectrum(FLAT))
    free = diagonal(A, probes=7)
    A.blocks.clear()
    capped = diagonal(A, probes=7, memory=3 * 4 * 200 * 8)
    assert A.blocks == [3, 3, 1]
    assert free.products == capped.products == 7
    torch.testing.assert_close(free.value, capped.value)
    torch.testing.assert_close(free.stderr, capped.stderr)


def test_a_diagonal_takes_one_probe_and_its_error_is_not_known() -> None:
    found = diagonal(Diagonal(vector(9)), probes=1)
    torch.testing.assert_close(found.value, vector(9))
    assert found.stderr.isnan().all()
    assert found.degrees is None


def test_nonsense_is_refused_with_the_scene() -> None:
    A = with_spectrum(FLAT)
    with pytest.raises(OperatorError, match="at least one probe, found probes=0"):
        diagonal(A, probes=0)
    for estimator in (lambda B: diagonal(B, probes=1), lambda B: xdiag(B, products=4)):
        with pytest.raises(OperatorError, match=r"symmetric operators?, <Dense"):
            estimator(Dense(vector(6, columns=6)))
    with pytest.raises(OperatorError, match="eigenpairs of its own size, found 200"):
        diagonal(with_spectrum([1.0, 2.0]), probes=1, deflate=lanczos(A, k=1))
