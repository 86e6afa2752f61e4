"""Linear systems with a positive definite operator by conjugate gradients."""

from __future__ import annotations

from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from theodolite.linalg.operator import LinearOperator, finite_product
from theodolite.linalg.solution import Run, Solution, solve


def cg(
    A: LinearOperator,
    b: Float[Tensor, "n *k"],
    *,
    tol: float = 1e-6,
    max_products: int | None = None,
    x0: Float[Tensor, "..."] | None = None,
    preconditioner: LinearOperator | None = None,
) -> Solution:
    """Solve A x = b for a symmetric positive definite A.

    Several right-hand sides run side by side, one block product a step; each stops on its own. A direction of zero or
    negative curvature ends its right-hand side and is reported: damp the operator with ``A.shift`` if that is expected.

    Cost: one product a step and right-hand side, and one at the end to recompute the residual.

    Args:
        A: symmetric.
        b: right-hand sides, one (n,) or several as columns (n, k).
        tol: ‖b − Ax‖ / ‖b‖ to reach.
        max_products: stop after so many; None allows 500 for each right-hand side.
        x0: where to start, zero by default.
        preconditioner: a symmetric positive definite approximation of A⁻¹.

    Returns:
        The solution. Not converging is reported in it, not raised.

    Raises:
        OperatorError: A is not symmetric, or b, x0, tol or the preconditioner do not fit.
        NonFiniteError: b, x0 or a product is not finite.

    Example:
        >>> import torch
        >>> from theodolite.linalg import Diagonal, cg
        >>> A = Diagonal(torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64))
        >>> solution = cg(A, torch.ones(3, dtype=torch.float64), tol=1e-12)
        >>> [round(value, 9) for value in solution.x.tolist()], solution.products
        ([1.0, 0.5, 0.25], 4)

    References:
        Hestenes, Stiefel (1952), Methods of conjugate gradients for solving linear systems.
        Steihaug (1983), The conjugate gradient method and trust regions in large scale optimization.
    """
    return solve(_Run, A, b, tol=tol, max_products=max_products, x0=x0, preconditioner=preconditioner)


@final
class _Run(Run):
    """Conjugate gradients."""

    def __init__(self, A: LinearOperator, B: Float[Tensor, "n k"], **options: Any) -> None:
        super().__init__(A, B, **options)
        self._P = torch.zeros_like(B)
        self._rho = torch.ones_like(B[0])

    def step(self) -> None:
        self._turn()
        tried = self.active
        if not tried:
            return
        P = self._P[:, tried]
        AP = finite_product(self._A, P, before=self.products)
        self.products += len(tried)
        curvature = self._A.dots.dot(P, AP)
        upward = curvature > 0
        for i, unit in zip(tried, (curvature.double() / self._A.dots.norm(P) ** 2).tolist(), strict=True):
            self.negative[i] = unit <= 0
            if unit <= 0:
                self.end([i], f"negative or zero curvature, pᵀAp/pᵀp = {unit:.3g}")
        moving = self.active
        lengths = self._rho[moving] / curvature[upward]
        self.X[:, moving] += lengths * P[:, upward]
        self._R[:, moving] -= lengths * AP[:, upward]
        self._moved(moving)
        self.judge([i for i in moving if self.residual[i] <= self._tol])
        self.note()

    def _restart(self, columns: list[int]) -> None:
        self._P[:, columns] = 0.0

    def _turn(self) -> None:
        """New directions: the preconditioned residuals, conjugate to the directions before."""
        R = self._R[:, self.active]
        Z = R if self._preconditioner is None else self._preconditioner @ R
        rho = self._A.dots.dot(R, Z)
        self._P[:, self.active] = Z + rho / self._rho[self.active] * self._P[:, self.active]
        self._rho[self.active] = rho
        for i, square in zip(list(self.active), rho.tolist(), strict=True):
            if not square > 0:
                self.end([i], f"the preconditioner M is not positive definite, rᵀMr = {square:.3g}")
