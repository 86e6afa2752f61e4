"""Positions along the axes of a line or plane."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from jaxtyping import Float

from theodolite.errors import ProblemError
from theodolite.problem.arguments import real, shown, whole

Number = float | int
Span = tuple[Number, Number]
Spans = Span | tuple[Span, Span]


def positions(points: int, span: Span) -> Float[np.ndarray, " a"]:
    """Increasing positions from one end of a span to the other, 0 among them where the span contains it.

    Both ends and the number of points are as asked. Positions are evenly spaced on each side of 0; the spacing differs
    between the sides where 0 does not fall on an even grid (an even number of points, most asymmetric spans).

    Args:
        points: how many.
        span: first and last position.

    Raises:
        ProblemError: the span does not increase, or there are too few points.
    """
    whole(points=points)
    low, high = _checked(span)
    inside = low < 0 < high
    if points < 2 + inside:
        why = "both ends and 0 between them" if inside else "both ends"
        raise ProblemError(
            f"Expected at least {2 + inside} points for the span ({low:g}, {high:g}), {why}, found {points}."
        )
    if not low <= 0 <= high:
        return np.linspace(low, high, points)
    below = min(max(round((points - 1) * -low / (high - low)), int(low < 0)), points - 1 - int(high > 0))
    above = points - 1 - below
    return np.concatenate([low * _steps(below)[::-1], np.zeros(1), high * _steps(above)])


def both(points: int | tuple[int, int], spans: Spans) -> tuple[Float[np.ndarray, " a"], Float[np.ndarray, " b"]]:
    """Positions along both axes of a plane; one number or span stands for both."""
    numbers = tuple(points) if isinstance(points, tuple | list) else (points, points)
    if len(numbers) != 2:
        raise ProblemError(f"Expected one number of points or two, found {points!r}.")
    first, second = numbers
    low, high = _pair(spans)
    if isinstance(low, tuple | list) and isinstance(high, tuple | list):
        return positions(first, cast(Span, low)), positions(second, cast(Span, high))
    span = cast(Span, spans)
    return positions(first, span), positions(second, span)


def _checked(span: Span) -> tuple[float, float]:
    first, second = _pair(span)
    real(**{"the first position of span": first, "the last position of span": second})
    low, high = float(first), float(second)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ProblemError(f"Expected a span of two finite numbers that increases, found {span!r}.")
    return low, high


def _pair(span: object) -> tuple[Any, Any]:
    """Both entries of what should have two."""
    if isinstance(span, str) or not isinstance(span, Sequence) or len(span) != 2:
        raise ProblemError(f"Expected a span of two numbers, such as (-1, 1), found {shown(span)}.")
    return span[0], span[1]


def _steps(count: int) -> Float[np.ndarray, " s"]:
    """1/count, 2/count, …, 1."""
    return np.arange(1, count + 1) / max(count, 1)
