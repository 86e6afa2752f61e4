"""Kronecker products and what their eigenvectors diagonalise, without forming either."""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from theodolite.errors import OperatorError
from theodolite.linalg.operator import LinearOperator
from theodolite.linalg.structured import refuse_non_finite


@final
class Kronecker(LinearOperator):
    """A ⊗ B: a vector is a matrix X written row by row, and the product is A X Bᵀ.

    Args:
        left: A, finite.
        right: B, of the same dtype and device.
        symmetric: whether both are symmetric; None looks at the entries.

    Raises:
        OperatorError: the two do not combine.
        NonFiniteError: an entry is NaN or infinite.

    Example:
        >>> import torch
        >>> from theodolite.linalg import Kronecker
        >>> A, B = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 1.0], [1.0, 3.0]])
        >>> (Kronecker(A, B) @ torch.tensor([1.0, 0.0, 0.0, 1.0])).tolist()
        [2.0, 2.0, 1.0, 3.0]
        >>> Kronecker(A, B).trace()
        12.0
    """

    def __init__(
        self, left: Float[Tensor, "p q"], right: Float[Tensor, "r s"], *, symmetric: bool | None = None
    ) -> None:
        refuse_non_finite(left, "The left factor of a Kronecker product")
        refuse_non_finite(right, "The right factor of a Kronecker product")
        _refuse_strangers(left, right)
        if symmetric is None:
            symmetric = all(M.shape[0] == M.shape[1] and torch.equal(M, M.T) for M in (left, right))
        (p, q), (r, s) = left.shape, right.shape
        super().__init__(shape=(p * r, q * s), dtype=left.dtype, device=left.device, symmetric=symmetric)
        self.left, self.right = left, right

    def _matmat(self, V: Float[Tensor, "n k"]) -> Float[Tensor, "m k"]:
        return _sandwich(self.left, self.right, V, rows=self.left.shape[1])

    def trace(self) -> float:
        """tr A · tr B."""
        if self.left.shape[0] != self.left.shape[1] or self.right.shape[0] != self.right.shape[1]:
            raise OperatorError(f"Only square factors have traces whose product is that of {self!r}.")
        return float(self.left.double().trace() * self.right.double().trace())

    def diagonalise(self) -> RotatedDiagonal:
        """(U ⊗ V) diag(λ μᵀ) (U ⊗ V)ᵀ, from which inverses, powers and determinants follow.

        Cost: one eigendecomposition of each factor.

        Raises:
            OperatorError: a factor is not symmetric.
        """
        if not self.symmetric:
            raise OperatorError(f"Only symmetric factors are diagonalised by rotations, {self!r} does not claim to be.")
        (left, U), (right, V) = torch.linalg.eigh(self.left), torch.linalg.eigh(self.right)
        return RotatedDiagonal(torch.outer(left, right), left=U, right=V)


@final
class RotatedDiagonal(LinearOperator):
    """(U ⊗ V) diag(Λ) (U ⊗ V)ᵀ for orthogonal U and V and any eigenvalues Λ of shape (p, r).

    A Kronecker product of symmetric factors, its damped inverse, the eigenvalue-corrected EKFAC, a symmetric matrix
    (p = 1) and a diagonal (no rotation) are all of this form, and so is every function of them.

    Args:
        values: Λ, the eigenvalues; entry (i, j) belongs to the i-th column of U and the j-th of V.
        left: U of shape (p, p), None for the identity.
        right: V of shape (r, r), None for the identity.

    Example:
        >>> import torch
        >>> from theodolite.linalg import RotatedDiagonal
        >>> A = RotatedDiagonal(torch.tensor([[1.0, 3.0]]))
        >>> A.inverse(damping=1.0).diagonal().tolist(), A.trace()
        ([0.5, 0.25], 4.0)
    """

    def __init__(
        self,
        values: Float[Tensor, "p r"],
        *,
        left: Float[Tensor, "..."] | None = None,
        right: Float[Tensor, "..."] | None = None,
    ) -> None:
        for factor, size in ((left, values.shape[0]), (right, values.shape[1])):
            if factor is None:
                continue
            _refuse_strangers(values, factor)
            if factor.shape != (size, size):
                raise OperatorError(
                    f"Eigenvalues of shape {tuple(values.shape)} belong to rotations of the sizes {values.shape[0]} and "
                    f"{values.shape[1]}, found one of shape {tuple(factor.shape)}."
                )
        refuse_non_finite(values, "RotatedDiagonal")
        size = values.numel()
        super().__init__(shape=(size, size), dtype=values.dtype, device=values.device, symmetric=True)
        self.values, self.left, self.right = values, left, right

    def _matmat(self, V: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        rows = self.values.shape[0]
        rotated = _sandwich(_transposed(self.left), _transposed(self.right), V, rows=rows)
        return _sandwich(self.left, self.right, self.values.reshape(-1, 1) * rotated, rows=rows)

    def eigenvalues(self) -> Float[Tensor, " n"]:
        """All eigenvalues, ascending."""
        return self.values.reshape(-1).sort().values

    def trace(self) -> float:
        """Sum of the eigenvalues."""
        return float(self.values.sum(dtype=torch.float64))

    def diagonal(self) -> Float[Tensor, " n"]:
        """The diagonal entries Σ_ab U²_ia V²_jb Λ_ab."""
        squares = self.values if self.left is None else self.left.square() @ self.values
        return (squares if self.right is None else squares @ self.right.square().T).reshape(-1)

    def logdet(self, *, damping: float = 0.0) -> float:
        """log det(A + damping·I).

        Raises:
            OperatorError: A + damping·I is not positive definite.
        """
        return float(self._positive(damping, "log-determinant").double().log().sum())

    def inverse(self, *, damping: float = 0.0) -> RotatedDiagonal:
        """(A + damping·I)⁻¹.

        Raises:
            OperatorError: A + damping·I is not positive definite.
        """
        return self.power(-1.0, damping=damping)

    def power(self, exponent: float, *, damping: float = 0.0) -> RotatedDiagonal:
        """(A + damping·I) to a power.

        Raises:
            OperatorError: A + damping·I is not positive definite.
        """
        values = self._positive(damping, f"power {exponent:g}")
        return RotatedDiagonal(values.pow(exponent), left=self.left, right=self.right)

    def _positive(self, damping: float, purpose: str) -> Float[Tensor, "p r"]:
        values = self.values + damping
        if not bool((values > 0).all()):
            raise OperatorError(
                f"The {purpose} of {self!r} needs a positive definite matrix, found the smallest eigenvalue "
                f"{float(values.min()):.3g} with damping={damping:g}. Raise damping."
            )
        return values


def _sandwich(
    left: Float[Tensor, "p q"] | None, right: Float[Tensor, "r s"] | None, V: Float[Tensor, "n k"], *, rows: int
) -> Float[Tensor, "m k"]:
    """(left ⊗ right) V for vectors that are matrices of so many rows; None is the identity."""
    X = V.T.reshape(V.shape[1], rows, -1)
    X = X if left is None else left @ X
    X = X if right is None else X @ right.T
    return X.reshape(V.shape[1], -1).T


def _transposed(factor: Tensor | None) -> Tensor | None:
    return None if factor is None else factor.T


def _refuse_strangers(left: Tensor, right: Tensor) -> None:
    if left.dtype != right.dtype or left.device != right.device:
        raise OperatorError(
            f"Factors combine in one dtype on one device, found {left.dtype} on {left.device} and {right.dtype} on "
            f"{right.device}."
        )
