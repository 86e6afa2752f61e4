from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from linalg.matrices import SPECTRA, Counted, vector, with_spectrum
from theodolite.errors import NotConvergedWarning, OperatorError
from theodolite.linalg import (
    Dense,
    Diagonal,
    Inverse,
    LinearOperator,
    SpectralPreconditioner,
    cg,
    deflating,
    lanczos,
    nystrom,
)

# The Hessian of a trained network: a dozen outliers over a bulk near zero.
SPECTRUM = np.concatenate([7.2 * 0.7 ** np.arange(12), 0.02 * np.random.default_rng(0).exponential(size=288)])


def lissa(A: LinearOperator, b: Tensor, *, scale: float, tol: float) -> int:
    """Products of x ← b + (I − A/c)x until the residual is small: the reference that influence functions are known for."""
    x, products = torch.zeros_like(b), 0
    while True:
        residual = b - A @ x
        products += 1
        if float(residual.norm() / b.norm()) <= tol:
            return products
        x = x + residual / scale


@pytest.mark.parametrize("damping", [0.01, 0.1])
def test_an_inverse_product_takes_a_thirtieth_of_the_products_of_lissa(damping: float) -> None:
    A, b = Diagonal(torch.from_numpy(SPECTRUM)), vector(300)
    reference = lissa(A.shift(damping), b, scale=7.2 + damping, tol=1e-3)
    pairs = lanczos(A, k=10)
    known, sketched = deflating(pairs, damping=damping), nystrom(A, rank=30, damping=damping)
    products = {}
    for name, preconditioner in {"plain": None, "deflated": known, "nystrom": sketched}.items():
        inverse = Inverse(A, damping=damping, tol=1e-3, preconditioner=preconditioner)
        x = inverse @ b
        assert float((b - A.shift(damping) @ x).norm() / b.norm()) <= 1e-3
        products[name] = inverse.products
    assert products["plain"] <= reference / (100 if damping == 0.01 else 25)
    assert products["deflated"] <= min(products["plain"] / 1.8, reference / 30)
    assert products["nystrom"] <= min(products["plain"] / 1.8, reference / 30)


@pytest.mark.parametrize("solver", ["cg", "minres"])
def test_it_is_the_inverse_and_composes(solver: str) -> None:
    spectrum = SPECTRUM if solver == "cg" else SPECTRA["indefinite"] * 1.01
    A = with_spectrum(spectrum)
    n = A.shape[0]
    inverse = Inverse(A, damping=0.05, tol=1e-11, solver=solver, max_products=10**5)
    exact = torch.linalg.inv(A.matrix + 0.05 * torch.eye(n).double())
    V = vector(n, columns=3)
    torch.testing.assert_close(inverse @ V, exact @ V, atol=1e-6, rtol=0)
    both = inverse @ A.shift(0.05)
    torch.testing.assert_close(both @ V, V, atol=1e-6, rtol=0)
    assert inverse.symmetric
    assert repr(inverse).startswith("<(Dense + 0.05·Identity)⁻¹: ")


def test_eigenvalues_of_the_inverse_are_those_next_to_zero() -> None:
    A = with_spectrum(SPECTRA["indefinite"] + 0.01)
    inside = lanczos(Inverse(A, tol=1e-9, solver="minres"), k=2, which="magnitude", tol=1e-6)
    exact = sorted(SPECTRA["indefinite"] + 0.01, key=abs)[:2]
    np.testing.assert_allclose(np.sort(1 / inside.values.numpy()), np.sort(exact), rtol=1e-6)


def test_products_are_counted_and_shortfalls_are_said() -> None:
    A = Counted(with_spectrum(SPECTRUM))
    inverse = Inverse(A, damping=1e-6, tol=1e-8, max_products=20)
    with pytest.warns(NotConvergedWarning, match=r"did not reach a residual of 1e-08: not converged .* Raise max_prod"):
        inverse @ vector(300)
    assert inverse.products == A.products == 20
    assert inverse.last is not None
    assert not inverse.last.converged


def test_known_pairs_become_one_eigenvalue() -> None:
    A = with_spectrum(SPECTRUM)
    pairs = lanczos(A, k=5, tol=1e-10)
    M = deflating(pairs, damping=0.1)
    root = torch.linalg.cholesky(M.dense())
    values = torch.linalg.eigvalsh(root.T @ (A.matrix + 0.1 * torch.eye(300).double()) @ root)
    expected = np.sort(np.concatenate([SPECTRUM[5:] + 0.1, [float(pairs.values[4]) + 0.1] * 5]))
    np.testing.assert_allclose(values, expected, rtol=1e-8)


def test_the_rest_is_left_to_another_preconditioner() -> None:
    scales = torch.logspace(0, 3, 300, dtype=torch.float64)
    Q = with_spectrum(SPECTRUM).matrix
    A = Dense(scales.diag() + 5000 * Q, symmetric=True)
    jacobi = Diagonal(1 / scales)
    pairs = lanczos(A, k=10, tol=1e-4)
    b = vector(300)
    alone = cg(A, b, tol=1e-8, preconditioner=jacobi)
    both = cg(A, b, tol=1e-8, preconditioner=deflating(pairs, rest=jacobi))
    assert both.converged
    torch.testing.assert_close(both.x, torch.linalg.solve(A.matrix, b), rtol=1e-4, atol=1e-6)
    assert both.products < alone.products


def test_nystrom_is_exact_on_a_low_rank() -> None:
    for dtype in (torch.float64, torch.float32):
        A = with_spectrum(SPECTRA["low rank"], dtype=dtype)
        M = nystrom(A, rank=8, damping=0.5)
        np.testing.assert_allclose(M.values, [3.5, 2.5, 1.5], rtol=1e-5)
        solution = cg(A.shift(0.5), vector(100, dtype=dtype), tol=1e-5, preconditioner=M)
        assert solution.products <= 5
        assert solution.converged


def test_nonsense_is_refused_with_the_scene() -> None:
    A = with_spectrum([1.0, 2.0])
    with pytest.raises(OperatorError, match="Only a symmetric operator is inverted here"):
        Inverse(Dense(vector(3, columns=3)))
    with pytest.raises(OperatorError, match=r"converged pair with λ \+ δ > 0, found λ=\["):
        deflating(lanczos(with_spectrum([-1.0, -2.0]), k=1))
    with pytest.raises(OperatorError, match=r"positive eigenvalue for each vector .*values \[-1"):
        SpectralPreconditioner(torch.tensor([-1.0]).double(), torch.eye(1).double(), to=1.0)
    with pytest.raises(OperatorError, match=r"a damping δ > 0, found <Dense"):
        nystrom(A, rank=1, damping=0.0)
