"""Arguments of a problem that are something else, refused before they fail deep inside."""

from __future__ import annotations

from numbers import Integral

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


def refuse_no_count(value: object, *, name: str) -> None:
    """Raise if a number is not whole.

    Raises:
        ProblemError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ProblemError(f"Expected {name} to be a whole number, found {shown(value)}.")


def shown(value: object) -> str:
    """A short value as the caller wrote it, of others the type."""
    text = repr(value)
    return f"{type(value).__name__} {text}" if len(text) <= 40 and "\n" not in text else f"a {type(value).__name__}"
