"""The base of operators with rows of their own for each chunk of the data."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from theodolite.errors import OperatorError
from theodolite.operators.problem_operator import ProblemOperator
from theodolite.operators.subject import refuse_no_problem
from theodolite.problem import Problem


class StackedOperator(ProblemOperator):
    """An operator whose products are those of its chunks, one below the other in the order of the data."""

    def by_chunk(
        self, V: Float[Tensor, "n k"]
    ) -> tuple[Float[Tensor, "n k"], Float[Tensor, "c k"], Float[Tensor, " c"]]:
        """Not defined: there is no sum over chunks that one of them could be left out of.

        Raises:
            OperatorError: always.
        """
        raise OperatorError(
            f"Leaving chunks out in turn needs an operator that sums over them, found {self!r}, whose rows belong to chunks. "
            "Use the Hessian or the GGN."
        )

    def _combined(self, products: Iterator[Float[Tensor, "k m"]], rows: Float[Tensor, "k n"]) -> Float[Tensor, "k m"]:
        return torch.cat(list(products), dim=1)


def refuse_sharded(problem: Problem) -> None:
    """Raise if the data is sharded by rank, so that no rank has the rows of all samples.

    Raises:
        OperatorError: it is.
    """
    refuse_no_problem(problem, operator="Jacobian")
    if problem.ranks.size > 1:
        raise OperatorError(
            f"Expected all data in one process for rows of every sample, found it sharded over {problem.ranks.size} ranks. "
            "Survey it on one rank (group=None), or use the Hessian or the GGN, which are summed over ranks."
        )
