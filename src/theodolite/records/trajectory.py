"""A path of checkpoints seen from a plane, with the losses that the plane does not show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int

from theodolite.records.record import Record
from theodolite.records.text import number


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Trajectory(Record):
    """Checkpoints θ_t projected to the plane θ + α·d₁ + β·d₂.

    Args:
        coordinates: (α, β) of the least-squares projection of each.
        distances: of each from the plane.
        displacements: ‖θ_t − θ‖.
        losses: at each checkpoint itself, with its own statistics of BatchNorm where the checkpoint holds them.
        stderrs: standard error of losses − loss at θ, same samples at both (jackknife over chunks of the data, by weight);
            NaN with one chunk.
        plane_losses: at the projection of each, which is what a plane shows there.
        center: loss at θ.
        steps: their optimiser steps; None where they are not known.
        explained: shares of Σ‖θ_t − θ‖² that d₁ and d₂ explain.
        shares: shares of all principal directions, in descending order.
        directions: d₁ and d₂, flattened; None if they were dropped.
        direction_norms: ‖d₁‖ and ‖d₂‖.
        cosine: between them.
        name: ``"principal"`` or ``"given"`` directions.
        parameter_norm: ‖θ‖.
    """

    kind: ClassVar[str] = "trajectory"

    coordinates: Float[np.ndarray, "t 2"]
    distances: Float[np.ndarray, " t"]
    displacements: Float[np.ndarray, " t"]
    losses: Float[np.ndarray, " t"]
    stderrs: Float[np.ndarray, " t"]
    plane_losses: Float[np.ndarray, " t"]
    center: float
    steps: Int[np.ndarray, " t"] | None = None
    explained: tuple[float, float]
    shares: Float[np.ndarray, " t"]
    directions: tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]] | None = None
    direction_norms: tuple[float, float]
    cosine: float
    name: str
    parameter_norm: float

    @property
    def off_plane(self) -> Float[np.ndarray, " t"]:
        """‖r_t‖/‖θ_t − θ‖, the share of each displacement that the plane does not show; 0 at θ itself."""
        safe = np.where(self.displacements > 0, self.displacements, 1.0)
        return np.asarray(np.where(self.displacements > 0, self.distances / safe, 0.0))

    @property
    def hidden(self) -> Float[np.ndarray, " t"]:
        """losses − plane_losses: how far the picture of the plane is from the loss that the training saw."""
        with np.errstate(invalid="ignore"):  # infinity − infinity is a reading, NaN
            return np.asarray(self.losses - self.plane_losses)

    def summary(self) -> tuple[str, ...]:
        """Checkpoints, shares of the variance, what the plane hides."""
        subject = f"{self.name}, {len(self.losses)} checkpoints"
        if not len(self.losses):
            return subject, "nothing"
        both = 100 * sum(self.explained)
        gap = self.hidden[np.isfinite(self.hidden)]
        readings = [
            f"{number(both)} % of ‖θ_t − θ‖² in the plane",
            f"loss from {number(float(self.losses[0]))} to {number(float(self.losses[-1]))}",
            f"plane off by up to {number(float(np.abs(gap).max()) if gap.size else float('nan'))}",
        ]
        lost = int((~np.isfinite(self.losses)).sum())
        return subject, *readings, *((f"{lost:,} of {len(self.losses):,} NOT FINITE",) if lost else ())
