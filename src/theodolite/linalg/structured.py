"""Operators with a known structure: identity, diagonal, dense, and a diagonal congruence."""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from theodolite.errors import NonFiniteError, OperatorError
from theodolite.linalg.composites import refuse_strangers
from theodolite.linalg.operator import LinearOperator


@final
class Identity(LinearOperator):
    """I of size n."""

    def __init__(self, n: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> None:
        super().__init__(shape=(n, n), dtype=dtype, device=device, symmetric=True)

    def _matmat(self, V: Float[Tensor, "n k"]) -> Float[Tensor, "m k"]:
        return V.clone()


@final
class Diagonal(LinearOperator):
    """The diagonal matrix with given entries.

    Args:
        entries: the diagonal, finite.
    """

    def __init__(self, entries: Float[Tensor, " n"]) -> None:
        refuse_non_finite(entries, "Diagonal")
        super().__init__(shape=(len(entries), len(entries)), dtype=entries.dtype, device=entries.device, symmetric=True)
        self.entries = entries

    def _matmat(self, V: Float[Tensor, "n k"]) -> Float[Tensor, "m k"]:
        return self.entries[:, None] * V


@final
class Dense(LinearOperator):
    """A matrix held in memory.

    Args:
        matrix: its entries, finite.
        symmetric: whether it is symmetric; None looks at the entries.
    """

    def __init__(self, matrix: Float[Tensor, "m n"], *, symmetric: bool | None = None) -> None:
        refuse_non_finite(matrix, "Dense")
        m, n = matrix.shape
        if symmetric is None:
            symmetric = m == n and torch.equal(matrix, matrix.T)
        super().__init__(shape=(m, n), dtype=matrix.dtype, device=matrix.device, symmetric=symmetric)
        self.matrix = matrix

    def _matmat(self, V: Float[Tensor, "n k"]) -> Float[Tensor, "m k"]:
        return self.matrix @ V


@final
class Congruence(LinearOperator):
    """D·A·D for a diagonal D, such as the curvature that a diagonal preconditioner P = D⁻² sees.

    Args:
        operator: A, square.
        diagonal: the entries of D.
    """

    def __init__(self, operator: LinearOperator, diagonal: Float[Tensor, " n"]) -> None:
        if operator.shape != (len(diagonal), len(diagonal)):
            raise OperatorError(
                f"D·A·D needs a square A with as many rows as D has entries, found {operator!r} and "
                f"{len(diagonal)} entries."
            )
        self.diagonal = Diagonal(diagonal)
        refuse_strangers(operator, self.diagonal)
        super().__init__(
            shape=operator.shape, dtype=operator.dtype, device=operator.device, symmetric=operator.symmetric
        )
        self.operator = operator

    def _matmat(self, V: Float[Tensor, "n k"]) -> Float[Tensor, "m k"]:
        return self.diagonal @ (self.operator @ (self.diagonal @ V))

    def _expression(self) -> str:
        return f"D·({self.operator._expression()})·D"


def refuse_non_finite(entries: Tensor, name: str) -> None:
    """Raise if an entry is NaN or infinite."""
    bad = int((~torch.isfinite(entries)).sum())
    if bad:
        raise NonFiniteError(f"{name} needs finite entries, {bad} of {entries.numel()} are NaN or infinite.")
