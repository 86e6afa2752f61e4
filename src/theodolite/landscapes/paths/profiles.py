"""Losses along a curve, and their errors from the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float

from theodolite.landscapes.paths.curve import Curve
from theodolite.landscapes.paths.statistics import recalibrated
from theodolite.landscapes.paths.traveller import State, Traveller
from theodolite.landscapes.reading import Reading
from theodolite.records.barriers import deviations, heights
from theodolite.records.jackknife import jackknife_stderr

Statistics = Literal["interpolated", "stored", "recalibrated"]


@dataclass(frozen=True)
class Profile:
    """One curve, read.

    Args:
        name: as a record shows it.
        readings: at every position.
        distance: length of the curve through the positions.
        passes: forward passes that recalibration took.
        notes: what a reader must know.
    """

    name: str
    readings: list[Reading]
    distance: float
    passes: int = 0
    notes: tuple[str, ...] = ()

    @property
    def losses(self) -> Float[np.ndarray, " a"]:
        return np.array([reading.loss for reading in self.readings])

    def heights(self, ts: Float[np.ndarray, " a"]) -> Float[np.ndarray, " 4"]:
        """Barriers by each definition, and mode connectivity."""
        return heights(self.losses, ts)

    def stderrs(self, ts: Float[np.ndarray, " a"]) -> Float[np.ndarray, " a"]:
        """Of the deviations from the chord."""
        return self._jackknife(lambda losses: deviations(losses, ts))

    def height_stderrs(self, ts: Float[np.ndarray, " a"]) -> Float[np.ndarray, " 4"]:
        """Of the barriers by each definition, and of the mode connectivity."""
        return self._jackknife(lambda losses: heights(losses, ts))

    def _jackknife(self, statistic: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        left_out = np.stack([reading.left_out for reading in self.readings], axis=1)
        return jackknife_stderr(statistic(left_out), whole=statistic(self.losses), weights=self.readings[0].weights)


def read_profile(
    traveller: Traveller,
    curve: Curve,
    ts: Float[np.ndarray, " a"],
    *,
    name: str,
    statistics: Statistics,
    ends: Sequence[Reading],
) -> Profile:
    """The losses along a curve; those of its ends are with their own statistics, whatever those between.

    Cost: one forward pass a position between the ends, two with recalibration.

    Args:
        traveller: moved along.
        curve: from t = 0 to 1.
        ts: positions.
        name: of the profile.
        statistics: of BatchNorm between the ends.
        ends: readings of the ends.
    """
    first, last = ends
    between = [traveller.read(_prepared(traveller, curve, t, statistics)) for t in ts[1:-1].tolist()]
    profile = Profile(name, [first, *between, last], _length(traveller, curve, ts))
    if statistics != "recalibrated":
        return profile
    moved = [traveller.read(recalibrated(traveller, curve.at(t))).loss for t in (0.0, 1.0)]
    note = (
        f"{name}: the ends keep their stored statistics (losses {first.loss:.6g} and {last.loss:.6g}); with "
        f"recalibrated ones they would have {moved[0]:.6g} and {moved[1]:.6g}"
    )
    return replace(profile, passes=len(between) + 4, notes=(note,))


def _prepared(traveller: Traveller, curve: Curve, t: float, statistics: Statistics) -> State:
    state = curve.at(t)
    if statistics == "recalibrated":
        return recalibrated(traveller, state)
    if statistics == "stored":
        nearer = curve.at(0.0 if t < 0.5 else 1.0)
        parameters = dict(traveller.problem.model.named_parameters())
        return {name: value if name in parameters else nearer[name] for name, value in state.items()}
    return state


def _length(traveller: Traveller, curve: Curve, ts: Float[np.ndarray, " a"]) -> float:
    names = [name for name, _ in traveller.problem.model.named_parameters()]
    positions = [0.0, 1.0] if len(curve.controls) == 2 else ts.tolist()
    total, before = 0.0, curve.at(positions[0])
    for t in positions[1:]:
        here = curve.at(t)
        squares = [torch.linalg.vector_norm(here[name] - before[name], dtype=torch.float64) ** 2 for name in names]
        total, before = total + float(torch.stack(squares).sum().sqrt()), here
    return total
