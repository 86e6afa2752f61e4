"""Numbers of things: whole ones alone, since a float would be cut, or refused by torch without the name of the argument."""

from __future__ import annotations

from numbers import Integral

from theodolite.errors import OperatorError


def refuse_fractions(**counts: object) -> None:
    """Raise if a count is no whole number; None, where it is allowed, is left to the caller.

    Raises:
        OperatorError: one is not.
    """
    for name, count in counts.items():
        if count is not None and (isinstance(count, bool) or not isinstance(count, Integral)):
            hint = f" Write {name}={int(count)}." if isinstance(count, float) and count.is_integer() else ""
            raise OperatorError(
                f"Expected {name} to be a whole number, found the {type(count).__name__} {count!r}.{hint}"
            )
