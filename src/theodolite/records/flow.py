"""Gradient flow from a point to the minimum that it ends in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from theodolite.records.record import Record
from theodolite.records.text import number


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Flow(Record):
    """The solution of dθ/dt = −∇L(θ) from θ, and the sharpness along it.

    Args:
        times: of the readings, from 0.
        losses: at each.
        gradient_norms: at each.
        sharpnesses: largest Hessian eigenvalue at each.
        residuals: relative residual of each eigenpair.
        distance: ‖θ* − θ‖ between both ends.
        steps: integration steps taken.
        converged: whether the gradient fell below the tolerance.
        tol: that tolerance, relative to the first gradient.
    """

    kind: ClassVar[str] = "flow"

    times: Float[np.ndarray, " t"]
    losses: Float[np.ndarray, " t"]
    gradient_norms: Float[np.ndarray, " t"]
    sharpnesses: Float[np.ndarray, " t"]
    residuals: Float[np.ndarray, " t"]
    distance: float
    steps: int
    converged: bool
    tol: float

    @property
    def sharpness(self) -> float:
        """Gradient-flow-solution sharpness S_GF, that of the last point; an early reading where the flow did not converge."""
        return float(self.sharpnesses[-1]) if self.sharpnesses.size else math.nan

    @property
    def sharpening(self) -> float:
        """S_GF over the sharpness of θ itself: what following the flow to its end adds; NaN unless that is positive."""
        first = float(self.sharpnesses[0]) if self.sharpnesses.size else math.nan
        return self.sharpness / first if first > 0 else math.nan

    @property
    def max_learning_rate(self) -> float:
        """Learning rate 2/S_GF above which gradient descent cannot end in this minimum."""
        return 2 / self.sharpness if self.sharpness > 0 else math.inf

    def summary(self) -> tuple[str, ...]:
        """Sharpness at the end, how far, whether it converged."""
        state = (
            f"converged after {self.steps:,} steps" if self.converged else f"NOT CONVERGED after {self.steps:,} steps"
        )
        last = number(float(self.losses[-1])) if self.losses.size else "?"
        return (
            "gradient flow",
            f"S_GF = {number(self.sharpness)}",
            f"loss {last} at distance {number(self.distance)}",
            state,
        )
