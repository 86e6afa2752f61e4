"""The same model and data under several losses."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch.nn import functional, modules

from theodolite.errors import ProblemError
from theodolite.problem.arguments import refuse_no_function, shown
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
    if not isinstance(tasks, Mapping):
        raise ProblemError(f"Expected tasks by name, {{'depth': criterion, …}}, found {shown(tasks)}.")
    if not tasks:
        raise ProblemError("Expected tasks by name, such as {'depth': criterion, …}, found none.")
    for name, task in tasks.items():
        refuse_no_function(task, name=f"task {name!r}", example="nn.MSELoss()")
        _refuse_criterion(problem, task, name)
    return {name: _with_loss(problem, task) for name, task in tasks.items()}


def _refuse_criterion(problem: Problem, task: Callable[..., Any], name: str) -> None:
    """Raise if a criterion of torch is to be called on (model, batch)."""
    of_torch = isinstance(task, modules.loss._Loss) or getattr(task, "__module__", "") == functional.__name__
    if of_torch and not isinstance(problem.objective, CriterionObjective):
        found = getattr(task, "__name__", type(task).__name__)
        raise ProblemError(
            f"Expected task {name!r} to be a function of (model, batch), as the problem is made by Problem.from_loss, found the "
            f"criterion {found} of (outputs, targets). Write lambda model, batch: {found}(…), or make Problem(model, criterion, "
            "batches)."
        )


def _with_loss(problem: Problem, task: Callable[..., Any]) -> Problem:
    other = copy.copy(problem)
    by_outputs = isinstance(problem.objective, CriterionObjective)
    other.objective = CriterionObjective(recognise(task)) if by_outputs else LossObjective(task)
    other._depth = 0
    # Checks and certificates are those of a loss.
    return other.replace()
