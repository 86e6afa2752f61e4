from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse.linalg
import torch

from linalg.matrices import SPECTRA, Counted, Explodes, rotation, vector, with_spectrum
from theodolite.errors import NonFiniteError, OperatorError
from theodolite.linalg import Dense, Diagonal, cg, deflating, lanczos, minres, nystrom

REGULAR = [name for name in SPECTRA if np.abs(SPECTRA[name]).min() > 1e-3]


@pytest.mark.parametrize("columns", [None, 1, 4])
@pytest.mark.parametrize("name", REGULAR)
def test_solutions_equal_dense_ones(name: str, columns: int | None) -> None:
    A = with_spectrum(SPECTRA[name])
    b = vector(A.shape[0], columns=columns)
    solution = minres(A, b, tol=1e-9, max_products=4000)
    condition = float(np.abs(SPECTRA[name]).max() / np.abs(SPECTRA[name]).min())
    torch.testing.assert_close(
        solution.x, torch.linalg.solve(A.matrix, b), atol=1e-9 * condition * float(b.norm()), rtol=0
    )
    assert solution.converged.all()
    true = (b - A.matrix @ solution.x).norm(dim=0) / b.norm(dim=0)
    torch.testing.assert_close(solution.residual, true, atol=1e-12, rtol=1e-6)
    assert (true <= 1e-9).all()
    assert solution.residual.shape == solution.converged.shape == b.shape[1:]
    assert bool(solution.negative_curvature.any()) or (SPECTRA[name] > 0).all()


def test_the_steps_are_those_of_scipy() -> None:
    A, b = with_spectrum(SPECTRA["indefinite"]), vector(80)
    for steps in (1, 2, 5, 20, 50):
        ours = minres(A, b, tol=1e-14, max_products=steps + 1)
        theirs, _ = scipy.sparse.linalg.minres(A.matrix.numpy(), b.numpy(), maxiter=steps, rtol=1e-30)
        np.testing.assert_allclose(ours.x, theirs, atol=1e-9)
        assert ours.products == steps + 1


def test_residuals_never_grow_and_are_the_least_of_the_krylov_space() -> None:
    A, b = with_spectrum(SPECTRA["indefinite"]), vector(80)
    solution = minres(A, b, tol=1e-6)
    assert (solution.residuals.diff() <= 1e-12).all()
    K = torch.stack([b, A @ b, A @ (A @ b)], dim=1)
    least = (b - A.matrix @ K @ torch.linalg.lstsq(A.matrix @ K, b[:, None]).solution[:, 0]).norm() / b.norm()
    assert float(solution.residuals[3]) == pytest.approx(float(least), rel=1e-9)


def test_columns_stop_alone() -> None:
    A = Counted(Diagonal(torch.tensor([1.0, -2.0, 3.0, 4.0], dtype=torch.float64)))
    B = torch.eye(4, dtype=torch.float64)[:, :3].clone()
    B[:, 2] = 1.0
    B = torch.cat([B, torch.zeros(4, 1).double()], dim=1)
    solution = minres(A, B, tol=1e-12)
    torch.testing.assert_close(solution.x, B / A.operator.entries[:, None])
    assert A.blocks[0] == 3  # a right-hand side of zero takes no product
    assert solution.products == A.products
    assert A.blocks[2] == 1


def test_a_singular_operator_is_solved_in_its_range_and_said_where_it_cannot() -> None:
    A = with_spectrum([1.0, -2.0, 0.0, 0.0, 3.0])
    inside = A @ vector(5)
    assert minres(A, inside, tol=1e-10).converged
    outside = minres(A, vector(5), tol=1e-10)
    assert not outside.converged
    least = (vector(5) - A.matrix @ torch.linalg.pinv(A.matrix) @ vector(5)).norm() / vector(5).norm()
    assert float(outside.residual) <= float(least) + 0.3
    assert float(outside.residual) <= 1
    assert "singular operator allows no smaller residual" in outside.message


def test_a_preconditioner_helps_and_changes_no_solution() -> None:
    spectrum = np.concatenate([[900.0, 400.0, -300.0, 100.0], np.linspace(-1, -0.5, 40), np.linspace(0.5, 1, 56)])
    A, b = with_spectrum(spectrum), vector(100)
    pairs = lanczos(A, k=4, which="magnitude", tol=1e-8)
    absolute = type(pairs)(**{**vars(pairs), "values": pairs.values.abs()})
    plain, helped = minres(A, b, tol=1e-8), minres(A, b, tol=1e-8, preconditioner=deflating(absolute))
    assert helped.products < plain.products
    torch.testing.assert_close(helped.x, plain.x, atol=1e-6, rtol=0)
    assert helped.converged
    np.testing.assert_allclose(helped.residual, (b - A @ helped.x).norm() / b.norm(), rtol=1e-6)


def test_it_starts_where_it_is_told() -> None:
    A, b = with_spectrum(SPECTRA["indefinite"]), vector(80)
    exact = torch.linalg.solve(A.matrix, b)
    near = minres(A, b, tol=1e-6, x0=exact + 1e-5 * vector(80, seed=4))
    assert near.products < minres(A, b, tol=1e-6).products / 1.5
    assert near.converged
    assert minres(A, b, tol=1e-6, x0=exact).products == 1


def test_single_precision_reaches_what_it_can_and_says_when_not() -> None:
    A = with_spectrum(SPECTRA["indefinite"], dtype=torch.float32)
    b = vector(80, dtype=torch.float32)
    assert minres(A, b, tol=1e-4).converged
    stuck = minres(A, b, tol=1e-12)
    assert not stuck.converged
    assert "stagnated" in stuck.message


@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_the_scale_of_the_operator_changes_nothing(factor: float) -> None:
    A, b = with_spectrum(SPECTRA["indefinite"]), vector(80)
    plain, scaled = minres(A, b, tol=1e-6), minres(factor * A, b, tol=1e-6)
    assert scaled.converged
    assert abs(scaled.products - plain.products) <= 1
    torch.testing.assert_close(scaled.x * factor, plain.x, rtol=1e-4, atol=1e-6)


def test_as_many_products_as_conjugate_gradients_where_both_work() -> None:
    A, b = with_spectrum(SPECTRA["geometric"]), vector(120)
    assert minres(A.shift(0.01), b, tol=1e-3).products <= cg(A.shift(0.01), b, tol=1e-3).products


def test_nonsense_is_refused_with_the_scene() -> None:
    A = with_spectrum(SPECTRA["indefinite"])
    with pytest.raises(OperatorError, match="solvers need a symmetric operator"):
        minres(Dense(rotation(4)), vector(4))
    with pytest.raises(OperatorError, match="take at least 2 products"):
        minres(A, vector(80), max_products=1)
    with pytest.raises(OperatorError, match=r"preconditioner M is positive definite, .* has rᵀMr = -"):
        minres(A, vector(80), preconditioner=Diagonal(-torch.ones(80).double()))
    with pytest.raises(NonFiniteError, match="Product 3 with <Explodes"):
        minres(Explodes(9, at=3), vector(9))
    with pytest.raises(OperatorError, match="negative curvature -"):
        nystrom(A, rank=20, damping=1.0)
