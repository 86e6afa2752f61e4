"""An operator on vectors of which every rank holds a slice, so that ranks share the memory of a Krylov space."""

from __future__ import annotations

from typing import Any, final

from jaxtyping import Float
from torch import Tensor

from theodolite.errors import OperatorError
from theodolite.linalg.operator import LinearOperator, refuse_sharded
from theodolite.linalg.vectors import Dots


@final
class Sharded(LinearOperator):
    """A square operator on slices: rank r of a group holds and gets part r of every vector.

    ``lanczos``, ``decompose``, ``slq``, ``hutchinson``, ``hutchpp``, ``diagonal``, ``funm_multiply``, ``cg`` and ``minres`` run
    on it as on the operator itself, with bases, solutions and eigenvectors in slices and all inner products summed over ranks;
    every rank makes the same calls, and gets the same numbers. Random vectors are those of one rank. The ``memory`` that they
    are given is that of each rank.

    Cost: a product gathers its vectors, so that some whole vectors pass through each rank.

    Args:
        operator: takes and gives whole vectors, the same on every rank, such as the Hessian of a data-parallel problem.
        group: a process group of torch.distributed.

    Attributes:
        dots: where the slice of this rank lies (``own``), and inner products over ranks.

    Raises:
        OperatorError: the operator is not square, is sharded already, or has fewer rows than there are ranks.
    """

    def __init__(self, operator: LinearOperator, group: Any) -> None:
        refuse_sharded(operator, what="Sharded", way_out="it has slices already")
        m, n = operator.shape
        dots = Dots(group, size=n)
        if m != n or n < len(dots.lengths):
            raise OperatorError(
                f"Sharded over {len(dots.lengths)} ranks is a square operator with as many rows or more, found {operator!r}."
            )
        here = dots.own.stop - dots.own.start
        super().__init__(
            shape=(here, here), dtype=operator.dtype, device=operator.device, symmetric=operator.symmetric, dots=dots
        )
        self.operator = operator

    def _matmat(self, V: Float[Tensor, "n k"]) -> Float[Tensor, "m k"]:
        return (self.operator @ self.dots.gather(V))[self.dots.own]

    def _expression(self) -> str:
        return f"{self.operator._expression()}, part of {self.size}"
