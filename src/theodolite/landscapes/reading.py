"""What was read at one point: a loss, or another quantity, from the chunks of the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from theodolite.records.jackknife import means_without


@dataclass(frozen=True)
class Reading:
    """The loss at one point, and what else was counted there.

    Args:
        loss: Σ totals / divisor.
        totals: of each chunk of the data.
        weights: of each chunk.
        divisor: Σ weights, 1 for a criterion that sums.
        scalars: other quantities at the same point, by name, each with totals and weights of its own.
        partial: whether it was read no further than the first chunk, which exploded.
        without: the quantity without each chunk, where it is no quotient of sums.
    """

    loss: float
    totals: Float[np.ndarray, " c"]
    weights: Float[np.ndarray, " c"]
    divisor: float
    scalars: Mapping[str, Reading] = field(default_factory=dict)
    partial: bool = False
    without: Float[np.ndarray, " c"] | None = None

    @property
    def left_out(self) -> Float[np.ndarray, " c"]:
        """The loss without each chunk, whose share of the weight its divisor lacks; NaN where nothing else weighs."""
        if self.without is not None:
            return self.without
        return means_without(self.totals, weights=self.weights, divisor=self.divisor)


def additive(
    totals: Float[np.ndarray, " c"], weights: Float[np.ndarray, " c"], *, divisor: float | None = None
) -> Reading:
    """A quotient of sums over chunks; NaN where nothing weighs."""
    by = float(weights.sum()) if divisor is None else divisor
    return Reading(float(totals.sum()) / by if by else float("nan"), totals.copy(), weights.copy(), by)
