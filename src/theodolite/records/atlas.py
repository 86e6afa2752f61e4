"""Slices through one point along several directions, on one unit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int

from theodolite.records.estimate import Estimate
from theodolite.records.record import Record
from theodolite.records.text import number, with_error


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Atlas(Record):
    """Losses L(θ + x·‖θ‖·u) along unit vectors u, each turned so that x > 0 goes downhill, with what derivatives predict of them.

    Args:
        names: of the directions; rows of one name are draws of a random direction.
        positions: x, displacements as shares of ‖θ‖.
        losses: along each direction; NaN and infinity are readings.
        stderrs: standard error of losses − loss at θ, same samples at both (jackknife over chunks of the data, by weight); NaN
            with one chunk.
        slopes: gᵀu.
        slope_stderrs: their standard errors from the data.
        curvatures: uᵀHu.
        curvature_stderrs: their standard errors from the data, the directions held fixed.
        norms: ‖d‖ of each direction as it was given: of an update, how far it goes.
        center: loss at θ.
        parameter_norm: ‖θ‖.
    """

    kind: ClassVar[str] = "atlas"
    lengths: ClassVar[Mapping[str, str]] = {"names": "d"}

    names: tuple[str, ...]
    positions: Float[np.ndarray, " a"]
    losses: Float[np.ndarray, "d a"]
    stderrs: Float[np.ndarray, "d a"]
    slopes: Float[np.ndarray, " d"]
    slope_stderrs: Float[np.ndarray, " d"]
    curvatures: Float[np.ndarray, " d"]
    curvature_stderrs: Float[np.ndarray, " d"]
    norms: Float[np.ndarray, " d"]
    center: float
    parameter_norm: float

    @property
    def predicted(self) -> Float[np.ndarray, "d a"]:
        """L(θ) + gᵀδ + ½δᵀHδ along each direction."""
        far = self.positions * self.parameter_norm
        return np.asarray(self.center + self.slopes[:, None] * far + 0.5 * self.curvatures[:, None] * far**2)

    def rows(self, name: str) -> Int[np.ndarray, " r"]:
        """Places of a direction, several for a random one.

        Raises:
            ValueError: there is no such direction.
        """
        found = np.array([place for place, each in enumerate(self.names) if each == name], dtype=np.int64)
        if not found.size:
            known = ", ".join(map(repr, dict.fromkeys(self.names)))
            raise ValueError(f"Expected a direction among {known}, found {name!r}.")
        return found

    def curvature(self, name: str) -> Estimate:
        """uᵀHu with its standard error from the data; of a random direction the mean of the draws with that of their spread.

        Raises:
            ValueError: there is no such direction.
        """
        rows = self.rows(name)
        if rows.size == 1:
            row = int(rows[0])
            return Estimate(float(self.curvatures[row]), float(self.curvature_stderrs[row]), self.data_degrees)
        values = self.curvatures[rows]
        return Estimate(float(values.mean()), float(values.std(ddof=1) / np.sqrt(rows.size)), int(rows.size) - 1)

    def summary(self) -> tuple[str, ...]:
        """Directions and their curvatures."""
        kinds = tuple(dict.fromkeys(self.names))
        reach = number(float(np.abs(self.positions).max())) if self.positions.size else "0"
        shown = [(name, self.curvature(name)) for name in kinds]
        readings = [
            f"{name} {with_error(value.value, value.stderr, source='data' if self.names.count(name) == 1 else 'draws')}"
            for name, value in shown
        ]
        lost = int((~np.isfinite(self.losses)).sum())
        missing = (f"{lost:,} of {self.losses.size:,} NOT FINITE",) if lost else ()
        return f"{len(kinds)} directions up to {reach} of ‖θ‖", f"curvature {', '.join(readings) or 'none'}", *missing
