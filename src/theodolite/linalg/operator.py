"""The linear operator: a matrix known only by its products, and the algebra of such matrices."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from numbers import Real
from typing import Any, overload

import torch
from jaxtyping import Float
from torch import Tensor

from theodolite.errors import NonFiniteError, OperatorError
from theodolite.linalg import vectors

DENSE_COLUMNS = 256


class LinearOperator(ABC):
    """A matrix of which only products with vectors are known.

    A subclass gives its shape, dtype and device to the constructor and its product in one method, ``_matmat``.
    ``A @ v``, ``A @ V``, ``A @ B``, ``A + B``, ``A - B``, ``c * A``, ``A / c``, ``-A``, ``A.shift(c)`` and
    ``A.restrict(index)`` follow from it; none of them forms a matrix.

    Args:
        shape: rows m and columns n.
        dtype: floating-point type of the entries, and of the vectors that it multiplies.
        device: where products are computed.
        symmetric: the claim that A = Aᵀ, which the algebra carries on; it is not checked here.
        dots: inner products of its vectors, for one of which every rank holds a slice.

    Raises:
        OperatorError: the shape, the dtype or the claim makes no sense.

    Example:
        >>> import torch
        >>> class Twice(LinearOperator):
        ...     def _matmat(self, V):
        ...         return 2 * V
        >>> A = Twice(shape=(3, 3), dtype=torch.float64, device="cpu", symmetric=True)
        >>> (A.shift(1.0) @ torch.ones(3, dtype=torch.float64)).tolist()
        [3.0, 3.0, 3.0]
        >>> A.shift(1.0)
        <Twice + Identity: 3×3, float64, cpu, symmetric>
    """

    # numpy scalars must leave ``c * A`` to __rmul__ instead of looking for entries.
    __array_ufunc__ = None

    def __init__(
        self,
        *,
        shape: tuple[int, int],
        dtype: torch.dtype,
        device: torch.device | str,
        symmetric: bool = False,
        dots: vectors.Dots = vectors.WHOLE,
    ) -> None:
        m, n = (int(size) for size in shape)
        if min(m, n) < 1:
            raise OperatorError(f"An operator needs at least one row and one column, found the shape {m}×{n}.")
        if not dtype.is_floating_point:
            raise OperatorError(f"An operator needs a real floating-point dtype, found {dtype}.")
        if symmetric and m != n:
            raise OperatorError(f"A symmetric operator is square, found the shape {m}×{n} with symmetric=True.")
        self.shape = (m, n)
        self.dtype = dtype
        # "cuda" and "cuda:0" are one device but compare unequal; a tensor always names the index.
        self.device = torch.empty(0, device=device).device
        self.symmetric = symmetric
        self.dots = dots

    @property
    def size(self) -> int:
        """Number of rows, over all ranks where vectors are sharded."""
        return self.shape[0] if self.dots.group is None else self.dots.size

    @property
    def vector_bytes(self) -> int:
        """Bytes of a vector, or of the longest slice of it that a rank holds."""
        rows = self.shape[0] if self.dots.group is None else max(self.dots.lengths)
        return rows * self.dtype.itemsize

    @abstractmethod
    def _matmat(self, V: Float[Tensor, "n k"]) -> Float[Tensor, "m k"]:
        """The product with k vectors, the columns of V; V is finite and fits."""

    @overload
    def __matmul__(self, other: Tensor) -> Tensor: ...
    @overload
    def __matmul__(self, other: LinearOperator) -> LinearOperator: ...
    def __matmul__(self, other: Tensor | LinearOperator) -> Tensor | LinearOperator:
        """``A @ v`` of shape (m,), ``A @ V`` of shape (m, k), or the operator ``A @ B``."""
        from theodolite.linalg.composites import Product  # composites are operators: they import this module

        if isinstance(other, LinearOperator):
            return Product(self, other)
        if not isinstance(other, Tensor):
            return NotImplemented
        self._refuse_unusable(other)
        product = self._matmat(other if other.ndim == 2 else other[:, None])
        self._refuse_wrong_product(product, columns=other.shape[1] if other.ndim == 2 else 1)
        return product if other.ndim == 2 else product[:, 0]

    def _refuse_unusable(self, other: Tensor) -> None:
        """Raise if this cannot be multiplied: of another shape, type or device, or not finite."""
        self._refuse_misfit(other)
        if not self.dots.is_finite(other):
            raise NonFiniteError(_non_finite_scene(self, other))

    def __add__(self, other: LinearOperator) -> LinearOperator:
        from theodolite.linalg.composites import Sum

        return Sum(self, other) if isinstance(other, LinearOperator) else NotImplemented

    def __sub__(self, other: LinearOperator) -> LinearOperator:
        return self + -1.0 * other if isinstance(other, LinearOperator) else NotImplemented

    def __mul__(self, factor: float | int) -> LinearOperator:
        from theodolite.linalg.composites import Scaled

        return Scaled(float(factor), self) if _is_number(factor) else NotImplemented

    __rmul__ = __mul__

    def __neg__(self) -> LinearOperator:
        return -1.0 * self

    def __truediv__(self, divisor: float | int) -> LinearOperator:
        if not _is_number(divisor):
            return NotImplemented
        if divisor == 0:
            raise OperatorError(f"{self!r} was divided by zero.")
        return (1.0 / float(divisor)) * self

    def shift(self, sigma: float | int) -> LinearOperator:
        """A + σ·I."""
        from theodolite.linalg.structured import Identity

        m, n = self.shape
        if m != n:
            raise OperatorError(f"Only a square operator can be shifted, found {self!r}.")
        return self + sigma * Identity(n, dtype=self.dtype, device=self.device)

    def restrict(self, to: slice | Tensor) -> LinearOperator:
        """The operator on a subspace: a principal sub-matrix, or Q A Qᵀ.

        Args:
            to: a slice, distinct integer indices of shape (k,), a boolean mask of shape (n,), or an orthonormal basis
                of shape (k, n), one vector a row.

        Returns:
            An operator of shape (k, k).
        """
        from theodolite.linalg.composites import Compression, Submatrix

        if isinstance(to, Tensor) and to.is_floating_point():
            return Compression(self, to)
        return Submatrix(self, to)

    def dense(self, *, max_size: int = 8192) -> Float[Tensor, "m n"]:
        """All entries as one tensor.

        Cost: n products.

        Args:
            max_size: refuse operators with more rows or columns than this.

        Raises:
            OperatorError: the operator is larger than ``max_size``.
        """
        refuse_sharded(self, what="dense()", way_out="take the dense form of the operator that was sharded")
        m, n = self.shape
        if max(m, n) > max_size:
            raise OperatorError(
                f"{self!r} as a dense matrix takes {bytes_in_words(m * n * self.dtype.itemsize)} and {n} products, and "
                f"dense() was asked to stop at size {max_size}. Pass max_size={max(m, n)} if that is meant, "
                "or use lanczos, slq or hutchinson, which need products only."
            )
        dense = torch.empty(m, n, dtype=self.dtype, device=self.device)
        for first in range(0, n, DENSE_COLUMNS):
            count = min(DENSE_COLUMNS, n - first)
            columns = torch.zeros(n, count, dtype=self.dtype, device=self.device)
            columns[first : first + count].fill_diagonal_(1.0)
            dense[:, first : first + count] = self @ columns
        return dense

    def __repr__(self) -> str:
        facts = [f"{self.shape[0]}×{self.shape[1]}", str(self.dtype).removeprefix("torch."), str(self.device)]
        return f"<{self._expression()}: {', '.join([*facts, 'symmetric'] if self.symmetric else facts)}>"

    def _expression(self) -> str:
        """How the operator reads in a formula."""
        return type(self).__name__

    def _refuse_misfit(self, V: Tensor) -> None:
        """Raise if V cannot be multiplied."""
        n = self.shape[1]
        if V.ndim not in (1, 2) or V.shape[0] != n:
            raise OperatorError(
                f"{self!r} multiplies vectors of shape ({n},) or blocks of shape ({n}, k), found {tuple(V.shape)}."
                + (" Transpose it: vectors are columns here." if V.ndim == 2 and V.shape[1] == n else "")
            )
        if V.dtype != self.dtype:
            raise OperatorError(f"{self!r} multiplies {self.dtype}, found {V.dtype}. Convert with .to({self.dtype}).")
        if V.device != self.device:
            raise OperatorError(f"{self!r} lives on {self.device}, the vector on {V.device}. Move one of them.")

    def _refuse_wrong_product(self, product: Any, *, columns: int) -> None:
        """Raise if a subclass returned something that is not a product."""
        expected = (self.shape[0], columns)
        if not isinstance(product, Tensor) or product.shape != expected or product.dtype != self.dtype:
            found = (
                f"{tuple(product.shape)} of {product.dtype}" if isinstance(product, Tensor) else type(product).__name__
            )
            raise OperatorError(f"{self!r}: _matmat should return {expected} of {self.dtype}, it returned {found}.")


def refuse_sharded(A: LinearOperator, *, what: str, way_out: str) -> None:
    """Raise if vectors of A are slices, for what needs whole ones.

    Raises:
        OperatorError: they are.
    """
    if A.dots.group is not None:
        raise OperatorError(f"Expected whole vectors for {what}, found {A!r}, sharded over ranks: {way_out}.")


def finite_product(A: LinearOperator, V: Float[Tensor, "n k"], *, before: int) -> Float[Tensor, "m k"]:
    """A @ V, refused if it is not finite.

    Args:
        A: the operator.
        V: vectors, one a column.
        before: how many products came before, for the message.

    Raises:
        NonFiniteError: the product is not finite.
    """
    product = A @ V
    if not A.dots.is_finite(product):
        raise non_finite_product(A, product, number=before + V.shape[1])
    return product


def non_finite_product(A: LinearOperator, product: Tensor, *, number: int) -> NonFiniteError:
    """The error for a finite vector with a product that is not."""
    bad = int((~torch.isfinite(product)).sum())
    return NonFiniteError(
        f"Product {number} with {A!r} has {bad} of {product.numel()} entries NaN or infinite, although the vector was "
        "finite. "
        "Check the loss and its gradient at these parameters, or compute in a wider dtype."
    )


def bytes_in_words(count: int) -> str:
    """A number of bytes as a reader says it: ``1.5 GiB``."""
    power = min(max(int(math.log(max(count, 1), 1024)), 0), 4)
    return f"{count / 1024**power:.3g} {('bytes', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def _is_number(value: object) -> bool:
    """Whether it is a plain number, of Python or numpy; not a tensor, which would be ambiguous."""
    return isinstance(value, Real)


def _non_finite_scene(operator: LinearOperator, V: Tensor) -> str:
    bad = ~torch.isfinite(V)
    if not bool(bad.any()):
        return (
            f"{operator!r} was given a vector that is not finite in the slice of another rank; no product was computed."
        )
    first = tuple(bad.nonzero()[0].tolist())
    return (
        f"{operator!r} was given a vector that is not finite: {int(bad.sum())} of {V.numel()} entries, the first at "
        f"{first} is {V[first].item()}. Look for the step that made it; no product was computed."
    )
