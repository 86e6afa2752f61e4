"""Rise of the loss in a neighbourhood of the parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from theodolite.records.estimate import Estimate
from theodolite.records.record import Record
from theodolite.records.text import number, with_error


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Sharpness(Record):
    """How much the loss rises when the parameters are disturbed, at one or several radii.

    Args:
        name: how the disturbance was found: ``"sam"``, ``"asam"``, ``"worst"``, ``"adaptive worst"``, ``"keskar"``,
            ``"average"``, ``"adaptive average"``, ``"logits"``.
        neighbourhood: the set or distribution that it comes from, in words.
        radii: size of the neighbourhood.
        rises: L(θ + ε) − L(θ); of a search the largest that it found, a lower bound of the maximum; of random
            disturbances the mean.
        stderrs: their standard errors from the data at fixed disturbances, same samples at both points; NaN with one chunk.
        draw_stderrs: their standard errors from the random disturbances, NaN where none were drawn or only one.
        first_order: what the gradient alone predicts: radius times its dual norm, 0 on average, NaN for ``"logits"``.
        loss: loss at θ.
        loss_stderr: its standard error from the data.
        steps: ascent steps of the search, 0 where none were taken.
        draws: random disturbances, or random starts of the search.
    """

    kind: ClassVar[str] = "sharpness"

    name: str
    neighbourhood: str
    radii: Float[np.ndarray, " r"]
    rises: Float[np.ndarray, " r"]
    stderrs: Float[np.ndarray, " r"]
    draw_stderrs: Float[np.ndarray, " r"]
    first_order: Float[np.ndarray, " r"]
    loss: float
    loss_stderr: float
    steps: int
    draws: int

    @property
    def estimates(self) -> tuple[Estimate, ...]:
        """The rise at each radius with its error from the data."""
        pairs = zip(self.rises.tolist(), self.stderrs.tolist(), strict=True)
        return tuple(Estimate(*pair, self.data_degrees) for pair in pairs)

    @property
    def draw_estimates(self) -> tuple[Estimate, ...]:
        """The rise at each radius with its error from the random disturbances."""
        degrees = self.draws - 1 if self.draws > 1 else None
        pairs = zip(self.rises.tolist(), self.draw_stderrs.tolist(), strict=True)
        return tuple(Estimate(*pair, degrees) for pair in pairs)

    @property
    def relative(self) -> Float[np.ndarray, " r"]:
        """Keskar's φ = 100·rise / (1 + loss), in percent."""
        return np.asarray(100 * self.rises / (1 + self.loss))

    @property
    def curvatures(self) -> Float[np.ndarray, " r"]:
        """2·(rise − first order) / radius², up to the third order in the radius.

        For random disturbances tr(SHS), of the scale S of the neighbourhood: the trace of the Hessian where that is 1. For one
        ascent step the curvature along it.
        """
        with np.errstate(all="ignore"):
            return np.asarray(2 * (self.rises - self.first_order) / self.radii**2)

    def summary(self) -> tuple[str, ...]:
        """Kind, the rise at each radius."""
        shown = [
            f"rise {with_error(rise, stderr, source='data')} at radius {number(radius)}"
            for radius, rise, stderr in list(
                zip(self.radii.tolist(), self.rises.tolist(), self.stderrs.tolist(), strict=True)
            )[:3]
        ]
        return self.name, *(shown or ["no radii"]), f"loss {number(self.loss)}"
