"""Whether what training finds still depends on its randomness, after how many steps or how far from where it was."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int

from theodolite.records.barriers import ABOVE, HEIGHTS, Above
from theodolite.records.estimate import Estimate
from theodolite.records.record import Record
from theodolite.records.text import number


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Branching(Record):
    """Pairs of runs that share their first steps and then see their data in different orders.

    Args:
        branches: steps after which the two runs of each pair part.
        steps: of every run.
        heights: barriers above chord, larger end and mean of the ends, and mode connectivity, between the ends of each pair.
        height_stderrs: their standard errors from the data of one pair; the spread over pairs is not in them.
        losses: at both ends of each pair.
        distances: of both ends from where they parted.
        gaps: distance between the two ends.
        cosines: between the ways that both went from where they parted; NaN where one did not move.
        profile: which path was read.
    """

    kind: ClassVar[str] = "branching"

    branches: Int[np.ndarray, " b"]
    steps: int
    heights: Float[np.ndarray, "b 4"]
    height_stderrs: Float[np.ndarray, "b 4"]
    losses: Float[np.ndarray, "b 2"]
    distances: Float[np.ndarray, "b 2"]
    gaps: Float[np.ndarray, " b"]
    cosines: Float[np.ndarray, " b"]
    profile: str

    @property
    def barriers(self) -> Float[np.ndarray, " b"]:
        """Above the chord."""
        return self.heights[:, 0]

    def barrier(self, index: int, *, above: Above = "chord") -> Estimate:
        """Of one pair, as ``Path.barrier``.

        Raises:
            ValueError: there is no such definition.
        """
        return _height(self, index, above)

    def stable_after(self, below: float) -> int | None:
        """The earliest branch from which on no pair has a barrier above the chord of more than ``below``; None without.

        Args:
            below: in units of the loss.
        """
        order = np.argsort(self.branches)
        low = self.barriers[order] <= below
        kept = [int(self.branches[branch]) for rank, branch in enumerate(order) if low[rank:].all()]
        return kept[0] if kept else None

    def summary(self) -> tuple[str, ...]:
        """Barriers by branch."""
        shown = [
            f"{number(float(barrier))} after step {int(branch):,}"
            for branch, barrier in zip(self.branches, self.barriers, strict=True)
        ]
        return f"runs of {self.steps:,} steps, {self.profile}", f"barrier above the chord {', '.join(shown) or 'none'}"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Basin(Record):
    """Runs that start between a model and a fresh initialisation, and where they end as seen from the model.

    Args:
        alphas: share of the fresh initialisation at the start of each run; 0 starts from the model.
        steps: of every run.
        heights: barriers above chord, larger end and mean of the ends, and mode connectivity, from the model to the end of each.
        height_stderrs: their standard errors from the data of one run.
        loss: of the model.
        starts: loss at the start of each run.
        losses: at its end.
        distances: of its start and its end from the model.
        profile: which path was read.
    """

    kind: ClassVar[str] = "basin"

    alphas: Float[np.ndarray, " b"]
    steps: int
    heights: Float[np.ndarray, "b 4"]
    height_stderrs: Float[np.ndarray, "b 4"]
    loss: float
    starts: Float[np.ndarray, " b"]
    losses: Float[np.ndarray, " b"]
    distances: Float[np.ndarray, "b 2"]
    profile: str

    @property
    def barriers(self) -> Float[np.ndarray, " b"]:
        """Above the chord."""
        return self.heights[:, 0]

    def barrier(self, index: int, *, above: Above = "chord") -> Estimate:
        """Of one run, as ``Path.barrier``.

        Raises:
            ValueError: there is no such definition.
        """
        return _height(self, index, above)

    def border(self, below: float) -> float:
        """The largest α up to which every run ends without a barrier of more than ``below``; NaN where the first has one.

        Args:
            below: in units of the loss.
        """
        order = np.argsort(self.alphas)
        inside = np.logical_and.accumulate(self.barriers[order] <= below)
        return float(self.alphas[order][inside][-1]) if inside.any() else float("nan")

    def summary(self) -> tuple[str, ...]:
        """Barriers by share."""
        shown = [
            f"{number(float(barrier))} from α={number(float(alpha))}"
            for alpha, barrier in zip(self.alphas, self.barriers, strict=True)
        ]
        return f"runs of {self.steps:,} steps, {self.profile}", f"barrier above the chord {', '.join(shown) or 'none'}"


def _height(record: Branching | Basin, index: int, above: Above) -> Estimate:
    if above not in ABOVE:
        raise ValueError(f"Expected above to be one of {', '.join(map(repr, ABOVE))}, found {above!r}.")
    column = HEIGHTS.index(above)
    return Estimate(
        float(record.heights[index, column]), float(record.height_stderrs[index, column]), record.data_degrees
    )
