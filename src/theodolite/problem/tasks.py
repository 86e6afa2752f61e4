"""The same model and data under several losses."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from theodolite.errors import ProblemError
from theodolite.problem.arguments import refuse_no_function
from theodolite.problem.criteria import recognise
from theodolite.problem.objective import CriterionObjective, LossObjective

if TYPE_CHECKING:
    from theodolite.problem.problem import Problem


def tasks_of(problem: Problem, tasks: Mapping[str, Callable[..., Any]]) -> dict[str, Problem]:
    """A problem for each task, with the model, parameters, data and options of the given one and a loss of its own.

    Args:
        problem: what the tasks share; its own loss is none of them unless named.
        tasks: by name, criteria of (outputs, targets) for a problem with a criterion, which take what they need of the outputs
            and of the targets; functions of (model, batch) for one made by ``Problem.from_loss``.

    Raises:
        ProblemError: there is no task, or one is no function.

    Example:
        >>> import torch
        >>> from theodolite.problem import Problem
        >>> batches = [(torch.randn(8, 3), torch.randn(8, 2))]
        >>> problem = Problem(torch.nn.Linear(3, 2), torch.nn.MSELoss(), batches)
        >>> tasks = {
        ...     "height": lambda outputs, targets: torch.nn.functional.mse_loss(outputs[:, 0], targets[:, 0]),
        ...     "weight": lambda outputs, targets: torch.nn.functional.mse_loss(outputs[:, 1], targets[:, 1]),
        ... }
        >>> parts = tasks_of(problem, tasks)
        >>> abs(parts["height"].loss() + parts["weight"].loss() - 2 * problem.loss()) < 1e-6
        True
    """
    if not tasks:
        raise ProblemError("Expected tasks by name, such as {'depth': criterion, …}, found none.")
    for name, task in tasks.items():
        refuse_no_function(task, name=f"task {name!r}", example="nn.MSELoss()")
    return {name: _with_loss(problem, task) for name, task in tasks.items()}


def _with_loss(problem: Problem, task: Callable[..., Any]) -> Problem:
    other = copy.copy(problem)
    by_outputs = isinstance(problem.objective, CriterionObjective)
    other.objective = CriterionObjective(recognise(task)) if by_outputs else LossObjective(task)
    other._depth = 0
    # Checks and certificates are those of a loss.
    return other.replace()
