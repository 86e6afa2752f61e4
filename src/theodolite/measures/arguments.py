"""Arguments of the wrong type, refused before anything is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from numbers import Integral, Real

from torch.optim import Optimizer

from theodolite.errors import ProblemError
from theodolite.problem import Problem


def surveyed(problem: object) -> None:
    """That what is to be surveyed is a problem.

    Raises:
        ProblemError: it is something else, such as the model.
    """
    if not isinstance(problem, Problem):
        raise ProblemError(
            f"Expected a Problem, found {_shown(problem)}. Make one: Problem(model, criterion, batches), or Problem.from_loss."
        )


def optimises(optimizer: object) -> None:
    """That what is to be read is an optimiser.

    Raises:
        ProblemError: it is something else, such as the model.
    """
    if not isinstance(optimizer, Optimizer):
        raise ProblemError(
            f"Expected the torch.optim.Optimizer of the problem's model, found {_shown(optimizer)}. The signature is "
            "(problem, optimizer)."
        )


def whole(**values: object) -> None:
    """That arguments are whole numbers: a float would be cut, or refused by torch without the name of the argument.

    Raises:
        ProblemError: one is not.
    """
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise ProblemError(f"Expected {name} to be a whole number, found {_shown(value)}.")


def real(**values: object) -> None:
    """That arguments are numbers.

    Raises:
        ProblemError: one is not.
    """
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Real):
            raise ProblemError(f"Expected {name} to be a number, found {_shown(value)}.")


def optional(kind: Callable[..., None], **values: object) -> None:
    """That arguments are of one kind where they are not None.

    Args:
        kind: ``whole``, ``real`` or ``optimises``.
        values: the arguments by name.
    """
    for name, value in values.items():
        if value is not None:
            kind(**{name: value})


def several(kind: Callable[..., None], **values: object) -> None:
    """That arguments are sequences of numbers of one kind.

    Args:
        kind: ``whole`` or ``real``.
        values: the arguments by name.

    Raises:
        ProblemError: one is a single number, or has an entry that is none.
    """
    for name, value in values.items():
        if isinstance(value, str) or not isinstance(value, Iterable):
            hint = f" Write {name}=({value},)." if isinstance(value, Real) else ""
            raise ProblemError(f"Expected {name} to be a sequence of numbers, found {_shown(value)}.{hint}")
        for place, entry in enumerate(value):
            kind(**{f"{name}[{place}]": entry})


def one_or_several(kind: Callable[..., None], **values: object) -> None:
    """That arguments are numbers of one kind or sequences of them."""
    for name, value in values.items():
        several(kind, **{name: value}) if isinstance(value, Iterable) else kind(**{name: value})


def _shown(value: object) -> str:
    """A value as the caller wrote it, with its type; of large objects the type alone."""
    shown = repr(value) if isinstance(value, str | Real | None | list | tuple) else ""
    kind = "None" if value is None else f"the {type(value).__name__} {shown}".rstrip()
    return kind if len(kind) <= 80 else f"a {type(value).__name__}"
