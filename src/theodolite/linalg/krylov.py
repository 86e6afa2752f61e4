"""The Krylov decomposition A Qᵀ = Qᵀ T + r eⱼᵀ of a symmetric operator, grown one product at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from theodolite.linalg.basis import NOISE, Basis
from theodolite.linalg.operator import LinearOperator, non_finite_product


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Ritz:
    """Eigenvalues of the projected matrix, ascending, with how far each is from an eigenpair of the operator.

    Args:
        values: Ritz values θ.
        coordinates: Ritz vectors in the basis, one a column.
        bounds: norms ‖A y − θ y‖, from |β s_j| and from residuals that were dropped at earlier breakdowns.
    """

    values: Float[np.ndarray, " j"]
    coordinates: Float[np.ndarray, "j j"]
    bounds: Float[np.ndarray, " j"]


@final
class Krylov:
    """A Krylov decomposition with full reorthogonalisation.

    T is tridiagonal until the first restart; a restart puts kept Ritz values on the diagonal with an arrow that couples
    them to the next vector. When the residual vanishes the space is invariant, and the decomposition goes on
    from a fresh random vector orthogonal to it (a new *block*), which finds further copies of repeated eigenvalues.

    Args:
        operator: A, symmetric.
        start: first vector, of any length but zero.
        draw: gives a fresh random vector.
        capacity: rows of the basis that are never exceeded.

    References:
        Paige (1972), Computational variants of the Lanczos method for the eigenproblem.
        Wu, Simon (2000), Thick-restart Lanczos method for large symmetric eigenvalue problems.
    """

    def __init__(
        self,
        operator: LinearOperator,
        *,
        start: Float[Tensor, " n"],
        draw: Callable[[], Float[Tensor, " n"]],
        capacity: int,
    ) -> None:
        self.operator = operator
        rows = operator.shape[0]
        self.basis = Basis(rows, capacity=capacity, dtype=operator.dtype, device=operator.device, dots=operator.dots)
        self.T = np.zeros((0, 0))  # the projected matrix Q A Qᵀ
        self.products = 0
        self.blocks = 1
        self.block_steps = 0
        self.rounding = 0.0
        self._draw = draw
        self._next: Tensor | None = self._unit(start)
        self._coupling = np.zeros(0)
        self._dropped = np.zeros(0)

    def __len__(self) -> int:
        return len(self.basis)

    @property
    def exhausted(self) -> bool:
        """Whether the basis spans the whole space."""
        return len(self) == self.operator.size

    @property
    def invariant(self) -> bool:
        """Whether the residual vanished, so that the next vector is a fresh one."""
        return self._next is None

    def advance(self) -> None:
        """Add one vector to the basis.

        Cost: one product, and one synchronisation with the device beside the operator's own.

        Raises:
            NonFiniteError: the product is not finite.
        """
        if self._next is None:
            self._begin_block()
        assert self._next is not None
        self.basis.append(self._next)
        product = self.operator @ self._next
        w, coefficients = self.basis.orthogonalise(product)
        *row, beta = torch.cat([coefficients.double(), self.operator.dots.norm(w)[None]]).tolist()
        self.products += 1
        self.block_steps += 1
        if not math.isfinite(sum(row) + beta):
            raise non_finite_product(self.operator, product, number=self.products)
        self._border(np.array(row))
        scale = math.hypot(float(np.linalg.norm(self.T[-1])), beta)
        self.rounding = max(self.rounding, torch.finfo(self.operator.dtype).eps * scale)
        self._coupling = np.zeros(len(self))
        self._coupling[-1] = beta
        self._next = w / beta if beta > 0 else None
        if self.exhausted:
            # Nothing lies outside, what was dropped before included.
            self._coupling[:], self._dropped[:] = 0.0, 0.0
        if self.exhausted or beta <= NOISE * self.rounding:
            self.drop_residual()

    def drop_residual(self) -> None:
        """Begin a new block at the next step; what is dropped stays in the bounds.

        It also couples the vectors before to those after, so that T has full rows from here on.
        """
        self._dropped = self._dropped + self._coupling
        self._coupling = np.zeros(len(self))
        self._next = None

    def restart(self, keep: Int[np.ndarray, " p"]) -> None:
        """Shrink the basis to chosen Ritz vectors; the residual and with it the decomposition stay valid.

        Args:
            keep: positions in ``ritz().values``.
        """
        ritz = self.ritz()
        S = ritz.coordinates[:, keep]
        self.basis.compress(S)
        self.T = np.diag(ritz.values[keep])
        self._coupling = S.T @ self._coupling
        self._dropped = np.abs(S.T) @ self._dropped

    def ritz(self) -> Ritz:
        """Eigenpairs of the projected matrix with their bounds."""
        values, S = np.linalg.eigh(self.T)
        bounds = np.abs(self._coupling @ S) + self._dropped @ np.abs(S) + self.rounding
        return Ritz(values=values, coordinates=S, bounds=bounds)

    def leading_ritz(self, steps: int) -> Ritz:
        """Eigenpairs of the projection on the first ``steps`` vectors; bounds, which nobody kept, are infinite."""
        values, S = np.linalg.eigh(self.T[:steps, :steps])
        return Ritz(values=values, coordinates=S, bounds=np.full(len(values), np.inf))

    def _begin_block(self) -> None:
        self.blocks += 1
        self.block_steps = 0
        fresh, _ = self.basis.orthogonalise(self._draw())
        self._next = self._unit(fresh)

    def _border(self, row: Float[np.ndarray, " j"]) -> None:
        """Add the inner products of the last vector's product with the basis to T."""
        j = len(self)
        if self.blocks == 1:
            # Exact arithmetic has only these; what else was found is rounding.
            row[:-1] = self._coupling
        T = np.zeros((j, j))
        T[:-1, :-1] = self.T
        T[-1], T[:, -1] = row, row
        self.T = T
        self._dropped = np.append(self._dropped, 0.0)

    def _unit(self, v: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        return v / float(self.operator.dots.norm(v))
