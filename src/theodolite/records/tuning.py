"""Learning rate and momentum that suit the extreme curvatures of a quadratic."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from theodolite.records.estimate import Estimate
from theodolite.records.record import Record
from theodolite.records.text import number, plural, with_error

HIGHEST_MOMENTUM = 0.99  # with more a run averages over more steps than the curvature stays the same


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Tuning(Record):
    """Extreme curvatures, and the learning rate and momentum with which heavy ball converges fastest between them.

    Args:
        largest: largest curvature L, a Ritz value and its residual.
        smallest: smallest positive one μ, not below ``largest`` / ``condition_cap``. An upper bound without an error: a short
            run ends above the smallest eigenvalue, by as much as the steps it still lacks, which it cannot know.
        largest_stderr: standard error of ``largest`` from the data (jackknife over chunks, the Ritz vector held), NaN with one
            chunk; smoothed as ``largest`` is, as if the errors of both calls were of one sign.
        residual: relative residual of the largest Ritz pair, by which ``largest`` was raised.
        lanczos_steps: of the run.
        condition_cap: largest ratio of the two that is believed.
        operator: ``"hessian"`` or ``"ggn"``.
        size: number of parameters n.
    """

    kind: ClassVar[str] = "tuning"

    largest: float
    smallest: float
    largest_stderr: float = math.nan
    residual: float = math.nan
    lanczos_steps: int
    condition_cap: float
    operator: str = "ggn"
    size: int

    @property
    def largest_estimate(self) -> Estimate:
        """L with its error from the data."""
        return Estimate(self.largest, self.largest_stderr, self.data_degrees)

    @property
    def condition(self) -> float:
        """L/μ; NaN where no curvature is positive. Without an error, as ``smallest`` has none."""
        return self.largest / self.smallest if self.smallest > 0 else math.nan

    @property
    def momentum(self) -> float:
        """β = ((√L − √μ)/(√L + √μ))², at most 0.99; for the form v ← βv + g, θ ← θ − ηv."""
        if not self.smallest > 0 or not self.largest >= self.smallest:
            return math.nan
        root = math.sqrt(self.condition)
        return min(((root - 1) / (root + 1)) ** 2, HIGHEST_MOMENTUM)

    @property
    def learning_rate(self) -> float:
        """η = (1 + √β)²/L, which is 4/(√L + √μ)² where β is not capped: the largest at which every curvature shrinks by √β."""
        return (1 + math.sqrt(self.momentum)) ** 2 / self.largest if self.momentum >= 0 else math.nan

    @property
    def learning_rate_estimate(self) -> Estimate:
        """η with the error from the data that L brings, to first order and with μ held."""
        if not self.momentum >= 0:
            return Estimate(math.nan, math.nan)
        root = math.sqrt(self.smallest / self.largest)
        # log η = 2 log(1 + √β) − log L: where β is capped it is constant, elsewhere η = 4/(√L + √μ)².
        slope = 1.0 if self.momentum == HIGHEST_MOMENTUM else 1 / (1 + root)
        return Estimate(
            self.learning_rate, slope * self.learning_rate * self.largest_stderr / self.largest, self.data_degrees
        )

    @property
    def rate(self) -> float:
        """√β, the factor a step by which the distance to the minimum of the quadratic shrinks, where β is not capped."""
        return math.sqrt(self.momentum) if self.momentum >= 0 else math.nan

    def summary(self) -> tuple[str, ...]:
        """Operator, learning rate and momentum, extreme curvatures."""
        rate = self.learning_rate_estimate
        largest = with_error(self.largest, self.largest_stderr, source="data")
        return (
            f"{self.operator}, n={self.size:,}",
            f"heavy ball: lr {with_error(rate.value, rate.stderr, source='data')}, momentum {number(self.momentum)}",
            f"curvature from {number(self.smallest)} (an upper bound after {plural(self.lanczos_steps, 'step')}) to {largest}",
        )
