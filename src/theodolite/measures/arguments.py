"""What is to be measured, and what trains it, refused where they are something else."""

from __future__ import annotations

from torch.optim import Optimizer

from theodolite.errors import ProblemError
from theodolite.linalg import LinearOperator
from theodolite.problem import Problem
from theodolite.problem.arguments import shown


def surveyed(problem: object) -> None:
    """That what is to be surveyed is a problem.

    Raises:
        ProblemError: it is something else, such as the model.
    """
    if isinstance(problem, LinearOperator):
        raise ProblemError(
            f"Expected a Problem, found the operator {problem!r}. Pass the problem that it was made of, with operator='ggn', "
            "'hessian' or 'covariance'; the spectrum of a Fisher is fisher_spectrum(problem, kind=...), and that of any operator "
            "theodolite.linalg.lanczos(operator, k=5), its trace theodolite.linalg.hutchinson(operator, probes=32)."
        )
    if not isinstance(problem, Problem):
        raise ProblemError(
            f"Expected a Problem, found {shown(problem)}. Make one: Problem(model, criterion, batches), or Problem.from_loss."
        )


def optimises(optimizer: object) -> None:
    """That what is to be read is an optimiser.

    Raises:
        ProblemError: it is something else, such as the model.
    """
    if not isinstance(optimizer, Optimizer):
        raise ProblemError(
            f"Expected the torch.optim.Optimizer of the problem's model, found {shown(optimizer)}. The signature is "
            "(problem, optimizer)."
        )
