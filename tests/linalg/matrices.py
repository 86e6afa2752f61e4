"""Symmetric matrices with prescribed spectra, as dense operators."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from theodolite.linalg import Dense

SPECTRA: dict[str, np.ndarray] = {
    "geometric": 0.9 ** np.arange(120),
    "outliers over a bulk": np.concatenate([[200.0, 90.0, 50.0, 20.0, 10.0], np.linspace(-1, 1, 115)]),
    "clustered": np.concatenate([[5.0, 4.999, 4.99], np.linspace(0, 1, 97)]),
    "repeated": np.concatenate([[1.0] * 30, [0.5] * 30, [0.0] * 30]),
    "low rank": np.concatenate([[3.0, 2.0, 1.0], np.zeros(97)]),
    "indefinite": np.linspace(-3, 3.5, 80),
    "negative": -(0.8 ** np.arange(60)),
    "identity": np.ones(20),
    "zero": np.zeros(20),
    "one": np.array([2.0]),
    "two": np.array([2.0, -1.0]),
    "three, repeated": np.array([1.0, 1.0, 0.0]),
}


def rotation(n: int, *, seed: int = 0) -> Tensor:
    """A random orthogonal matrix in float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q


def with_spectrum(values: Sequence[float] | np.ndarray, *, dtype: torch.dtype = torch.float64, seed: int = 0) -> Dense:
    """A dense symmetric operator with these eigenvalues and random eigenvectors."""
    spectrum = torch.as_tensor(np.asarray(values, dtype=np.float64))
    Q = rotation(len(spectrum), seed=seed)
    matrix = ((Q * spectrum) @ Q.T).to(dtype)
    return Dense((matrix + matrix.T) / 2, symmetric=True)


def vector(n: int, *, columns: int | None = None, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    """A random vector, or a block of them."""
    shape = (n,) if columns is None else (n, columns)
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
