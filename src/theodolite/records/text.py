"""How records word numbers."""

from __future__ import annotations

import math

from theodolite.records.estimate import Estimate

_SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


def number(value: float) -> str:
    """Four significant digits."""
    return f"{value:.4g}"


def with_error(value: float, stderr: float, *, source: str = "") -> str:
    """A value with its error and where that comes from; the value alone where the error is not known."""
    if math.isnan(stderr):
        return number(value)
    return f"{Estimate(value, stderr)}{f' ({source})' if source else ''}"


def or_exact(value: float, stderr: float, *, source: str) -> str:
    """A value with its error, or said to be exact where that is zero."""
    return f"{number(value)} (exact)" if stderr == 0 else with_error(value, stderr, source=source)


def subscript(index: int) -> str:
    """An index in subscript digits."""
    return str(index).translate(_SUBSCRIPTS)


def plural(count: int, noun: str) -> str:
    """A count with its noun."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
