from __future__ import annotations

import numpy as np
import pytest
import torch

from linalg.matrices import SPECTRA, with_spectrum
from theodolite.linalg import Eigenpairs, LinearOperator, lanczos


def asked(values: np.ndarray, k: int, which: str) -> np.ndarray:
    """The oracle: what each choice of pairs means, written out."""
    descending = np.sort(values)[::-1]
    n = len(descending)
    if which == "largest":
        return descending[:k]
    if which == "smallest":
        return descending[n - k :]
    if which == "both":
        return np.concatenate([descending[: (k + 1) // 2], descending[n - k // 2 :]])
    return np.sort(sorted(values, key=abs)[n - k :])[::-1]


def true_residuals(A: LinearOperator, found: Eigenpairs) -> np.ndarray:
    V, values = found.vectors.T, found.values.to(found.vectors)
    norms = torch.linalg.vector_norm(A @ V - V * values, dim=0).double()
    scale = torch.maximum(found.values.abs(), torch.tensor(1e-3 * found.radius)).clamp(min=1e-300)
    return (norms / scale).numpy()


@pytest.mark.parametrize("which", ["largest", "smallest", "both", "magnitude"])
@pytest.mark.parametrize("name", SPECTRA)
def test_eigenpairs_equal_dense_ones(name: str, which: str) -> None:
    A = with_spectrum(SPECTRA[name])
    k = min(7, A.shape[0])
    found = lanczos(A, k=k, which=which, tol=1e-9)
    assert found.converged.all()
    np.testing.assert_allclose(found.values, asked(SPECTRA[name], k, which), atol=1e-10 * max(found.radius, 1))
    torch.testing.assert_close(found.vectors @ found.vectors.T, torch.eye(k, dtype=torch.float64), atol=1e-12, rtol=0)
    assert (true_residuals(A, found) <= 1e-9 + 1e-12).all()
