"""What a slice through a loss tells of the shape of its valley: curvature from place to place, and width at a height."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np
from jaxtyping import Float

from theodolite.records.estimate import Estimate
from theodolite.records.landscape import Line, Plane
from theodolite.records.text import number, plural


@final
@dataclass(frozen=True, eq=False)
class Curvatures:
    """Second differences along a line, per unit length.

    Args:
        alphas: positions that have a neighbour on each side.
        values: dᵀHd/‖d‖² there, up to O(step²) where the loss is smooth and the steps are even; NaN beside exploded positions.
        stderrs: upper bounds of their standard errors: those of the three rises are added, as they share their samples.
        degrees: degrees of freedom of the errors, None where they are not counted.
    """

    alphas: Float[np.ndarray, " a"]
    values: Float[np.ndarray, " a"]
    stderrs: Float[np.ndarray, " a"]
    degrees: int | None = None

    def at(self, alpha: float) -> Estimate:
        """At the position that is nearest; NaN where there is none."""
        if not self.alphas.size:
            return Estimate(float("nan"), float("nan"))
        nearest = int(np.abs(self.alphas - alpha).argmin())
        return Estimate(float(self.values[nearest]), float(self.stderrs[nearest]), self.degrees)


def curvatures(line: Line) -> Curvatures:
    """Curvature of a line at every position but its ends.

    Example:
        >>> line = Line(alphas=np.arange(5.0), losses=np.arange(5.0) ** 3, stderrs=np.zeros(5), direction_norm=1.0,
        ...     name="given", parameter_norm=1.0)
        >>> curvatures(line).values.tolist()
        [6.0, 12.0, 18.0]
    """
    steps = np.diff(line.alphas)
    before, after = steps[:-1], steps[1:]
    spans = before + after
    factors = np.stack([2 / (before * spans), -2 / (before * after), 2 / (after * spans)])
    losses = np.where(line.exploded, np.nan, line.losses)
    places = np.arange(max(line.alphas.size - 2, 0)) + np.arange(3)[:, None]
    square = line.direction_norm**2 or np.nan
    return Curvatures(
        line.alphas[1:-1],
        (factors * losses[places]).sum(axis=0) / square,
        (np.abs(factors) * line.stderrs[places]).sum(axis=0) / square,
        line.data_degrees,
    )


@final
@dataclass(frozen=True)
class Width:
    """How far from the centre of a line the loss stays below a height.

    Args:
        rise: the height above the centre.
        below: distance at which it is reached towards negative positions, in units of the parameters; where it is not reached, the
            distance up to which it is not, with an unknown error.
        above: the same towards positive positions.
        reached: on which side it is reached.
    """

    rise: float
    below: Estimate
    above: Estimate
    reached: tuple[bool, bool]

    @property
    def whole(self) -> Estimate:
        """Between both sides, infinite where the line does not reach the height on one; the errors are added, an upper bound."""
        if not all(self.reached):
            return Estimate(float("inf"), float("nan"))
        return Estimate(self.at_least, self.below.stderr + self.above.stderr, self.below.degrees)

    @property
    def at_least(self) -> float:
        """The width within the line."""
        return self.below.value + self.above.value

    def __str__(self) -> str:
        missing = [side for side, reached in zip(("negative", "positive"), self.reached, strict=True) if not reached]
        if missing:
            return (
                f"at least {number(self.at_least)}: a rise of {number(self.rise)} is not reached at {' and '.join(missing)} "
                "positions"
            )
        return f"{self.whole} at a rise of {number(self.rise)}"


def width(line: Line, *, rise: float) -> Width:
    """Distance over which the loss lies less than ``rise`` above that of the centre.

    From the centre to the first crossing on each side, on straight lines between positions: it is known to a fraction of a
    step. Where the next position exploded, the last before it counts as the crossing.

    Args:
        line: with a position at 0.
        rise: height above the centre, positive.

    Returns:
        Both sides with the errors from the data, error of the rise over its slope; which side does not reach the height is said.

    Raises:
        ValueError: the rise is not positive, or the line does not hold its centre.

    Example:
        >>> line = Line(alphas=np.linspace(-2, 2, 401), losses=np.linspace(-2, 2, 401) ** 2, stderrs=np.zeros(401),
        ...     direction_norm=3.0, name="given", parameter_norm=1.0)
        >>> round(width(line, rise=1.0).whole.value, 6)
        6.0
        >>> print(width(line, rise=9.0))
        at least 12: a rise of 9 is not reached at negative and positive positions
    """
    if not rise > 0:
        raise ValueError(f"width(line, rise) expects a height above the centre, more than 0; found {rise!r}.")
    if not np.isfinite(line.center):
        raise ValueError(
            f"width(line) expects a line with a finite loss at position 0, found {number(line.center)} there and positions from "
            f"{number(line.alphas.min(initial=np.inf))} to {number(line.alphas.max(initial=-np.inf))}."
        )
    center = int(np.flatnonzero(line.alphas == 0)[0])
    below, on_left = _side(line, slice(center, None, -1), rise)
    above, on_right = _side(line, slice(center, None), rise)
    return Width(rise, below, above, (on_left, on_right))


def slices(plane: Plane) -> tuple[Line, Line]:
    """The lines through the centre of a plane along its two axes.

    Raises:
        ValueError: the centre is not on the grid.
    """
    rows, columns = np.flatnonzero(plane.alphas == 0), np.flatnonzero(plane.betas == 0)
    if not rows.size or not columns.size:
        raise ValueError("slices(plane) expects a plane with the centre on its grid, found none at positions (0, 0).")
    places = ((slice(None), columns[0]), (rows[0], slice(None)))
    positions = (plane.alphas, plane.betas)
    first, second = (
        Line(
            alphas=positions[axis],
            losses=plane.losses[place],
            stderrs=plane.stderrs[place],
            direction=None if plane.directions is None else plane.directions[axis],
            direction_norm=plane.direction_norms[axis],
            name=f"{plane.name}, axis {axis + 1}",
            parameter_norm=plane.parameter_norm,
            scalars={name: values[place] for name, values in plane.scalars.items()},
            scalar_stderrs={name: values[place] for name, values in plane.scalar_stderrs.items()},
            cap=plane.cap,
            partial=None if plane.partial is None else plane.partial[place],
            precision_error=plane.precision_error,
            step=plane.step,
            seed=plane.seed,
            notes=(*plane.notes, *_interpolated(plane, place)),
            context=plane.context,
        )
        for axis, place in enumerate(places)
    )
    return first, second


def _interpolated(plane: Plane, place: tuple[Any, Any]) -> tuple[str, ...]:
    if plane.evaluated is None or plane.evaluated[place].all():
        return ()
    error = number(plane.interpolation_error)
    count = plural(int((~plane.evaluated[place]).sum()), "position")
    return (f"{count} read from a spline, which is off by {error} of the range",)


def _side(line: Line, places: slice, rise: float) -> tuple[Estimate, bool]:
    """Distance of the first crossing, or of the last position, and whether there is a crossing."""
    distances = np.abs(line.alphas[places]) * line.direction_norm
    rises, errors = line.losses[places] - line.center, line.stderrs[places]
    exploded = line.exploded[places]
    over = np.flatnonzero(exploded | (rises >= rise))
    if not over.size:
        return Estimate(float(distances[-1]), float("nan"), line.data_degrees), False
    first = int(over[0])
    if exploded[first]:
        return Estimate(float(distances[first - 1]), float("nan"), line.data_degrees), True
    slope = (rises[first] - rises[first - 1]) / (distances[first] - distances[first - 1])
    share = (rise - rises[first - 1]) / (rises[first] - rises[first - 1])
    distance = distances[first - 1] + share * (distances[first] - distances[first - 1])
    error = errors[first - 1] + share * (errors[first] - errors[first - 1])
    return Estimate(float(distance), float(error / slope), line.data_degrees), True
