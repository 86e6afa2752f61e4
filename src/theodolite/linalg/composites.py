"""Operators made of operators: sums, multiples, products, and restrictions to subspaces."""

from __future__ import annotations

import math
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from theodolite.errors import OperatorError
from theodolite.linalg.operator import LinearOperator, refuse_sharded


@final
class Sum(LinearOperator):
    """A + B."""

    def __init__(self, left: LinearOperator, right: LinearOperator) -> None:
        if left.shape != right.shape:
            raise OperatorError(f"A sum needs equal shapes, found {left!r} + {right!r}.")
        refuse_strangers(left, right)
        super().__init__(
            shape=left.shape,
            dtype=left.dtype,
            device=left.device,
            symmetric=left.symmetric and right.symmetric,
        )
        self.left, self.right = left, right

    def _matmat(self, V: Float[Tensor, "n k"]) -> Float[Tensor, "m k"]:
        return self.left @ V + self.right @ V

    def _expression(self) -> str:
        right = self.right
        if isinstance(right, Scaled) and right.factor < 0:
            return f"{self.left._expression()} - {(right.operator * -right.factor)._expression()}"
        return f"{self.left._expression()} + {_as_term(right)}"


@final
class Scaled(LinearOperator):
    """c·A."""

    def __init__(self, factor: float, operator: LinearOperator) -> None:
        _refuse_slices(operator)
        if not math.isfinite(factor):
            raise OperatorError(f"{operator!r} was multiplied by {factor}; expected a finite number.")
        if isinstance(operator, Scaled):
            factor, operator = factor * operator.factor, operator.operator
        super().__init__(
            shape=operator.shape, dtype=operator.dtype, device=operator.device, symmetric=operator.symmetric
        )
        self.factor: float = factor
        self.operator: LinearOperator = operator

    def _matmat(self, V: Float[Tensor, "n k"]) -> Float[Tensor, "m k"]:
        return self.factor * (self.operator @ V)

    def _expression(self) -> str:
        sign = {1.0: "", -1.0: "-"}.get(self.factor, f"{self.factor:.4g}·")
        return sign + _as_factor(self.operator)


@final
class Product(LinearOperator):
    """A·B; it claims no symmetry, because A and B need not commute."""

    def __init__(self, left: LinearOperator, right: LinearOperator) -> None:
        if left.shape[1] != right.shape[0]:
            raise OperatorError(
                f"A product needs as many columns on the left as rows on the right, found {left!r} @ {right!r}."
            )
        refuse_strangers(left, right)
        super().__init__(shape=(left.shape[0], right.shape[1]), dtype=left.dtype, device=left.device)
        self.left, self.right = left, right

    def _matmat(self, V: Float[Tensor, "n k"]) -> Float[Tensor, "m k"]:
        return self.left @ (self.right @ V)

    def _expression(self) -> str:
        return f"{_as_factor(self.left)}·{_as_factor(self.right)}"


@final
class Submatrix(LinearOperator):
    """The principal sub-matrix of A on a set of indices.

    Args:
        operator: A, square.
        index: a slice, distinct integer indices, or a boolean mask of shape (n,).
    """

    def __init__(self, operator: LinearOperator, index: slice | Tensor) -> None:
        n = _size_of_square(operator)
        self.index = _as_indices(operator, index, n)
        size = len(self.index)
        super().__init__(shape=(size, size), dtype=operator.dtype, device=operator.device, symmetric=operator.symmetric)
        self.operator = operator

    def _matmat(self, V: Float[Tensor, "n k"]) -> Float[Tensor, "m k"]:
        whole = V.new_zeros(self.operator.shape[1], V.shape[1])
        whole[self.index] = V
        return (self.operator @ whole)[self.index]

    def _expression(self) -> str:
        return f"{_as_factor(self.operator)}[{len(self.index)} of {self.operator.shape[0]}]"


@final
class Compression(LinearOperator):
    """Q A Qᵀ for a basis Q with one vector a row.

    Args:
        operator: A, square.
        basis: Q of shape (k, n).
    """

    def __init__(self, operator: LinearOperator, basis: Float[Tensor, "k n"]) -> None:
        n = _size_of_square(operator)
        if basis.ndim != 2 or basis.shape[1] != n or basis.dtype != operator.dtype or basis.device != operator.device:
            raise OperatorError(
                f"{operator!r} is restricted to a basis of shape (k, {n}), one vector a row, of its own dtype and "
                f"device; found {tuple(basis.shape)} of {basis.dtype} on {basis.device}."
            )
        k = basis.shape[0]
        super().__init__(shape=(k, k), dtype=operator.dtype, device=operator.device, symmetric=operator.symmetric)
        self.operator, self.basis = operator, basis

    def _matmat(self, V: Float[Tensor, "n k"]) -> Float[Tensor, "m k"]:
        return self.basis @ (self.operator @ (self.basis.T @ V))

    def _expression(self) -> str:
        return f"Q·{_as_factor(self.operator)}·Qᵀ"


def refuse_strangers(left: LinearOperator, right: LinearOperator) -> None:
    """Raise if two operators do not share a dtype and a device."""
    for operator in (left, right):
        _refuse_slices(operator)
    if left.dtype != right.dtype or left.device != right.device:
        raise OperatorError(f"Operators combine in one dtype on one device, found {left!r} and {right!r}.")


def _refuse_slices(operator: LinearOperator) -> None:
    refuse_sharded(operator, what="an operator made of it", way_out="shard the result, Sharded(A.shift(δ), group)")


def _as_term(operator: LinearOperator) -> str:
    expression = operator._expression()
    return f"({expression})" if isinstance(operator, Sum) else expression


def _as_factor(operator: LinearOperator) -> str:
    expression = operator._expression()
    return f"({expression})" if isinstance(operator, Sum | Scaled) else expression


def _size_of_square(operator: LinearOperator) -> int:
    _refuse_slices(operator)
    m, n = operator.shape
    if m != n:
        raise OperatorError(f"Only a square operator has principal sub-matrices, found {operator!r}.")
    return n


def _as_indices(operator: LinearOperator, index: slice | Tensor, n: int) -> Tensor:
    """Integer indices on the operator's device."""
    if isinstance(index, slice):
        chosen = torch.arange(n)[index]
    elif index.dtype == torch.bool:
        if index.shape != (n,):
            raise OperatorError(f"A mask on {operator!r} has the shape ({n},), found {tuple(index.shape)}.")
        chosen = index.nonzero()[:, 0]
    else:
        chosen = index
    if chosen.ndim != 1 or len(chosen) == 0 or int(chosen.min()) < 0 or int(chosen.max()) >= n:
        raise OperatorError(
            f"{operator!r} is restricted to one or more indices in 0..{n - 1}, found {_glimpse(chosen)}."
        )
    if len(chosen.unique()) != len(chosen):
        raise OperatorError(f"{operator!r} is restricted to distinct indices, found repeats in {_glimpse(chosen)}.")
    return chosen.to(operator.device)


def _glimpse(index: Tensor) -> str:
    if index.ndim != 1 or len(index) == 0:
        return f"indices of shape {tuple(index.shape)}"
    return f"{len(index)} indices from {int(index.min())} to {int(index.max())}"
