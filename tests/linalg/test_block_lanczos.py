from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from linalg.matrices import SPECTRA, Counted, Explodes, vector, with_spectrum
from theodolite.errors import NonFiniteError, OperatorError
from theodolite.linalg import Eigenpairs, LinearOperator, block_lanczos, lanczos
from theodolite.linalg.probes import Probes

HESSIAN_LIKE = {
    "outliers": np.concatenate([7.2 * 0.7 ** np.arange(12), 0.01 * np.random.default_rng(0).exponential(size=288)]),
    "flat": np.concatenate([6.6 * np.arange(1, 31) ** -0.8, 0.5 * np.random.default_rng(0).normal(size=270)]),
}


def true_residuals(A: LinearOperator, found: Eigenpairs) -> np.ndarray:
    V, matrix = found.vectors.T.double(), A.dense().double()
    norms = torch.linalg.vector_norm(matrix @ V - V * found.values, dim=0)
    return (norms / torch.maximum(found.values.abs(), torch.tensor(1e-3 * found.radius)).clamp(min=1e-300)).numpy()


@pytest.mark.parametrize("which", ["largest", "both"])
@pytest.mark.parametrize("name", SPECTRA)
def test_eigenpairs_equal_those_of_single_vectors(name: str, which: str) -> None:
    A = with_spectrum(SPECTRA[name])
    n = A.shape[0]
    found = block_lanczos(A, k=min(7, n), block=min(3, n), which=which, tol=1e-9)
    exact = lanczos(A, k=min(7, n), which=which, tol=1e-9)
    assert found.converged.all()
    assert found.settled
    np.testing.assert_allclose(found.values, exact.values, atol=1e-10 * max(found.radius, 1))
    assert (true_residuals(A, found) <= 1e-9 + 1e-12).all()
    k = len(found.values)
    torch.testing.assert_close(found.vectors @ found.vectors.T, torch.eye(k).double(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", HESSIAN_LIKE)
def test_a_block_of_four_reads_the_data_half_as_often(name: str) -> None:
    A = with_spectrum(HESSIAN_LIKE[name])
    single = lanczos(A, k=10)
    counted = Counted(A)
    four = block_lanczos(counted, k=10, block=4)
    assert set(counted.blocks) == {4}
    assert len(counted.blocks) <= 0.5 * single.products
    assert four.products == counted.products <= 2.2 * single.products
    sixteen = block_lanczos(A, k=10, block=16)
    assert sixteen.products // 16 <= 0.3 * single.products
    np.testing.assert_allclose(four.values, np.sort(HESSIAN_LIKE[name])[::-1][:10], rtol=1e-3)


def test_repeated_eigenvalues_are_found_up_to_the_width() -> None:
    A = with_spectrum(np.concatenate([[5.0] * 4, [3.0] * 3, np.linspace(0, 1, 193)]))
    for seed in range(5):
        found = block_lanczos(A, k=7, block=4, seed=seed)
        np.testing.assert_allclose(found.values, [5] * 4 + [3] * 3, rtol=1e-5)


@pytest.mark.parametrize("rows", [16, 24])
def test_a_restart_under_a_memory_cap_finds_the_same_pairs(rows: int) -> None:
    A = with_spectrum(np.concatenate([3 * 0.8 ** np.arange(60), -2 * 0.8 ** np.arange(60)]))
    free = block_lanczos(A, k=3, block=3, tol=1e-8)
    capped = block_lanczos(A, k=3, block=3, tol=1e-8, memory=rows * 120 * 8, max_products=900)
    assert free.restarts == 0 < capped.restarts
    assert capped.converged.all()
    np.testing.assert_allclose(capped.values, free.values, atol=1e-9)
    assert (true_residuals(A, capped) <= 1e-8 + 1e-12).all()


def test_residuals_are_those_of_the_pairs() -> None:
    A = with_spectrum(SPECTRA["indefinite"])
    found = block_lanczos(A, k=6, block=4, tol=1e-3)
    np.testing.assert_allclose(found.residuals, true_residuals(A, found), rtol=1e-3, atol=1e-12)


def test_single_precision_has_no_ghosts_and_reaches_its_tolerance() -> None:
    spectrum = np.concatenate([1e4 * 0.9 ** np.arange(6), np.linspace(-1, 1, 194)])
    A = with_spectrum(spectrum, dtype=torch.float32)
    found = block_lanczos(A, k=8, block=4, tol=1e-3, max_products=120)
    np.testing.assert_allclose(found.values[:6], spectrum[:6], rtol=1e-4)
    assert float(found.values[6]) < 1.01
    assert (true_residuals(A, found)[found.converged.numpy()] <= 1.5e-3).all()


def test_a_warm_start_needs_fewer_passes() -> None:
    A = with_spectrum(HESSIAN_LIKE["flat"])
    before = block_lanczos(A, k=8, block=4)
    warm = block_lanczos(A, k=8, block=4, start=before.vectors)
    assert warm.products < 0.8 * before.products
    np.testing.assert_allclose(warm.values, before.values, rtol=1e-5)


def test_the_first_blocks_are_a_quadrature_rule() -> None:
    A = with_spectrum(SPECTRA["indefinite"])
    found = block_lanczos(A, k=3, block=3, tol=1e-6, seed=2)
    Q = torch.linalg.qr(Probes(A, seed=2).draw(3).T).Q
    for degree in range(6):
        moment = float((found.weights * found.nodes**degree).sum())
        power = torch.linalg.matrix_power(A.matrix, degree)
        assert moment == pytest.approx(float((Q.T @ power @ Q).trace()) / 3, abs=1e-10 * 4**degree)


def test_running_out_of_products_is_data_and_progress_is_reported() -> None:
    seen: list[tuple[int, float]] = []
    found = block_lanczos(
        with_spectrum(SPECTRA["indefinite"]),
        k=5,
        block=4,
        tol=1e-10,
        max_products=22,
        on_step=lambda *step: seen.append(step),
    )
    assert found.products == 20
    assert not found.settled
    assert not found.converged.any()
    assert [products for products, _ in seen] == [4, 8, 12, 16, 20]
    assert seen[0][1] == math.inf
    assert seen[-1][1] == pytest.approx(float(found.residuals.max()))


def test_the_same_seed_gives_the_same_pairs_bit_for_bit() -> None:
    A = with_spectrum(SPECTRA["indefinite"])
    one, two = (block_lanczos(A, k=3, block=3, seed=3) for _ in range(2))
    assert torch.equal(one.vectors, two.vectors)


def test_nonsense_is_refused_with_the_scene() -> None:
    A = with_spectrum(SPECTRA["indefinite"])
    with pytest.raises(OperatorError, match=r"width from 1 to 80 and at least 2 products, found block=0"):
        block_lanczos(A, k=2, block=0)
    with pytest.raises(OperatorError, match=r"at least 8 products, found block=8 and max_products=5"):
        block_lanczos(A, k=2, block=8, max_products=5)
    with pytest.raises(OperatorError, match="basis of at least 10 vectors of 640 bytes"):
        block_lanczos(A, k=2, block=4, memory=9 * 640)
    with pytest.raises(OperatorError, match=r"start has the shape \(80,\)"):
        block_lanczos(A, k=2, block=2, start=vector(79))
    with pytest.raises(NonFiniteError, match="Product 6 with <Explodes"):
        block_lanczos(Explodes(30, at=5), k=2, block=3)
