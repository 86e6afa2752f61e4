"""Operators of half types are as good as their products: bases and sums are in float32, and results know the rounding."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from linalg.matrices import vector, with_spectrum
from theodolite.linalg import (
    block_lanczos,
    cg,
    decompose,
    diagonal,
    funm_multiply,
    hutchinson,
    lanczos,
    minres,
    nystrom,
    slq,
    xdiag,
    xnystrace,
    xtrace,
)

DECAYING = 0.8 ** np.arange(60) + 0.05
half = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


@half
def test_pairs_of_a_block_are_found(dtype: torch.dtype) -> None:
    found = block_lanczos(with_spectrum(DECAYING, dtype=dtype), k=2, block=3, tol=0.05)
    np.testing.assert_allclose(found.values.numpy(), DECAYING[:2], atol=15 * torch.finfo(dtype).eps)
    assert found.vectors.dtype == dtype


OUTLIERS = np.concatenate([[10.0, 8.0, 6.0, 5.0], np.linspace(0, 1, 300)])


@half
@pytest.mark.parametrize("solver", [lanczos, functools.partial(block_lanczos, block=4)], ids=["lanczos", "block"])
def test_stated_residuals_are_true_and_hold_the_rounding_of_products(
    solver: Callable[..., Any], dtype: torch.dtype
) -> None:
    A = with_spectrum(OUTLIERS, dtype=dtype)
    exact = torch.linalg.eigvalsh(A.matrix.double()).flip(0)[:4]
    found = solver(A, k=4, tol=1e-2)
    V, unit = found.vectors.double(), torch.finfo(dtype).eps / 2
    true = ((A.matrix.double() @ V.T - V.T * found.values).norm(dim=0) / found.values).numpy()
    assert found.products <= 24  # 240 and more in a basis of the type itself
    assert float((found.values - exact).abs().max()) < 0.2 * unit * 10
    assert (true <= found.residuals.numpy()).all()
    assert bool((found.residuals >= unit).all())
    assert not bool(solver(A, k=4, tol=unit / 2).converged.any())


@half
def test_a_sketched_preconditioner_helps(dtype: torch.dtype) -> None:
    A = with_spectrum(DECAYING, dtype=dtype)
    M = nystrom(A, rank=12, damping=0.5)
    assert M.dtype == dtype
    assert len(M.values) == 12
    product = M.dense().double() @ with_spectrum(DECAYING).shift(0.5).dense()
    eigenvalues = np.linalg.eigvals(product.numpy()).real
    assert eigenvalues.max() / eigenvalues.min() < 0.75 * (1.55 / 0.55)


@half
def test_directions_of_rounding_are_no_negative_curvature(dtype: torch.dtype) -> None:
    low_rank = np.append(np.zeros(54), [9.0, 7.0, 5.0, 3.0, 2.0, 1.0])
    A = with_spectrum(low_rank, dtype=dtype)
    assert len(nystrom(A, rank=12, damping=0.1).values) == 6
    assert xnystrace(A, products=12).value == pytest.approx(27, rel=0.02)


@half
@pytest.mark.parametrize("solver", [cg, minres])
def test_systems_are_solved_to_the_rounding_of_products(solver: Callable[..., Any], dtype: torch.dtype) -> None:
    A, b = with_spectrum(np.linspace(1, 8, 60), dtype=dtype), vector(60).to(dtype)
    found = solver(A, b, tol=1e-2)
    assert found.x.dtype == dtype
    assert bool(found.converged)
    exact = torch.linalg.solve(A.matrix.double(), b.double())
    assert float((found.x.double() - exact).norm() / exact.norm()) < 8e-2  # tol times the condition number
    assert found.products < 20
    stuck = solver(A, b, tol=1e-7)
    assert not bool(stuck.converged)
    assert "stagnated" in stuck.message


@half
def test_estimates_and_functions_are_those_of_the_rounded_matrix(dtype: torch.dtype) -> None:
    A = with_spectrum(DECAYING, dtype=dtype)
    M, unit = A.matrix.double(), torch.finfo(dtype).eps / 2
    trace = float(M.trace())
    run = decompose(A, k=1, steps=60, probes=2)
    assert run.trace.value == pytest.approx(trace, rel=2 * unit)
    partial = decompose(A, k=1, steps=20, probes=40)
    assert abs(partial.trace.value - trace) < 4 * partial.trace.stderr + unit * trace
    assert 0 < partial.trace.stderr < 0.05 * trace
    assert hutchinson(A, probes=400).value == pytest.approx(trace, rel=0.05)
    assert float((slq(A, probes=3, steps=60).weights.sum(dim=1) - 1).abs().max()) < 1e-6
    assert float(diagonal(A, probes=400).value.sum()) == pytest.approx(trace, rel=0.05)
    v = vector(60).to(dtype)
    found, exact = funm_multiply(A, v, torch.exp), torch.linalg.matrix_exp(M) @ v.double()
    error = float((found.x.double() - exact).norm() / exact.norm())
    assert found.x.dtype == dtype
    assert unit / 10 < error < found.error < 20 * unit


@half
@pytest.mark.parametrize("estimator", [xtrace, xdiag])
def test_sketches_are_answered_in_half_types(estimator: Callable[..., Any], dtype: torch.dtype) -> None:
    A = with_spectrum(DECAYING[:8], dtype=dtype)
    found = float(np.sum(np.asarray(estimator(A, products=16).value)))
    assert found == pytest.approx(DECAYING[:8].sum(), rel=0.1)


@half
def test_probes_of_the_complement_have_the_type_of_the_basis(dtype: torch.dtype) -> None:
    A = with_spectrum(np.linspace(0.5, 8, 60), dtype=dtype)
    trace = decompose(A, k=1, steps=12, probes=20, tol=0.1).trace
    assert 0 < trace.stderr < 0.1 * trace.value
    assert abs(trace.value - float(A.matrix.double().trace())) < 4 * trace.stderr
