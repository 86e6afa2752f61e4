from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from linalg.matrices import Counted, Explodes, rotation, vector, with_spectrum
from theodolite.errors import NonFiniteError, OperatorError
from theodolite.linalg import Dense, Diagonal, LinearOperator, Solution, cg

POSITIVE = np.geomspace(1e-2, 1, 60)


def true_residual(A: LinearOperator, b: Tensor, solution: Solution) -> Tensor:
    return (b - A @ solution.x).norm(dim=0).double() / b.norm(dim=0).double()


@pytest.mark.parametrize("columns", [None, 1, 4])
def test_the_solution_is_that_of_the_dense_system(columns: int | None) -> None:
    A = Counted(with_spectrum(POSITIVE))
    b = vector(60, columns=columns)
    solution = cg(A, b, tol=1e-11)
    assert solution.x.shape == b.shape
    assert solution.converged.all()
    torch.testing.assert_close(solution.x, torch.linalg.solve(A.operator.dense(), b), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(solution.residual, true_residual(A.operator, b, solution), rtol=1e-6, atol=1e-14)
    assert solution.residual.shape == solution.converged.shape == b.shape[1:]
    assert solution.residuals.shape[1:] == b.shape[1:]


def test_products_are_counted_and_every_column_stops_on_its_own() -> None:
    A = Counted(with_spectrum(POSITIVE))
    easy = torch.linalg.eigh(A.operator.dense()).eigenvectors[:, 3]
    b = torch.stack([vector(60), easy], dim=1)
    solution = cg(A, b, tol=1e-10)
    assert solution.products == A.products
    assert A.blocks[:3] == [2, 1, 1]  # the second column is solved by one step, checked, and leaves the block
    alone = [cg(A, b[:, i], tol=1e-10) for i in range(2)]
    assert solution.products == alone[0].products + alone[1].products
    torch.testing.assert_close(solution.x, torch.stack([s.x for s in alone], dim=1), atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("n", [1, 2, 3, 10])
def test_n_steps_and_one_check_suffice(n: int) -> None:
    A = with_spectrum(np.linspace(1, 4, n))
    solution = cg(A, vector(n), tol=1e-10)
    assert solution.converged
    assert solution.products <= n + 1
    assert solution.message.startswith("converged: relative residual ")


def test_as_many_steps_as_there_are_eigenvalues() -> None:
    solution = cg(with_spectrum([1.0] * 20 + [2.0] * 20 + [7.0] * 20), vector(60), tol=1e-10)
    assert len(solution.residuals) == 4
    assert float(solution.residuals[0]) == pytest.approx(1)


@settings(max_examples=40, deadline=None)
@given(
    spectrum=st.lists(st.floats(0.1, 10), min_size=1, max_size=12),
    seed=st.integers(0, 1000),
    tol=st.sampled_from([1e-3, 1e-6, 1e-9]),
)
def test_a_claim_of_convergence_is_true(spectrum: list[float], seed: int, tol: float) -> None:
    A, b = with_spectrum(spectrum, seed=seed), vector(len(spectrum), columns=2, seed=seed + 1)
    solution = cg(A, b, tol=tol)
    assert solution.converged.all()
    assert (true_residual(A, b, solution) <= tol * (1 + 1e-6)).all()


@pytest.mark.parametrize("eigenvalue", [-0.5, 0.0])
def test_negative_or_zero_curvature_is_reported(eigenvalue: float) -> None:
    A = Diagonal(torch.tensor([1.0, 2.0, eigenvalue], dtype=torch.float64))
    b = torch.tensor([[1.0, 1.0], [1.0, 1.0], [10.0, 0.0]], dtype=torch.float64)
    solution = cg(A, b, tol=1e-10)
    assert solution.negative_curvature.tolist() == [True, False]
    assert solution.converged.tolist() == [False, True]
    assert "column 0: negative or zero curvature, pᵀAp/pᵀp = " in solution.message
    assert "column 1: converged" in solution.message
    many = cg(A, b[:, [1, 1, 1, 1, 0]], tol=1e-10).message
    assert many.startswith("column 4: negative or zero curvature")
    assert many.endswith("; and 2 more of 5 columns")
    assert many.count("column ") == 3
    assert torch.isfinite(solution.x).all()
    # The column that went on is solved, the other keeps its last iterate on the way down.
    torch.testing.assert_close(solution.x[:, 1], torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64))
    torch.testing.assert_close(solution.residual, true_residual(A, b, solution))


def test_an_indefinite_operator_never_looks_solved_when_it_is_not() -> None:
    A, b = with_spectrum(np.linspace(-1, 1, 30)), vector(30)
    solution = cg(A, b)
    assert solution.negative_curvature
    assert not solution.converged
    assert bool(solution.converged) == bool(true_residual(A, b, solution) <= 1e-6)


def test_a_preconditioner_spares_products() -> None:
    scales = torch.logspace(0, 4, 200, dtype=torch.float64)
    well = with_spectrum(np.linspace(1, 2, 200))
    A = Dense(scales[:, None] * well.matrix * scales, symmetric=True)
    b = vector(200, columns=2)
    plain = cg(A, b, tol=1e-8, max_products=1000)
    preconditioned = cg(A, b, tol=1e-8, max_products=1000, preconditioner=Diagonal(1 / A.matrix.diagonal()))
    assert preconditioned.converged.all()
    assert preconditioned.products < plain.products / 4
    assert (true_residual(A, b, preconditioned) <= 1e-8 * (1 + 1e-6)).all()


def test_a_preconditioner_that_is_not_positive_is_reported() -> None:
    A = with_spectrum(POSITIVE)
    solution = cg(A, vector(60), preconditioner=Diagonal(-torch.ones(60, dtype=torch.float64)))
    assert not solution.converged
    assert solution.message.startswith("the preconditioner M is not positive definite, rᵀMr = -")
    assert float(solution.residual) == pytest.approx(1)


def test_a_good_start_spares_products_and_an_exact_one_all_but_its_check() -> None:
    A, b = with_spectrum(POSITIVE), vector(60)
    exact = torch.linalg.solve(A.matrix, b)
    cold = cg(A, b)
    assert cg(A, b, x0=exact + 1e-4 * vector(60, seed=3)).products < cold.products
    done = cg(A, b, x0=exact)
    assert done.products == 1
    assert done.converged
    torch.testing.assert_close(done.x, exact)


@pytest.mark.parametrize("x0", [None, torch.ones(60, dtype=torch.float64)])
def test_the_solution_for_zero_is_zero(x0: Tensor | None) -> None:
    solution = cg(with_spectrum(POSITIVE), torch.zeros(60, dtype=torch.float64), x0=x0)
    assert torch.equal(solution.x, torch.zeros(60, dtype=torch.float64))
    assert solution.converged
    assert solution.residual == 0


@pytest.mark.parametrize("limit", [2, 5, 11])
def test_running_out_of_products_is_data(limit: int) -> None:
    A = Counted(with_spectrum(POSITIVE))
    solution = cg(A, vector(60), tol=1e-12, max_products=limit)
    assert A.products == solution.products == limit
    assert not solution.converged
    assert solution.message.startswith("not converged when the products were spent: relative residual ")
    torch.testing.assert_close(solution.residual, true_residual(A.operator, vector(60), solution))


def test_stagnation_at_rounding_is_said() -> None:
    A, b = with_spectrum(POSITIVE, dtype=torch.float32), vector(60, dtype=torch.float32)
    solution = cg(A, b, tol=1e-12)
    assert not solution.converged
    assert (
        "stagnated, float32 or a singular operator allows no smaller residual here: relative residual"
        in solution.message
    )
    assert float(solution.residual) < 1e-5


@pytest.mark.parametrize("factor", [1e-25, 1e25])
def test_the_scale_of_the_right_hand_side_changes_nothing(factor: float) -> None:
    A, b = with_spectrum(POSITIVE, dtype=torch.float32), vector(60, dtype=torch.float32)
    plain, scaled = cg(A, b, tol=1e-4), cg(A, factor * b, tol=1e-4)
    torch.testing.assert_close(scaled.x / factor, plain.x, rtol=1e-3, atol=1e-3)
    assert scaled.converged


A60 = with_spectrum(POSITIVE)
REFUSED = {
    "need a symmetric operator, <Dense: 4×4": lambda: cg(Dense(rotation(4)), vector(4)),
    r"b has the shape \(60,\) or \(60, k\) for .*; found \(59,\)": lambda: cg(A60, vector(59)),
    r"x0 has the shape .* that of b; found \(60, 2\)": lambda: cg(A60, vector(60), x0=vector(60, columns=2)),
    "b is torch.float32 on cpu, <Dense": lambda: cg(A60, vector(60).float()),
    "b has 60 entries that are NaN or infinite": lambda: cg(A60, vector(60) / 0),
    "tol is a positive relative residual, found 0.0": lambda: cg(A60, vector(60), tol=0.0),
    "3 right-hand sides take at least 6 products.* found max_products=5": lambda: cg(
        A60, vector(60, columns=3), max_products=5
    ),
    "preconditioner of <Dense: 60×60.* found <Diagonal: 2×2": lambda: cg(
        A60, vector(60), preconditioner=Diagonal(vector(2))
    ),
    "Product 3 with <Explodes": lambda: cg(Explodes(9, at=3), vector(9)),
}


@pytest.mark.parametrize("message", REFUSED)
def test_nonsense_is_refused_with_the_scene(message: str) -> None:
    with pytest.raises((OperatorError, NonFiniteError), match=message):
        REFUSED[message]()
