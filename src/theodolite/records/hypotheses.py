"""Losses of models whose weights were drawn at random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from theodolite.records.bits import Bits, Shape, bits
from theodolite.records.record import Record
from theodolite.records.text import number, plural


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Hypotheses(Record):
    """What a model without training would lose, draw by draw.

    Args:
        draw: where weights are from.
        losses: of each draw on the data of the problem; NaN and infinity are readings.
        test_losses: of each on other data; None if none were given.
        own: loss of the model itself on the data of the problem.
        own_test: loss of the model itself on the other data; NaN without.
    """

    kind: ClassVar[str] = "hypotheses"

    draw: str
    losses: Float[np.ndarray, " s"]
    test_losses: Float[np.ndarray, " s"] | None = None
    own: float
    own_test: float = float("nan")

    def fitting(self, tol: float) -> Hypotheses:
        """Only the draws that fit: those with a loss of at most ``tol`` on the data of the problem."""
        fit = self.losses <= tol
        return self.replace(
            losses=self.losses[fit],
            test_losses=None if self.test_losses is None else self.test_losses[fit],
            notes=(*self.notes, f"{int(fit.sum()):,} of {fit.size:,} draws have a loss of at most {number(tol)}"),
        )

    def bits(
        self, target: float | None = None, *, shape: Shape = "counted", level: float = 0.95, seed: int = 0
    ) -> Bits:
        """Bits that separate a loss of ``target`` from what a random draw has; the loss is that on other data if there are some.

        Draws whose loss is NaN count as infinitely high. The error is that of the draws; the data are taken as they are.

        Args:
            target: the loss of the model itself by default.
            shape: ``"counted"``, or a fitted tail, as for ``bits``.
            level: coverage of its interval.
            seed: of resampling.

        Raises:
            ValueError: too few draws, or losses that the shape does not allow.
        """
        losses, own = (self.losses, self.own) if self.test_losses is None else (self.test_losses, self.own_test)
        return bits(
            np.where(np.isnan(losses), np.inf, losses),
            target=own if target is None else target,
            shape=shape,
            level=level,
            seed=seed,
        )

    def summary(self) -> tuple[str, ...]:
        """Draws, the range of their losses, bits to the model's own."""
        subject = f"{plural(self.losses.size, 'draw')}, {self.draw}"
        finite = self.losses[np.isfinite(self.losses)]
        if not finite.size:
            return subject, "no loss is finite"
        low, middle, high = np.quantile(finite, [0.0, 0.5, 1.0]).tolist()
        reading = (
            f"losses {number(low)} to {number(high)}, median {number(middle)}, of the model itself {number(self.own)}"
        )
        missing = self.losses.size - finite.size
        return subject, reading, *((f"{missing:,} NOT FINITE",) if missing else ())
