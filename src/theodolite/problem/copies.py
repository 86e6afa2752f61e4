"""The same problem on a model of its own, which may be written to, or on other data."""

from __future__ import annotations

import copy
from typing import Any

from theodolite.errors import ProblemError
from theodolite.problem.data import Batches
from theodolite.problem.problem import Problem


def on_copy(problem: Problem) -> Problem:
    """The problem on a copy of its model, in the type that it computes in; criterion and data are shared.

    What is written to the copy, the user's model never sees.

    Cost: the memory of one model.

    Args:
        problem: whose model is copied.

    Raises:
        ProblemError: the model cannot be copied.
    """
    other = problem.replace()
    try:
        other.model = copy.deepcopy(problem.model)
    except Exception as error:
        raise ProblemError(
            f"Expected a model that can be copied, as paths between checkpoints need one to write to, found "
            f"{type(problem.model).__name__}, of which copy.deepcopy fails: {error}. Build the model without tensors that "
            "are results of others, such as weights made by the older weight norm hook."
        ) from error
    if problem.cast is not None:
        other.model.to(problem.cast)
    named = dict(other.model.named_parameters())
    other._selected = {name: named[name] for name in problem.layout.names}
    return other


def on_data(problem: Problem, batches: list[Any]) -> Problem:
    """The problem on other data, which are checked on the next pass.

    Args:
        problem: whose model, criterion and options stay.
        batches: of the form of its own.
    """
    other = problem.replace()
    other.batches = Batches(batches)
    return other
