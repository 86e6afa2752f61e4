"""Learning rate and momentum that suit the extreme curvatures of a quadratic."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from theodolite.records.record import Record
from theodolite.records.text import number

HIGHEST_MOMENTUM = 0.99  # with more a run averages over more steps than the curvature stays the same


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Tuning(Record):
    """Extreme curvatures, and the learning rate and momentum with which heavy ball converges fastest between them.

    Args:
        largest: largest curvature L, a Ritz value and its residual.
        smallest: smallest positive one μ, not below ``largest`` / ``condition_cap``.
        lanczos_steps: products behind them.
        condition_cap: largest ratio of the two that is believed.
        operator: ``"hessian"`` or ``"ggn"``.
        size: number of parameters n.
    """

    kind: ClassVar[str] = "tuning"

    largest: float
    smallest: float
    lanczos_steps: int
    condition_cap: float
    operator: str = "ggn"
    size: int

    @property
    def condition(self) -> float:
        """L/μ; NaN where no curvature is positive."""
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
    def rate(self) -> float:
        """√β, the factor a step by which the distance to the minimum of the quadratic shrinks, where β is not capped."""
        return math.sqrt(self.momentum) if self.momentum >= 0 else math.nan

    def summary(self) -> tuple[str, ...]:
        """Operator, learning rate and momentum, condition number."""
        return (
            f"{self.operator}, n={self.size:,}",
            f"heavy ball: lr {number(self.learning_rate)}, momentum {number(self.momentum)}",
            f"curvature from {number(self.smallest)} to {number(self.largest)}",
        )
