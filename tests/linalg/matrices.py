"""Symmetric matrices with prescribed spectra, as dense operators, and operators that misbehave."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from theodolite.linalg import Dense, LinearOperator

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


class Counted(LinearOperator):
    """An operator that counts its products and the blocks they come in."""

    def __init__(self, operator: LinearOperator) -> None:
        super().__init__(
            shape=operator.shape, dtype=operator.dtype, device=operator.device, symmetric=operator.symmetric
        )
        self.operator = operator
        self.blocks: list[int] = []

    @property
    def products(self) -> int:
        return sum(self.blocks)

    def _matmat(self, V: Tensor) -> Tensor:
        self.blocks.append(V.shape[1])
        return self.operator @ V


class Explodes(LinearOperator):
    """The identity until a product, counted from 1, in which the first entry becomes NaN."""

    def __init__(self, n: int, *, at: int) -> None:
        super().__init__(shape=(n, n), dtype=torch.float64, device="cpu", symmetric=True)
        self.left = at

    def _matmat(self, V: Tensor) -> Tensor:
        product = torch.arange(1.0, len(V) + 1, dtype=V.dtype)[:, None] * V
        self.left -= V.shape[1]
        if self.left <= 0:
            product[0] = torch.nan
        return product
