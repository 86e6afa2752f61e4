"""Products against tolerance, side by side with what others do, on the spectrum of a trained network's Hessian."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from linalg.matrices import Counted, with_spectrum
from theodolite.linalg import Diagonal, LinearOperator, block_lanczos, cumulative, decompose, lanczos

HESSIANS = {
    "outliers": np.concatenate([7.2 * 0.7 ** np.arange(12), 0.01 * np.random.default_rng(0).exponential(size=288)]),
    "flat bulk": np.concatenate([6.6 * np.arange(1, 31) ** -0.8, 0.5 * np.random.default_rng(0).normal(size=270)]),
}


def power_iteration(A: LinearOperator, *, k: int, tol: float, limit: int) -> int:
    """Products until deflated power iteration has k pairs with residuals below tol: what most tools do."""
    found: list[Tensor] = []
    products, generator = 0, torch.Generator().manual_seed(0)
    for _ in range(k):
        v = torch.randn(A.shape[0], generator=generator, dtype=torch.float64)
        while products < limit:
            for u in found:
                v = v - (u @ v) * u
            v = v / v.norm()
            w = A @ v
            products += 1
            value = v @ w
            if float((w - value * v).norm()) <= tol * abs(float(value)):
                break
            v = w
        found.append(v)
    return products


@pytest.mark.parametrize(("tol", "ratio"), [(1e-2, 5), (1e-3, 8)])
@pytest.mark.parametrize("name", HESSIANS)
def test_ten_pairs_take_a_fraction_of_the_products_of_power_iteration(name: str, tol: float, ratio: float) -> None:
    A = Diagonal(torch.from_numpy(HESSIANS[name]))
    ours = lanczos(A, k=10, tol=tol)
    assert ours.products <= {"outliers": 22, "flat bulk": 70}[name]
    residuals = (A @ ours.vectors.T - ours.vectors.T * ours.values).norm(dim=0) / ours.values
    assert ours.converged.all()
    assert float(residuals.max()) <= tol
    assert power_iteration(A, k=10, tol=tol, limit=ratio * ours.products) >= ratio * ours.products
    passes = block_lanczos(A, k=10, tol=tol, block=4).products // 4
    assert passes <= 0.5 * ours.products


def test_a_whole_survey_costs_what_its_density_costs() -> None:
    # Pairs, trace, Frobenius norm, density with its bounds and log-det: 100 steps and 12 probes, nothing on top.
    A = Counted(with_spectrum(HESSIANS["outliers"]))
    found = decompose(A, k=10, steps=100, probes=12, memory=2**30)
    assert A.products == found.products == 112
    assert found.quadrature is not None
    cumulative(found.quadrature, np.linspace(-1, 8, 50))
    found.log_det(1e-2)
    assert A.products == 112
    assert found.pairs.converged.all()
    assert float(found.pairs.residuals.max()) < 1e-10
    assert abs(found.trace.value - HESSIANS["outliers"].sum()) < 4 * found.trace.stderr + 1e-9
    # Every outlier is one of the known eigenvalues, so that the trace has the error of the bulk alone.
    assert found.trace.stderr < 2e-3 * HESSIANS["outliers"].sum()
