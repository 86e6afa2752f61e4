"""What an operator is made of."""

from __future__ import annotations

from theodolite.errors import ProblemError
from theodolite.problem import Problem
from theodolite.problem.arguments import shown


def refuse_no_problem(problem: object, *, operator: str) -> None:
    """Raise if an operator is asked of something else than a problem, such as the model.

    Raises:
        ProblemError: it is.
    """
    if not isinstance(problem, Problem):
        raise ProblemError(
            f"Expected a Problem, found {shown(problem)}. Make one of model, criterion and data: "
            f"{operator}(Problem(model, criterion, batches)), or Problem.from_loss for any other loss."
        )
