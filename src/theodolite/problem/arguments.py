"""Arguments of the wrong type, refused before anything is measured and before they fail deep inside."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from numbers import Integral, Real

from torch import nn

from theodolite.errors import ProblemError


def refuse_no_model(model: object) -> None:
    """Raise if what is to be surveyed is no module.

    Raises:
        ProblemError: it is not.
    """
    if not isinstance(model, nn.Module):
        raise ProblemError(
            f"Expected a model that is an nn.Module, found {shown(model)}. The order is Problem(model, criterion, batches); a "
            "function of tensors becomes a model as the forward of a module that holds its parameters."
        )


def refuse_no_function(function: object, *, name: str, example: str) -> None:
    """Raise if a criterion or a loss function cannot be called on a batch.

    Args:
        function: what was given.
        name: of the argument.
        example: what could have been given.

    Raises:
        ProblemError: it is a name, a class, or no function at all.
    """
    if isinstance(function, type):
        raise ProblemError(
            f"Expected {name} to be a function or a loss module, found the class {function.__name__}. Make one of it: "
            f"{function.__name__}()."
        )
    if not callable(function):
        raise ProblemError(
            f"Expected {name} to be a function or a loss module, found {shown(function)}. Pass the function itself, e.g. {example}."
        )


def whole(**values: object) -> None:
    """That arguments are whole numbers: a float would be cut, or refused by torch without the name of the argument.

    Raises:
        ProblemError: one is not.
    """
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise ProblemError(f"Expected {name} to be a whole number, found {shown(value)}.")


def real(**values: object) -> None:
    """That arguments are numbers.

    Raises:
        ProblemError: one is not.
    """
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Real):
            raise ProblemError(f"Expected {name} to be a number, found {shown(value)}.")


def optional(kind: Callable[..., None], **values: object) -> None:
    """That arguments are of one kind where they are not None.

    Args:
        kind: ``whole`` or ``real``, or another check of this form.
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
            raise ProblemError(f"Expected {name} to be a sequence of numbers, found {shown(value)}.{hint}")
        for place, entry in enumerate(value):
            kind(**{f"{name}[{place}]": entry})


def one_or_several(kind: Callable[..., None], **values: object) -> None:
    """That arguments are numbers of one kind or sequences of them."""
    for name, value in values.items():
        several(kind, **{name: value}) if isinstance(value, Iterable) else kind(**{name: value})


def shown(value: object) -> str:
    """A short value as the caller wrote it, with its type; of others the type alone."""
    if value is None:
        return "None"
    text = repr(value) if isinstance(value, str | Real | list | tuple) else ""
    return f"the {type(value).__name__} {text}" if text and len(text) <= 40 else f"a {type(value).__name__}"
