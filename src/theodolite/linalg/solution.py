"""What a linear solver returns, and the run that conjugate gradients and minimal residuals share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from theodolite.errors import NonFiniteError, OperatorError
from theodolite.linalg.counts import refuse_fractions
from theodolite.linalg.operator import LinearOperator, finite_product
from theodolite.linalg.precision import widened

DEFAULT_STEPS = 500
NAMED = 3  # columns whose end a message tells one by one
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

    def __repr__(self) -> str:
        size = "×".join(map(str, self.x.shape))
        converged = f"{int(self.converged.sum())} of {self.converged.numel()} converged"
        return f"<Solution: {size}, residual ≤ {float(self.residual.max()):.3g}, {converged}, {self.products} products>"


class Run(ABC):
    """A block of iterations that share products, one for each right-hand side; a column that ends drops out.

    Each column that ends has had its true residual computed, and every step leaves the products for that.

    Args:
        A: symmetric.
        B: right-hand sides of length one, or zero, one a column.
        start: first iterates; None for zero.
        tol: relative residual to reach.
        preconditioner: symmetric positive definite, or None.
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
        self.residual = A.dots.norm(B).cpu()
        self.history: list[Tensor] = []
        self._R = B.clone()
        self._is_true = torch.full((columns,), start is None)  # whether R is b − Ax and not the recursion's
        self._last_true = torch.full((columns,), math.inf, dtype=torch.float64)

    @abstractmethod
    def step(self) -> None:
        """One step of every active column, and a row of the history."""

    @abstractmethod
    def _restart(self, columns: list[int]) -> None:
        """Forget the directions of columns that go on from their true residual."""

    def judge(self, columns: list[int]) -> None:
        """End columns whose true residual is small, or no longer falls; start the others afresh from it."""
        self._make_true(columns)
        for i in columns:
            stuck = self.residual[i] > LEAST_GAIN * self._last_true[i]
            self._last_true[i] = self.residual[i]
            if self.residual[i] <= self._tol:
                self.end([i], "converged")
            elif stuck:
                dtype = str(self._B.dtype).removeprefix("torch.")
                self.end([i], f"stagnated, {dtype} or a singular operator allows no smaller residual here")
        fresh = [i for i in columns if i in self.active]
        if fresh:
            self._restart(fresh)

    def end(self, columns: list[int], fate: str) -> None:
        """Columns that stop, with their true residual."""
        self._make_true(columns)
        for i in columns:
            self.fates[i] = f"{fate}: relative residual {float(self.residual[i]):.3g}"
        self.active = [i for i in self.active if i not in columns]

    def note(self) -> None:
        """A row of the history."""
        self.history.append(self.residual.clone())

    def _moved(self, columns: list[int]) -> None:
        """The residual of columns is now the recursion's."""
        self._is_true[columns] = False
        self.residual[columns] = self._A.dots.norm(self._R[:, columns]).cpu()

    def _make_true(self, columns: list[int]) -> None:
        stale = [i for i in columns if not self._is_true[i]]
        if stale:
            self._R[:, stale] = self._B[:, stale] - finite_product(self._A, self.X[:, stale], before=self.products)
            self.products += len(stale)
            self.residual[stale] = self._A.dots.norm(self._R[:, stale]).cpu()
            self._is_true[stale] = True


def solve(
    run_of: type[Run],
    A: LinearOperator,
    b: Float[Tensor, "n *k"],
    *,
    tol: float,
    max_products: int | None,
    x0: Float[Tensor, "..."] | None,
    preconditioner: LinearOperator | None,
) -> Solution:
    """Solve A x = b by one kind of run, as ``cg`` and ``minres`` state it."""
    _refuse_misfits(A, b, tol=tol, x0=x0, preconditioner=preconditioner)
    columns = b.shape[1] if b.ndim == 2 else 1
    limit = _product_limit(columns, max_products)
    # With ‖b‖ = 1 residuals are relative, and their squares cannot underflow.
    A, M = widened(A), None if preconditioner is None else widened(preconditioner)
    norms = A.dots.norm(b).reshape(1, columns)
    scale = torch.where(norms > 0, norms, 1.0).to(A.dtype)
    start = None if x0 is None else torch.where(norms > 0, x0.reshape(-1, columns), 0.0) / scale
    run = run_of(A, b.reshape(-1, columns) / scale, start=start, tol=tol, preconditioner=M)
    run.judge(run.active)
    run.note()
    while run.active and run.products + 2 * len(run.active) <= limit:
        run.step()
    run.end(run.active, "not converged when the products were spent")
    shape = b.shape[1:]
    return Solution(
        x=(run.X * scale).reshape(b.shape).to(b),
        residual=run.residual.reshape(shape),
        residuals=torch.stack(run.history).reshape(-1, *shape),
        converged=(run.residual <= tol).reshape(shape),
        negative_curvature=run.negative.reshape(shape),
        products=run.products,
        message=_outcome(run.fates, (run.residual <= tol).tolist()),
    )


def _outcome(fates: Sequence[str], converged: Sequence[bool]) -> str:
    """How the columns ended: a few by name, those that were not solved before the others."""
    if len(fates) == 1:
        return fates[0]
    order = sorted(range(len(fates)), key=lambda i: converged[i])
    named = [f"column {i}: {fates[i]}" for i in order[:NAMED]]
    more = len(fates) - len(named)
    return "; ".join([*named, f"and {more:,} more of {len(fates):,} columns"] if more else named)


def _refuse_misfits(
    A: LinearOperator, b: Tensor, *, tol: float, x0: Tensor | None, preconditioner: LinearOperator | None
) -> None:
    """Raise if the system cannot be solved with a symmetric solver."""
    if not A.symmetric:
        raise OperatorError(f"The solvers need a symmetric operator, {A!r} does not claim to be.")
    if preconditioner is not None and (preconditioner.shape != A.shape or not preconditioner.symmetric):
        raise OperatorError(f"The preconditioner of {A!r} is symmetric and of its shape, found {preconditioner!r}.")
    if preconditioner is not None and preconditioner.dots.group is not A.dots.group:
        raise OperatorError(
            f"{A!r} and its preconditioner {preconditioner!r} are sharded alike: Sharded(preconditioner, group) takes one of "
            "whole vectors."
        )
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
        if not A.dots.is_finite(block):
            bad = int((~torch.isfinite(block)).sum())
            raise NonFiniteError(
                f"{name} has {bad} entries{' here' * (A.dots.group is not None)} that are NaN or infinite."
            )


def _product_limit(columns: int, max_products: int | None) -> int:
    """How many products there may be, enough for a step and a check of each right-hand side."""
    refuse_fractions(max_products=max_products)
    limit = DEFAULT_STEPS * columns if max_products is None else max_products
    if limit < 2 * columns:
        raise OperatorError(
            f"{columns} right-hand sides take at least {2 * columns} products, a step and a check each, "
            f"found max_products={max_products}."
        )
    return limit
