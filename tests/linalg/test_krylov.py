from __future__ import annotations

import numpy as np
import pytest
import torch

from linalg.matrices import SPECTRA, Explodes, vector, with_spectrum
from theodolite.errors import NonFiniteError
from theodolite.linalg import LinearOperator
from theodolite.linalg.basis import Basis, orthonormal_rows
from theodolite.linalg.krylov import Krylov
from theodolite.linalg.probes import Probes


def krylov(A: LinearOperator, *, steps: int, seed: int = 0) -> Krylov:
    probes = Probes(A, seed=seed)
    run = Krylov(A, start=probes.draw(1)[0], draw=lambda: probes.draw(1)[0], capacity=A.shape[0])
    for _ in range(steps):
        run.advance()
    return run


def assert_decomposes(run: Krylov, A: LinearOperator, *, tolerance: float) -> None:
    """A Qᵀ = Qᵀ T + r eⱼᵀ and Q Qᵀ = I; after a restart every row has its share of r."""
    Q = run.basis.rows().double()
    T = torch.from_numpy(run.T)
    shares = torch.from_numpy(run._coupling)
    unit = torch.zeros(A.shape[0], dtype=torch.float64) if run._next is None else run._next.double()
    error = A.dense().double() @ Q.T - Q.T @ T - torch.outer(unit, shares)
    scale = max(float(torch.linalg.matrix_norm(T, 2)), 1e-300)
    assert float(error.norm(dim=0).max()) <= tolerance * scale
    torch.testing.assert_close(Q @ Q.T, torch.eye(len(Q), dtype=torch.float64), atol=tolerance, rtol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.parametrize("name", SPECTRA)
def test_the_decomposition_holds(name: str, dtype: torch.dtype, tolerance: float) -> None:
    A = with_spectrum(SPECTRA[name], dtype=dtype)
    run = krylov(A, steps=min(50, A.shape[0]))
    assert_decomposes(run, A, tolerance=tolerance)
    assert run.products == len(run) == min(50, A.shape[0])


def test_the_projected_matrix_is_tridiagonal_and_the_residual_is_r() -> None:
    A = with_spectrum(SPECTRA["geometric"])
    run = krylov(A, steps=20)
    assert np.array_equal(run.T, np.tril(np.triu(run.T, -1), 1))
    last = run.basis[-1]
    expected = A @ last - run.basis.rows().T @ torch.from_numpy(run.T[:, -1])
    torch.testing.assert_close(run._coupling[-1] * run._next, expected, atol=1e-13, rtol=0)


def test_a_restart_keeps_the_decomposition_and_the_pairs() -> None:
    A = with_spectrum(SPECTRA["outliers over a bulk"])
    run = krylov(A, steps=40)
    before = run.ritz()
    kept = np.arange(25, 40)
    run.restart(kept)
    assert len(run) == 15
    assert_decomposes(run, A, tolerance=1e-12)
    np.testing.assert_allclose(run.ritz().values, before.values[kept], atol=1e-12)
    np.testing.assert_allclose(run.ritz().bounds, before.bounds[kept], atol=1e-10)
    for _ in range(20):
        run.advance()
    assert_decomposes(run, A, tolerance=1e-12)


def test_bounds_are_the_residuals() -> None:
    A = with_spectrum(SPECTRA["indefinite"])
    run = krylov(A, steps=30)
    ritz = run.ritz()
    Y = run.basis.combine(ritz.coordinates).T
    true = torch.linalg.vector_norm(A @ Y - Y * torch.from_numpy(ritz.values), dim=0)
    np.testing.assert_allclose(true, ritz.bounds, rtol=1e-6, atol=1e-13)


def test_dropped_residuals_stay_in_the_bounds() -> None:
    A = with_spectrum(SPECTRA["indefinite"])
    run = krylov(A, steps=12)
    run.drop_residual()
    for _ in range(9):
        run.advance()
    assert_bounded(run, A)
    run.restart(np.arange(5, 15))
    assert_bounded(run, A)
    run.advance()
    run.advance()
    assert_bounded(run, A)


def assert_bounded(run: Krylov, A: LinearOperator) -> None:
    ritz = run.ritz()
    Q = run.basis.rows()
    np.testing.assert_allclose(run.T, Q @ (A @ Q.T), atol=1e-12)
    Y = run.basis.combine(ritz.coordinates).T
    true = torch.linalg.vector_norm(A @ Y - Y * torch.from_numpy(ritz.values), dim=0).numpy()
    assert (true <= ritz.bounds + 1e-12).all()


def test_an_invariant_space_is_left_for_a_fresh_vector() -> None:
    A = with_spectrum(SPECTRA["low rank"])
    run = krylov(A, steps=4)
    assert run.invariant
    run.advance()
    assert run.blocks == 2
    assert_decomposes(run, A, tolerance=1e-12)


@pytest.mark.parametrize("outlier", [1e2, 1e4])
def test_no_ghost_copies_in_single_precision(outlier: float) -> None:
    spectrum = np.concatenate([outlier * 0.5 ** np.arange(6), np.random.default_rng(0).uniform(-1, 1, 294)])
    A = with_spectrum(spectrum, dtype=torch.float32)
    run = krylov(A, steps=150)
    found = np.sort(run.ritz().values)[::-1]
    exact = np.linalg.eigvalsh(A.matrix.double().numpy())[::-1]
    np.testing.assert_allclose(found[:6], exact[:6], atol=2e-6 * outlier)
    # By interlacing the seventh Ritz value lies below the seventh eigenvalue; a ghost would lie on an outlier.
    assert found[6] <= exact[6] + 2e-6 * outlier
    Q = run.basis.rows().double()
    assert float((Q @ Q.T - torch.eye(150)).abs().max()) < 5e-6


def test_a_product_that_is_not_finite_is_named_by_its_number() -> None:
    with pytest.raises(NonFiniteError, match=r"Product 4 with <Explodes: 9×9.* has 1 of 9 entries NaN"):
        krylov(Explodes(9, at=4), steps=6)


def test_a_basis_in_several_chunks_projects_combines_and_compresses() -> None:
    n, j = 90, 75
    rows = torch.linalg.qr(vector(n, columns=j)).Q.T.contiguous()
    basis = Basis(n, capacity=j, dtype=torch.float64, device=torch.device("cpu"))
    for row in rows:
        basis.append(row)
    w = vector(n, seed=5)
    torch.testing.assert_close(basis.project(w), rows @ w)
    rest, coefficients = basis.orthogonalise(w)
    torch.testing.assert_close(rest + rows.T @ coefficients, w)
    assert float((rows @ rest).abs().max()) < 1e-14
    S = torch.linalg.qr(vector(j, columns=40, seed=6)).Q
    torch.testing.assert_close(basis.combine(S.numpy()), S.T @ rows)
    basis.compress(S.numpy())
    assert len(basis) == 40
    assert sum(len(chunk) for chunk in basis._chunks) == 64
    torch.testing.assert_close(basis.rows(), S.T @ rows)
    torch.testing.assert_close(basis[-1], (S.T @ rows)[-1])


def test_orthonormal_rows_drop_dependent_ones() -> None:
    V = vector(3, columns=20)
    V = torch.cat([V, 2 * V[:1] - V[1:2], torch.zeros(1, 20, dtype=V.dtype)])
    Q = orthonormal_rows(V)
    assert Q.shape == (3, 20)
    torch.testing.assert_close(Q @ Q.T, torch.eye(3, dtype=V.dtype), atol=1e-14, rtol=0)
    torch.testing.assert_close(V @ Q.T @ Q, V, atol=1e-13, rtol=0)
