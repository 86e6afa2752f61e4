"""Linear systems with a positive definite operator by conjugate gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from theodolite.errors import NonFiniteError, OperatorError
from theodolite.linalg import vectors
from theodolite.linalg.operator import LinearOperator, finite_product

DEFAULT_STEPS = 500
LEAST_GAIN = 0.5  # a restart from the true residual that gains less has met rounding


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Solution:
    """A solution of A x = b with how far to trust it.

    Args:
        x: the solution, in the shape of b.
        residual: ‖b − Ax‖ / ‖b‖ of each right-hand side, recomputed with one more product; float64 on the CPU.
        residuals: the same after each step as the recursion sees it; the first row is before any step.
        converged: whether ``residual`` is at most the tolerance.
        negative_curvature: whether a direction with pᵀAp ≤ 0 was met; x is the iterate before it.
        products: operator-vector products, one for each right-hand side in a block.
        message: how it ended, in words.
    """

    x: Float[Tensor, "n *k"]
    residual: Float[Tensor, "*k"]
    residuals: Float[Tensor, "s *k"]
    converged: Bool[Tensor, "*k"]
    negative_curvature: Bool[Tensor, "*k"]
    products: int
    message: str


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
    refuse_misfits(A, b, tol=tol, x0=x0, preconditioner=preconditioner)
    columns = b.shape[1] if b.ndim == 2 else 1
    limit = product_limit(columns, max_products)
    # With ‖b‖ = 1 residuals are relative, and their squares cannot underflow.
    norms = vectors.norm(b).reshape(1, columns)
    scale = torch.where(norms > 0, norms, 1.0).to(b)
    start = None if x0 is None else torch.where(norms > 0, x0.reshape(-1, columns), 0.0) / scale
    run = _Run(A, b.reshape(-1, columns) / scale, start=start, tol=tol, preconditioner=preconditioner)
    while run.active and run.products + 2 * len(run.active) <= limit:
        run.step()
    run.give_up()
    shape = b.shape[1:]
    return Solution(
        x=(run.X * scale).reshape(b.shape),
        residual=run.residual.reshape(shape),
        residuals=torch.stack(run.history).reshape(-1, *shape),
        converged=(run.residual <= tol).reshape(shape),
        negative_curvature=run.negative.reshape(shape),
        products=run.products,
        message="; ".join(f"column {i}: {fate}" if columns > 1 else fate for i, fate in enumerate(run.fates)),
    )


@final
class _Run:
    """A block of conjugate gradient runs that share products; a column that ends drops out.

    Each column that ends has had its true residual computed, and every step leaves the products for that.
    """

    def __init__(
        self,
        A: LinearOperator,
        B: Float[Tensor, "n k"],
        *,
        start: Float[Tensor, "n k"] | None,
        tol: float,
        preconditioner: LinearOperator | None,
    ) -> None:
        columns = B.shape[1]
        self._A, self._B, self._tol, self._preconditioner = A, B, tol, preconditioner
        self.X = torch.zeros_like(B) if start is None else start.clone()
        self.products = 0
        self.active = list(range(columns))
        self.fates = [""] * columns
        self.negative = torch.zeros(columns, dtype=torch.bool)
        self.residual = vectors.norm(B).cpu()
        self._R = B.clone()
        self._P = torch.zeros_like(B)
        self._rho = torch.ones_like(B[0])
        self._is_true = torch.full((columns,), start is None)  # whether R is b − Ax and not the recursion's
        self._last_true = torch.full((columns,), math.inf, dtype=torch.float64)
        self._judge(self.active)
        self.history = [self.residual.clone()]
        self._turn()

    def step(self) -> None:
        """One step of every active column."""
        tried = self.active
        P = self._P[:, tried]
        AP = finite_product(self._A, P, before=self.products)
        self.products += len(tried)
        curvature = vectors.dot(P, AP)
        upward = curvature > 0
        for i, unit in zip(tried, (curvature.double() / vectors.norm(P) ** 2).tolist(), strict=True):
            self.negative[i] = unit <= 0
            if unit <= 0:
                self._end([i], f"negative or zero curvature, pᵀAp/pᵀp = {unit:.3g}")
        moving = self.active
        lengths = self._rho[moving] / curvature[upward]
        self.X[:, moving] += lengths * P[:, upward]
        self._R[:, moving] -= lengths * AP[:, upward]
        self._is_true[moving] = False
        self.residual[moving] = vectors.norm(self._R[:, moving]).cpu()
        self._judge([i for i in moving if self.residual[i] <= self._tol])
        self.history.append(self.residual.clone())
        self._turn()

    def give_up(self) -> None:
        """End what is still active."""
        self._end(self.active, "not converged when the products were spent")

    def _judge(self, columns: list[int]) -> None:
        """End columns whose true residual is small, or no longer falls; start the others afresh from it."""
        self._make_true(columns)
        for i in columns:
            if self.residual[i] <= self._tol:
                self._end([i], "converged")
            elif self.residual[i] > LEAST_GAIN * self._last_true[i]:
                self._end(
                    [i], f"stagnated, {str(self._B.dtype).removeprefix('torch.')} allows no smaller residual here"
                )
            self._last_true[i] = self.residual[i]
            self._P[:, i] = 0.0

    def _make_true(self, columns: list[int]) -> None:
        stale = [i for i in columns if not self._is_true[i]]
        if stale:
            self._R[:, stale] = self._B[:, stale] - finite_product(self._A, self.X[:, stale], before=self.products)
            self.products += len(stale)
            self.residual[stale] = vectors.norm(self._R[:, stale]).cpu()
            self._is_true[stale] = True

    def _end(self, columns: list[int], fate: str) -> None:
        self._make_true(columns)
        for i in columns:
            self.fates[i] = f"{fate}: relative residual {float(self.residual[i]):.3g}"
        self.active = [i for i in self.active if i not in columns]

    def _turn(self) -> None:
        """New directions: the preconditioned residuals, conjugate to the directions before."""
        R = self._R[:, self.active]
        Z = R if self._preconditioner is None or not self.active else self._preconditioner @ R
        rho = vectors.dot(R, Z)
        self._P[:, self.active] = Z + rho / self._rho[self.active] * self._P[:, self.active]
        self._rho[self.active] = rho
        for i, square in zip(list(self.active), rho.tolist(), strict=True):
            if not square > 0:
                self._end([i], f"the preconditioner M is not positive definite, rᵀMr = {square:.3g}")


def product_limit(columns: int, max_products: int | None) -> int:
    """How many products there may be, enough for a step and a check of each right-hand side."""
    limit = DEFAULT_STEPS * columns if max_products is None else max_products
    if limit < 2 * columns:
        raise OperatorError(
            f"{columns} right-hand sides take at least {2 * columns} products, a step and a check each, "
            f"found max_products={max_products}."
        )
    return limit


def refuse_misfits(
    A: LinearOperator, b: Tensor, *, tol: float, x0: Tensor | None, preconditioner: LinearOperator | None
) -> None:
    """Raise if the system cannot be solved with a symmetric solver."""
    if not A.symmetric:
        raise OperatorError(f"The solvers need a symmetric operator, {A!r} does not claim to be.")
    if preconditioner is not None and (preconditioner.shape != A.shape or not preconditioner.symmetric):
        raise OperatorError(f"The preconditioner of {A!r} is symmetric and of its shape, found {preconditioner!r}.")
    if not tol > 0:
        raise OperatorError(f"tol is a positive relative residual, found {tol}.")
    for name, block in (("b", b), ("x0", b if x0 is None else x0)):
        if block.ndim not in (1, 2) or block.shape[0] != A.shape[0] or block.shape != b.shape:
            raise OperatorError(
                f"{name} has the shape ({A.shape[0]},) or ({A.shape[0]}, k) for {A!r}, and x0 that of b; "
                f"found {tuple(block.shape)}."
            )
        if block.dtype != A.dtype or block.device != A.device:
            raise OperatorError(f"{name} is {block.dtype} on {block.device}, {A!r} is not; convert it.")
        if not bool(torch.isfinite(block).all()):
            raise NonFiniteError(f"{name} has {int((~torch.isfinite(block)).sum())} entries that are NaN or infinite.")
