"""Linear systems with a symmetric, perhaps indefinite operator by minimal residuals."""

from __future__ import annotations

from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from theodolite.errors import OperatorError
from theodolite.linalg.basis import NOISE
from theodolite.linalg.operator import LinearOperator, finite_product
from theodolite.linalg.solution import Run, Solution, solve

SCALARS = ("c", "s", "d_bar", "epsilon", "phi", "beta", "beta_before", "size")


def minres(
    A: LinearOperator,
    b: Float[Tensor, "n *k"],
    *,
    tol: float = 1e-6,
    max_products: int | None = None,
    x0: Float[Tensor, "..."] | None = None,
    preconditioner: LinearOperator | None = None,
) -> Solution:
    """Solve A x = b for a symmetric A of any signs.

    Several right-hand sides run side by side, one block product a step; each stops on its own. For positive definite operators
    conjugate gradients are as fast and keep fewer vectors.

    Cost: one product a step and right-hand side, and one at the end to recompute the residual. Four
    vectors for each right-hand side more than ``cg``.

    Args:
        A: symmetric.
        b: right-hand sides, one (n,) or several as columns (n, k).
        tol: ‖b − Ax‖ / ‖b‖ to reach.
        max_products: stop after so many; None allows 500 for each right-hand side.
        x0: where to start, zero by default.
        preconditioner: a symmetric positive definite approximation of |A|⁻¹.

    Returns:
        The solution, in which ``negative_curvature`` says whether a Lanczos vector with vᵀAv ≤ 0 was met. Not converging is
        reported in it, not raised; where A is singular and b is not in its range no residual is small.

    Raises:
        OperatorError: A is not symmetric, or b, x0, tol or the preconditioner do not fit.
        NonFiniteError: b, x0 or a product is not finite.

    Example:
        >>> import torch
        >>> from theodolite.linalg import Diagonal, minres
        >>> A = Diagonal(torch.tensor([1.0, -2.0, 4.0], dtype=torch.float64))
        >>> solution = minres(A, torch.ones(3, dtype=torch.float64), tol=1e-12)
        >>> [round(value, 9) for value in solution.x.tolist()], bool(solution.converged)
        ([1.0, -0.5, 0.25], True)

    References:
        Paige, Saunders (1975), Solution of sparse indefinite systems of linear equations.
    """
    return solve(_Run, A, b, tol=tol, max_products=max_products, x0=x0, preconditioner=preconditioner)


@final
class _Run(Run):
    """Minimal residuals; scalars of the recursion are float64 rows of ``_s``, one column for each right-hand side."""

    def __init__(self, A: LinearOperator, B: Float[Tensor, "n k"], **options: Any) -> None:
        super().__init__(A, B, **options)
        # Lanczos vectors before scaling, and M times the last.
        self._old, self._new, self._y = (torch.zeros_like(B) for _ in range(3))
        self._w, self._w_before = torch.zeros_like(B), torch.zeros_like(B)
        self._s = {name: torch.zeros(B.shape[1], dtype=torch.float64, device=B.device) for name in SCALARS}

    def step(self) -> None:
        on, s = self.active, {name: row[self.active] for name, row in self._s.items()}
        v = self._y[:, on] / s["beta"].to(self._y)
        y = finite_product(self._A, v, before=self.products)
        self.products += len(on)
        y = y - _ratio(s["beta"], s["beta_before"]).to(y) * self._old[:, on]
        alpha = self._A.dots.dot(v, y).double()
        self.negative[on] |= (alpha <= 0).cpu()
        y = y - (alpha / s["beta"]).to(y) * self._new[:, on]
        self._old[:, on], self._new[:, on] = self._new[:, on], y
        self._y[:, on], beta = self._preconditioned(y)
        # What is left of y below rounding has no direction: the space has closed.
        size = torch.maximum(s["size"], torch.hypot(alpha, beta))
        floor = NOISE * torch.finfo(y.dtype).eps * size
        beta = torch.where(beta > floor, beta, 0.0)
        delta, gamma_bar = s["c"] * s["d_bar"] + s["s"] * alpha, s["s"] * s["d_bar"] - s["c"] * alpha
        epsilon_before, epsilon, d_bar = s["epsilon"], s["s"] * beta, -s["c"] * beta
        # Where the closed space is singular, its last direction has no solution.
        gamma = torch.where((beta > 0) | (gamma_bar.abs() > floor), torch.hypot(gamma_bar, beta), 0.0)
        c, sine = _ratio(gamma_bar, gamma), _ratio(beta, gamma)
        w = (v - epsilon_before.to(v) * self._w_before[:, on] - delta.to(v) * self._w[:, on]) * _ratio(
            torch.ones_like(gamma), gamma
        ).to(v)
        self._w_before[:, on], self._w[:, on] = self._w[:, on], w
        self.X[:, on] += (c * s["phi"]).to(w) * w
        phi = sine * s["phi"]
        # The residual itself, because with a preconditioner φ is its length in another norm.
        self._R[:, on] = (sine**2).to(w) * self._R[:, on] - _ratio(phi * c, beta).to(w) * y
        self._store(on, c=c, s=sine, d_bar=d_bar, epsilon=epsilon, phi=phi, beta=beta, beta_before=s["beta"], size=size)
        self._moved(on)
        ended = ((beta == 0) | (gamma == 0)).cpu()
        self.judge([i for i, closed in zip(on, ended.tolist(), strict=True) if closed or self.residual[i] <= self._tol])
        self.note()

    def _restart(self, columns: list[int]) -> None:
        R = self._R[:, columns]
        self._y[:, columns], beta = self._preconditioned(R)
        for block in (self._old, self._w, self._w_before):
            block[:, columns] = 0.0
        self._new[:, columns] = R
        zero = torch.zeros_like(beta)
        self._store(
            columns, c=zero - 1, s=zero, d_bar=zero, epsilon=zero, phi=beta, beta=beta, beta_before=zero, size=zero
        )

    def _preconditioned(self, R: Float[Tensor, "n a"]) -> tuple[Float[Tensor, "n a"], Float[Tensor, " a"]]:
        """M R, and the lengths of R in the norm of M."""
        if self._preconditioner is None:
            return R, self._A.dots.norm(R)
        MR = self._preconditioner @ R
        squares = self._A.dots.dot(R, MR).double()
        if bool((squares < 0).any()):
            raise OperatorError(
                f"The preconditioner M is positive definite, {self._preconditioner!r} has rᵀMr = {float(squares.min()):.3g}."
            )
        return MR, squares.sqrt()

    def _store(self, columns: list[int], **scalars: Float[Tensor, " a"]) -> None:
        for name, row in scalars.items():
            self._s[name][columns] = row


def _ratio(numerator: Float[Tensor, " a"], denominator: Float[Tensor, " a"]) -> Float[Tensor, " a"]:
    """Their quotient, 0 where the denominator is."""
    return torch.where(denominator == 0, 0.0, numerator / torch.where(denominator == 0, 1.0, denominator))
