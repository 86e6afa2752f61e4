"""How fast a landscape settles as samples are added to the data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Float, Int

from theodolite.records.estimate import Estimate
from theodolite.records.record import Record
from theodolite.records.text import number

Of = Literal["losses", "rises"]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SampleConvergence(Record):
    """Spread of the losses of single samples at θ and at points around it, from which the convergence of their mean follows.

    With L_k the mean over the first k of N samples in random order, L_{k+1} − L_k = (ℓ_{k+1} − L_k)/(k+1).

    Args:
        radius: distance of the points from θ.
        samples: N.
        spreads: standard deviation of the losses of single samples at θ and at each point.
        spread_stderrs: their standard errors over samples.
        rise_spreads: the same of the rises ℓ(θ + δ) − ℓ(θ), the shape of the landscape, at each point.
        rise_spread_stderrs: their standard errors.
        ranges: largest less smallest loss of a sample at θ and at each point.
        largest: the largest |ℓ| of a sample at θ.
        sizes: k at which changes were read in random orders.
        changes: mean of |L_{k+1} − L_k| over orders and places.
        change_stderrs: their standard errors over orders.
        orders: random orders of the samples.
    """

    kind: ClassVar[str] = "sample_convergence"

    radius: float
    samples: int
    spreads: Float[np.ndarray, " m"]
    spread_stderrs: Float[np.ndarray, " m"]
    rise_spreads: Float[np.ndarray, " r"]
    rise_spread_stderrs: Float[np.ndarray, " r"]
    ranges: Float[np.ndarray, " m"]
    largest: float
    sizes: Int[np.ndarray, " a"]
    changes: Float[np.ndarray, " a"]
    change_stderrs: Float[np.ndarray, " a"]
    orders: int

    def spread(self, of: Of = "losses") -> Estimate:
        """Root mean square over places of the standard deviation S over samples.

        Args:
            of: ``"losses"`` at θ and all points, or ``"rises"`` above θ, which is how the shape converges.
        """
        spreads, errors = (
            (self.spreads, self.spread_stderrs) if of == "losses" else (self.rise_spreads, self.rise_spread_stderrs)
        )
        if not spreads.size:
            return Estimate(float("nan"), float("nan"))
        value = float(np.sqrt(np.square(spreads).mean()))
        # All places are read on the same samples: their errors are added as if they went together.
        error = float((spreads * errors).mean() / value) if value else 0.0
        return Estimate(value, error, self.samples - 1 if self.samples > 1 else None)

    def change(self, k: int, of: Of = "losses") -> Estimate:
        """Root mean square of L_{k+1} − L_k over orders and places, S/√(k(k+1)): exact, whatever the losses.

        Args:
            k: samples, 1 or more.
            of: as for ``spread``.
        """
        spread = self.spread(of)
        factor = 1 / math.sqrt(k * (k + 1))
        return Estimate(spread.value * factor, spread.stderr * factor, spread.degrees)

    def error(self, k: int, of: Of = "losses") -> Estimate:
        """Root mean square error of the landscape of k samples as that of all that the data stand for, S/√k.

        Args:
            k: samples, 1 or more.
            of: as for ``spread``.
        """
        spread = self.spread(of)
        return Estimate(spread.value / math.sqrt(k), spread.stderr / math.sqrt(k), spread.degrees)

    def bound(self, k: int, *, curvature: float | None = None) -> float:
        """What |L_{k+1} − L_k| is at most in any order, at all places that were read.

        The largest range of losses over k+1; with ``curvature`` (2·max|ℓ| + M·R²)/(k+1), which holds in the whole ball where the
        gradient of every sample vanishes at θ.

        Args:
            k: samples, 1 or more.
            curvature: M, the largest norm of the Hessian of a sample.
        """
        if curvature is None:
            return float(self.ranges.max(initial=0.0)) / (k + 1)
        return (2 * self.largest + curvature * self.radius**2) / (k + 1)

    def sufficient(self, tol: float, *, by: Literal["change", "error"] = "change", of: Of = "losses") -> Estimate:
        """The fewest samples from which on the change by one more, or the error, is below ``tol``.

        It may lie beyond the data. Its standard error is that of S², with which it grows.

        Args:
            tol: in units of the loss, more than 0.
            by: ``"change"`` of the next sample, or ``"error"`` against what the data stand for.
            of: as for ``spread``.

        Raises:
            ValueError: the tolerance is not positive.
        """
        if not tol > 0:
            raise ValueError(f"Expected a tolerance above 0 in units of the loss, found {tol!r}.")
        spread = self.spread(of)
        if not math.isfinite(spread.value):
            return Estimate(float("nan"), float("nan"))
        ratio = (spread.value / tol) ** 2
        exact = (math.sqrt(1 + 4 * ratio) - 1) / 2 if by == "change" else ratio
        slope = spread.value / tol**2 * (2 / math.sqrt(1 + 4 * ratio) if by == "change" else 2)
        return Estimate(float(max(math.ceil(exact), 1)), slope * spread.stderr, spread.degrees)

    @property
    def rate(self) -> Estimate:
        """Exponent p of changes ∝ k^p by least squares, weighted by their errors; −1 is what random orders give.

        The error takes the sizes as independent; NaN with fewer than two sizes with a change.
        """
        usable = (self.changes > 0) & (self.change_stderrs > 0) & np.isfinite(self.changes + self.change_stderrs)
        weights = np.square(self.changes[usable] / self.change_stderrs[usable])
        if np.count_nonzero(weights) < 2:
            return Estimate(float("nan"), float("nan"))
        x, y = np.log(self.sizes[usable] + 0.5), np.log(self.changes[usable])  # √(k(k+1)) ≈ k + ½
        away = x - np.average(x, weights=weights)
        information = np.float64(weights @ away**2)
        return Estimate(float(weights @ (away * y) / information), float(1 / np.sqrt(information)))

    def summary(self) -> tuple[str, ...]:
        """Spread, change by the last sample, rate."""
        subject = f"{self.samples:,} samples, {max(self.spreads.size - 1, 0)} points at distance {number(self.radius)}"
        if self.samples < 1 or not self.spreads.size:
            return subject, "nothing was read"
        change = number(self.change(self.samples).value)
        return subject, f"S = {self.spread()}", f"one sample more changes {change}", f"changes ∝ k^{self.rate}"
