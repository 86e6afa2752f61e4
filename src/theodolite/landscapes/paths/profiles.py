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
        readings: at every position, all with the statistics of the profile.
        own: of both ends with their stored statistics.
        distance: length of the curve through the positions.
        passes: forward passes taken, without those of ``own``.
        notes: what a reader must know.
    """

    name: str
    readings: list[Reading]
    own: tuple[Reading, Reading]
    distance: float
    passes: int
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
    own: Sequence[Reading],
    ends: Sequence[Reading] | None = None,
) -> Profile:
    """The losses along a curve, at its ends as between them: recalibrated statistics are recalibrated at the ends too.

    Cost: one forward pass a position between the ends; two a position, ends included, with recalibration.

    Args:
        traveller: moved along.
        curve: from t = 0 to 1.
        ts: positions.
        name: of the profile.
        statistics: of BatchNorm.
        own: readings of the ends with their stored statistics.
        ends: with recalibrated ones, by ``read_recalibrated``; read here by default.
    """
    first, last = own
    between = [traveller.read(_prepared(traveller, curve, t, statistics)) for t in ts[1:-1].tolist()]
    profile = Profile(name, [first, *between, last], (first, last), _length(traveller, curve, ts), len(between))
    if statistics != "recalibrated":
        return profile
    passes = 2 * (len(between) if ends else ts.size)
    start, end = ends or [read_recalibrated(traveller, curve.at(t)) for t in (0.0, 1.0)]
    note = (
        f"{name}: recalibrated at every position, the ends included, so that the barrier is between like and like; with "
        f"their stored statistics the ends have losses {first.loss:.6g} and {last.loss:.6g}"
    )
    return replace(profile, readings=[start, *between, end], passes=passes, notes=(note,))


def read_recalibrated(traveller: Traveller, state: State) -> Reading:
    """The loss at a state with statistics of BatchNorm recalibrated on the data.

    Cost: two forward passes.
    """
    return traveller.read(recalibrated(traveller, state))


def policy_notes(statistics: Statistics) -> tuple[str, ...]:
    """What a record of several profiles must say of their statistics of BatchNorm."""
    if statistics != "recalibrated":
        return ()
    return (
        "barriers are between losses with BatchNorm recalibrated at every position, the ends included; the losses named are "
        "with stored statistics",
    )


def unused_notes(traveller: Traveller, batchnorm: object) -> tuple[str, ...]:
    """That a choice of statistics was asked for where there is none, as BatchNorm normalises by each batch."""
    if batchnorm is None or traveller.problem.batchnorm != "batch statistics":
        return ()
    return (
        f"batchnorm={batchnorm!r} changes nothing: with mode={traveller.problem.mode!r} BatchNorm normalises by the statistics of "
        "each batch at every position, and none that are stored are used",
    )


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
