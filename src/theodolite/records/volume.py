"""Losses over three directions at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float

from theodolite.records.estimate import Estimate
from theodolite.records.landscape import Line, Plane
from theodolite.records.record import Record
from theodolite.records.text import number

LETTERS = "αβγ"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Volume(Record):
    """Losses L(θ + α·d₁ + β·d₂ + γ·d₃).

    Args:
        alphas: positions along d₁.
        betas: positions along d₂.
        gammas: positions along d₃.
        losses: loss at each point; NaN and infinity are readings.
        stderrs: standard error of losses − loss at the centre, same samples at both (jackknife over chunks of the
            data, by weight); NaN with one chunk.
        directions: d₁, d₂ and d₃, flattened; None if they were dropped.
        direction_norms: their norms.
        cosines: cosines between them as used, after normalisation.
        name: how they were drawn, as for ``Plane``.
        parameter_norm: ‖θ‖.
        scalars: names of other quantities of the same forward passes on the same samples.
        scalar_values: these at each point; NaN where they were not read.
        scalar_stderrs: standard errors of their rise above the centre, as for the losses.
        cap: loss above which a point counts as exploded.
        partial: where no more was read than the first chunk of the data, as its loss was above the cap or not finite. None where
            all were read.
    """

    kind: ClassVar[str] = "volume"
    lengths: ClassVar[dict[str, str]] = {"scalars": "s"}

    alphas: Float[np.ndarray, " a"]
    betas: Float[np.ndarray, " b"]
    gammas: Float[np.ndarray, " c"]
    losses: Float[np.ndarray, "a b c"]
    stderrs: Float[np.ndarray, "a b c"]
    directions: tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"], Float[np.ndarray, " n"]] | None = None
    direction_norms: tuple[float, float, float]
    cosines: Float[np.ndarray, "3 3"]
    name: str
    parameter_norm: float
    scalars: tuple[str, ...] = ()
    scalar_values: Float[np.ndarray, "s a b c"] | None = None
    scalar_stderrs: Float[np.ndarray, "s a b c"] | None = None
    cap: float = float("inf")
    partial: Bool[np.ndarray, "a b c"] | None = None

    @property
    def axes(self) -> tuple[Float[np.ndarray, " a"], Float[np.ndarray, " b"], Float[np.ndarray, " c"]]:
        """Positions along all three directions."""
        return self.alphas, self.betas, self.gammas

    @property
    def center(self) -> float:
        """Loss at α = β = γ = 0, NaN where that is not on the grid."""
        places = [np.flatnonzero(axis == 0) for axis in self.axes]
        if not all(place.size for place in places):
            return float("nan")
        return float(self.losses[tuple(int(place[0]) for place in places)])

    @property
    def finite(self) -> Bool[np.ndarray, "a b c"]:
        """Where the loss is a finite number."""
        return np.asarray(np.isfinite(self.losses))

    @property
    def minimum(self) -> tuple[float, float, float, float]:
        """Position α, β, γ and value of the smallest finite loss; NaN where none is finite."""
        if not self.finite.any():
            return (float("nan"),) * 4
        place = np.unravel_index(np.argmin(np.where(self.finite, self.losses, np.inf)), self.losses.shape)
        alpha, beta, gamma = (float(axis[index]) for axis, index in zip(self.axes, place, strict=True))
        return alpha, beta, gamma, float(self.losses[place])

    @property
    def curvatures(self) -> tuple[Estimate, Estimate, Estimate]:
        """Second differences at the centre along the three directions, as ``Line.curvature``.

        Raises:
            ValueError: the centre is not on the grid.
        """
        first, second, third = (self.along(axis).curvature for axis in range(3))
        return first, second, third

    def cut(self, axis: int) -> Plane:
        """The plane through the centre on which one coordinate is 0: axis 0 leaves β and γ, 1 leaves α and γ, 2 leaves α and β.

        Raises:
            ValueError: there is no such axis, or 0 is not among its positions.
        """
        place = self._zero(axis)
        one, two = (each for each in range(3) if each != axis)
        kept = self.directions
        return Plane(
            step=self.step,
            seed=self.seed,
            notes=self.notes,
            context=self.context,
            alphas=self.axes[one],
            betas=self.axes[two],
            losses=self.losses.take(place, axis=axis),
            stderrs=self.stderrs.take(place, axis=axis),
            directions=None if kept is None else (kept[one], kept[two]),
            direction_norms=(self.direction_norms[one], self.direction_norms[two]),
            cosine=float(self.cosines[one, two]),
            name=self.name,
            parameter_norm=self.parameter_norm,
            scalars={name: values.take(place, axis=axis) for name, values in self._named(self.scalar_values)},
            scalar_stderrs={name: values.take(place, axis=axis) for name, values in self._named(self.scalar_stderrs)},
            cap=self.cap,
            partial=None if self.partial is None else self.partial.take(place, axis=axis),
        )

    def along(self, axis: int) -> Line:
        """The line through the centre along one direction.

        Raises:
            ValueError: there is no such axis, or 0 is not among the positions of the others.
        """
        _refuse_other_than_three(axis)
        places = tuple(slice(None) if each == axis else self._zero(each) for each in range(3))
        return Line(
            step=self.step,
            seed=self.seed,
            notes=self.notes,
            context=self.context,
            alphas=self.axes[axis],
            losses=self.losses[places],
            stderrs=self.stderrs[places],
            direction=None if self.directions is None else self.directions[axis],
            direction_norm=self.direction_norms[axis],
            name=self.name,
            parameter_norm=self.parameter_norm,
            scalars={name: values[places] for name, values in self._named(self.scalar_values)},
            scalar_stderrs={name: values[places] for name, values in self._named(self.scalar_stderrs)},
            cap=self.cap,
            partial=None if self.partial is None else self.partial[places],
        )

    def masked(self, cap: float = float("inf")) -> Float[np.ndarray, "a b c"]:
        """Losses with NaN where they are not finite or above cap or that of the record, for drawing."""
        return np.where(self.finite & (self.losses <= min(cap, self.cap)), self.losses, np.nan)

    def summary(self) -> tuple[str, ...]:
        """Directions, losses."""
        *place, lowest = self.minimum
        size = " × ".join(str(axis.size) for axis in self.axes)
        at = ", ".join(map(number, place))
        lost = int((~self.finite).sum())
        missing = (f"{lost:,} of {self.losses.size:,} NOT FINITE",) if lost else ()
        inside = all((axis == 0).any() for axis in self.axes)
        center = f"loss {number(self.center)} at 0" if inside else "centre off the grid"
        reading = f"{center}, lowest {number(lowest)} at ({at})"
        return f"{self.name}, {size} points", reading, *missing

    def _named(self, values: Float[np.ndarray, "s a b c"] | None) -> list[tuple[str, Float[np.ndarray, "a b c"]]]:
        return [] if values is None else list(zip(self.scalars, values, strict=True))

    def _zero(self, axis: int) -> int:
        _refuse_other_than_three(axis)
        found = np.flatnonzero(self.axes[axis] == 0)
        if not found.size:
            span = f"from {self.axes[axis].min():g} to {self.axes[axis].max():g}" if self.axes[axis].size else "none"
            raise ValueError(
                f"Expected 0 among the positions of {LETTERS[axis]} for a cut through the centre, found positions {span}. Survey a "
                "span that contains 0."
            )
        return int(found[0])


def _refuse_other_than_three(axis: int) -> None:
    if axis not in (0, 1, 2):
        raise ValueError(f"Expected an axis 0, 1 or 2 of a volume, found {axis}.")
