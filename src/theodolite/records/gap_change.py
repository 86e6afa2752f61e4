"""How steps of stochastic gradient descent change the gap between test and training loss, to second order in the rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from theodolite.records.estimate import Estimate
from theodolite.records.record import Record
from theodolite.records.text import plural, with_error


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class GapChange(Record):
    """Gradient noise Σ, its slope along the gradient 𝒢 and its curvature, from random combinations of the samples.

    Errors are over the combinations; they leave out that the data are a sample.

    Args:
        squares: ‖z‖² of each combination z, whose mean is tr Σ.
        curvatures: zᵀHz, whose mean is tr(HΣ).
        slopes: half of the slope of ‖z‖² along 𝒢, whose mean is ½⟨𝒢, ∇tr Σ⟩.
        gradient_square: ‖𝒢‖².
        samples: that were combined.
        size: number of parameters n.
    """

    kind: ClassVar[str] = "gap change"

    squares: Float[np.ndarray, " k"]
    curvatures: Float[np.ndarray, " k"]
    slopes: Float[np.ndarray, " k"]
    gradient_square: float
    samples: int
    size: int

    @property
    def covariance_trace(self) -> Estimate:
        """tr Σ of per-sample gradients."""
        return self._mean(self.squares)

    @property
    def noise_slope(self) -> Estimate:
        """½⟨𝒢, ∇tr Σ⟩: half of how fast the noise grows along the gradient; a step lowers it where this is positive."""
        return self._mean(self.slopes)

    @property
    def noise_curvature(self) -> Estimate:
        """tr(HΣ)."""
        return self._mean(self.curvatures)

    def gap_rate(self, learning_rate: float, *, batch: int) -> Estimate:
        """η·tr Σ/B: how much one step on a batch widens the gap between the loss of new data and that of the batch, to first order.

        Args:
            learning_rate: η.
            batch: its independent samples B.
        """
        return self._mean(learning_rate * self.squares / batch)

    def fresh_batches(self, learning_rate: float, *, batch: int, steps: int) -> Estimate:
        """Test loss after k steps on fresh batches less that after k steps on one and the same batch, to second order in η.

        −η²·k(k − 1)/(2B)·(½⟨𝒢, ∇tr Σ⟩ + tr(HΣ)).

        Args:
            learning_rate: η.
            batch: samples B of a batch.
            steps: k.
        """
        factor = -(learning_rate**2) * steps * (steps - 1) / (2 * batch)
        return self._mean(factor * (self.slopes + self.curvatures))

    def whole_batch(self, learning_rate: float, *, batch: int, steps: int) -> Estimate:
        """Test loss after k steps on k disjoint batches less that after k steps on their union, to second order in η.

        −η²·(k − 1)/(4B)·⟨𝒢, ∇tr Σ⟩: what stochastic descent gains as an implicit regulariser.

        Args:
            learning_rate: η.
            batch: samples B of a batch, of k·B in all.
            steps: k.
        """
        return self._mean(-(learning_rate**2) * (steps - 1) / (2 * batch) * self.slopes)

    def summary(self) -> tuple[str, ...]:
        """Combinations, noise, its slope and curvature."""
        readings = (
            ("tr Σ", self.covariance_trace),
            ("½⟨𝒢, ∇tr Σ⟩", self.noise_slope),
            ("tr(HΣ)", self.noise_curvature),
        )
        return (
            f"n={self.size:,}, {plural(self.samples, 'sample')}",
            *(f"{name} = {with_error(found.value, found.stderr, source='probes')}" for name, found in readings),
        )

    def _mean(self, values: Float[np.ndarray, " k"]) -> Estimate:
        count = len(values)
        stderr = values.std(ddof=1) / np.sqrt(count) if count > 1 else np.nan
        return Estimate(float(values.mean()) if count else np.nan, float(stderr), max(count - 1, 1))
