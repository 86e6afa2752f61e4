"""The inverse of a damped operator as an operator, by solving at each product."""

from __future__ import annotations

import warnings
from typing import Literal, final

from jaxtyping import Float
from torch import Tensor

from theodolite.errors import NotConvergedWarning, OperatorError
from theodolite.linalg.cg import cg
from theodolite.linalg.minres import minres
from theodolite.linalg.operator import LinearOperator
from theodolite.linalg.solution import Solution

Solver = Literal["cg", "minres"]
SOLVERS = {"cg": cg, "minres": minres}


@final
class Inverse(LinearOperator):
    """(A + δI)⁻¹, one linear system for each vector that it multiplies.

    Cost: products with A until the residual is at most ``tol``, counted in ``products``.

    Args:
        operator: A, symmetric.
        damping: δ.
        tol: relative residual ‖v − (A + δI)x‖ / ‖v‖ of every product.
        solver: ``"cg"`` for a positive definite A + δI, ``"minres"`` for any signs.
        preconditioner: of A + δI, for instance ``deflating(pairs, damping=δ)`` or ``nystrom(A, rank=…, damping=δ)``.
        max_products: for each block that is multiplied; None allows 500 for each vector.

    Raises:
        OperatorError: A is not symmetric, or the solver is unknown.

    A product that does not converge issues a NotConvergedWarning and returns what was reached; ``last`` has the details.

    Example:
        >>> import torch
        >>> from theodolite.linalg import Diagonal, Inverse
        >>> A = Diagonal(torch.tensor([1.0, 3.0], dtype=torch.float64))
        >>> [round(value, 9) for value in (Inverse(A, damping=1.0) @ torch.ones(2, dtype=torch.float64)).tolist()]
        [0.5, 0.25]
    """

    def __init__(
        self,
        operator: LinearOperator,
        *,
        damping: float = 0.0,
        tol: float = 1e-6,
        solver: Solver = "cg",
        preconditioner: LinearOperator | None = None,
        max_products: int | None = None,
    ) -> None:
        if not operator.symmetric:
            raise OperatorError(f"Only a symmetric operator is inverted here, {operator!r} does not claim to be.")
        if solver not in SOLVERS:
            raise OperatorError(f"solver is one of {', '.join(map(repr, SOLVERS))}, found {solver!r}.")
        super().__init__(
            shape=operator.shape, dtype=operator.dtype, device=operator.device, symmetric=True, dots=operator.dots
        )
        self.operator = operator.shift(damping) if damping else operator
        self.products = 0
        self.last: Solution | None = None
        self._tol, self._solver, self._preconditioner = tol, solver, preconditioner
        self._max_products = max_products

    def _matmat(self, V: Float[Tensor, "n k"]) -> Float[Tensor, "m k"]:
        solution = SOLVERS[self._solver](
            self.operator,
            V,
            tol=self._tol,
            max_products=self._max_products,
            preconditioner=self._preconditioner,
        )
        self.products += solution.products
        self.last = solution
        if not bool(solution.converged.all()):
            # _matmat, @, and the caller of @
            warnings.warn(
                f"{self!r} did not reach a residual of {self._tol:g}: {solution.message}. Raise max_products, damp more, "
                "precondition, or take solver='minres' if it is indefinite.",
                NotConvergedWarning,
                stacklevel=3,
            )
        return solution.x

    def _expression(self) -> str:
        return f"({self.operator._expression()})⁻¹"
