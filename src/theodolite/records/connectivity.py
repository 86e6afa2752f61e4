"""Barriers between every two of several checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int

from theodolite.records.barriers import ABOVE, HEIGHTS, Above
from theodolite.records.estimate import Estimate
from theodolite.records.record import Record
from theodolite.records.text import number


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Connectivity(Record):
    """Straight paths between all pairs of checkpoints.

    Args:
        names: of the checkpoints.
        losses: of each.
        heights: barriers above chord, larger end and mean of the ends, and mode connectivity, of each pair; 0 of a checkpoint
            with itself.
        height_stderrs: their standard errors from the data.
        distances: ‖θ_j − θ_i‖ of the parameters between which the path was read.
        profile: which path: ``"linear"``, ``"linear, recalibrated"``, ``"aligned"``, ….
        points: positions on each path.
    """

    kind: ClassVar[str] = "connectivity"
    lengths: ClassVar[Mapping[str, str]] = {"names": "k"}

    names: tuple[str, ...]
    losses: Float[np.ndarray, " k"]
    heights: Float[np.ndarray, "k k 4"]
    height_stderrs: Float[np.ndarray, "k k 4"]
    distances: Float[np.ndarray, "k k"]
    profile: str
    points: int

    @property
    def barriers(self) -> Float[np.ndarray, "k k"]:
        """Above the chord."""
        return self.heights[..., 0]

    @property
    def stderrs(self) -> Float[np.ndarray, "k k"]:
        """Of the barriers above the chord."""
        return self.height_stderrs[..., 0]

    def barrier(self, first: str, second: str, *, above: Above = "chord") -> Estimate:
        """Between two checkpoints, as ``Path.barrier``.

        Raises:
            ValueError: there is no such checkpoint or definition.
        """
        if above not in ABOVE:
            raise ValueError(f"Expected above to be one of {', '.join(map(repr, ABOVE))}, found {above!r}.")
        unknown = [name for name in (first, second) if name not in self.names]
        if unknown:
            raise ValueError(f"Expected checkpoints among {', '.join(map(repr, self.names))}, found {unknown[0]!r}.")
        place = (self.names.index(first), self.names.index(second), HEIGHTS.index(above))
        return Estimate(float(self.heights[place]), float(self.height_stderrs[place]), self.data_degrees)

    def basins(self, below: float) -> Int[np.ndarray, " k"]:
        """Checkpoints that are joined by paths whose barriers above the chord are at most ``below``, by number from 0.

        Args:
            below: in units of the loss.
        """
        joined = self.barriers <= below
        labels = np.arange(len(self.names))
        for _ in self.names:
            labels = np.where(joined, labels[None, :], labels[:, None]).min(axis=1, initial=len(self.names))
        return np.unique(labels, return_inverse=True)[1].astype(np.int64)

    def summary(self) -> tuple[str, ...]:
        """The pairs with the lowest and the highest barrier."""
        subject = f"{len(self.names)} checkpoints, {self.profile}, {self.points} points a pair"
        rows, columns = np.triu_indices(len(self.names), k=1)
        values = self.barriers[rows, columns]
        if not np.isfinite(values).any():
            return subject, "no barrier is finite"
        low, high = int(np.nanargmin(values)), int(np.nanargmax(values))
        readings = [
            f"{word} barrier above the chord {number(float(values[at]))} ({self.names[rows[at]]}, {self.names[columns[at]]})"
            for word, at in (("lowest", low), ("highest", high))
        ]
        return subject, *readings
