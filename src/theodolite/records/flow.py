"""Gradient flow from a point to the minimum that it ends in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from theodolite.records.estimate import Estimate
from theodolite.records.record import Record
from theodolite.records.text import number, with_error


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Flow(Record):
    """The solution of dθ/dt = −∇L(θ) from θ, and the sharpness along it.

    Errors from the data are those of the loss and of λ₁ at the points of this flow. That the flow of other data goes elsewhere is
    in none of them, nor in the distance, which has no error: that takes flows of other data.

    Args:
        times: of the readings, from 0.
        losses: at each.
        gradient_norms: at each.
        sharpnesses: largest Hessian eigenvalue at each.
        residuals: relative residual of each eigenpair.
        loss_stderrs: standard errors of the losses from the data (jackknife over chunks), NaN with one chunk; None where they
            were not measured.
        sharpness_stderrs: the same of the sharpnesses, with the eigenvectors held.
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
    loss_stderrs: Float[np.ndarray, " t"] | None = None
    sharpness_stderrs: Float[np.ndarray, " t"] | None = None
    distance: float
    steps: int
    converged: bool
    tol: float

    @property
    def sharpness(self) -> float:
        """Gradient-flow-solution sharpness S_GF, that of the last point; an early reading where the flow did not converge."""
        return float(self.sharpnesses[-1]) if self.sharpnesses.size else math.nan

    @property
    def sharpness_estimate(self) -> Estimate:
        """S_GF with the error from the data of λ₁ at that point."""
        return Estimate(self.sharpness, _last(self.sharpness_stderrs), self.data_degrees)

    @property
    def sharpening(self) -> float:
        """S_GF over the sharpness of θ itself: what following the flow to its end adds; NaN unless that is positive.

        Without an error: both are of the same data, and how their errors go together is not measured.
        """
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
        sharpness = with_error(self.sharpness, _last(self.sharpness_stderrs), source="data, at this point")
        last = with_error(float(self.losses[-1]), _last(self.loss_stderrs)) if self.losses.size else "?"
        return (
            "gradient flow",
            f"S_GF = {sharpness}",
            f"loss {last} at distance {number(self.distance)}",
            state,
        )


def _last(errors: Float[np.ndarray, " t"] | None) -> float:
    return math.nan if errors is None or not errors.size else float(errors[-1])
