"""Half types, which LAPACK has no factorisations for, go through every method that factors a block of vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from linalg.matrices import vector, with_spectrum
from theodolite.linalg import block_lanczos, nystrom, xdiag, xtrace
from theodolite.linalg.basis import thin_qr

DECAYING = 0.8 ** np.arange(60) + 0.05
half = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


@half
def test_factors_are_those_of_the_block(dtype: torch.dtype) -> None:
    X, eps = vector(40, columns=6).to(dtype), torch.finfo(dtype).eps
    Q, R = thin_qr(X)
    assert Q.dtype == dtype
    wide = Q.double()
    torch.testing.assert_close(wide.T @ wide, torch.eye(6, dtype=torch.float64), atol=2 * eps, rtol=0)
    torch.testing.assert_close(wide @ R.double(), X.double(), atol=20 * eps, rtol=0)
    torch.testing.assert_close(R.triu(), R)


@half
def test_pairs_of_a_block_are_found(dtype: torch.dtype) -> None:
    found = block_lanczos(with_spectrum(DECAYING, dtype=dtype), k=2, block=3, tol=0.05)
    np.testing.assert_allclose(found.values.numpy(), DECAYING[:2], atol=15 * torch.finfo(dtype).eps)
    assert found.vectors.dtype == dtype


@half
def test_a_sketched_preconditioner_does_no_harm_and_helps_where_digits_suffice(dtype: torch.dtype) -> None:
    A = with_spectrum(DECAYING, dtype=dtype)
    M = nystrom(A, rank=12, damping=0.5)
    assert M.dtype == dtype
    wide = with_spectrum(DECAYING).shift(0.5)
    product = M.dense().double() @ wide.dense()
    eigenvalues = np.linalg.eigvals(product.numpy()).real
    # Eight bits tell few directions of the sketch from null ones: there it only has to do no harm.
    share = 0.7 if dtype == torch.float16 else 1.02
    assert eigenvalues.max() / eigenvalues.min() < share * (1.55 / 0.55)


@half
@pytest.mark.parametrize("estimator", [xtrace, xdiag])
def test_sketches_are_answered_in_half_types(estimator: Callable[..., Any], dtype: torch.dtype) -> None:
    A = with_spectrum(DECAYING[:8], dtype=dtype)
    found = float(np.sum(np.asarray(estimator(A, products=16).value)))
    assert found == pytest.approx(DECAYING[:8].sum(), rel=0.5)
