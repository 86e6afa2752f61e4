"""Groups of samples whose losses a step moves most, in opposite directions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int

from theodolite.records.estimate import Estimate
from theodolite.records.jackknife import jackknife_stderr
from theodolite.records.record import Record
from theodolite.records.text import number, plural, with_error

# The smallest group, in samples and as a share of all of them (Rosenfeld & Risteski look at the extreme half per cent).
LEAST, SHARE = 5, 0.005


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class OpposingSignals(Record):
    """How a step changes the loss of every sample, and how the samples that it hurts and helps most oppose each other.

    Args:
        losses: of the samples before the step, scaled so that their mean is the loss.
        changes: δ_i, what the step adds to them.
        up: places of the samples whose loss rises most, the strongest first.
        down: places of those whose loss falls most.
        cosine: between the mean gradients of the two groups before the step.
        cosine_stderr: its standard error by leaving samples of a group out.
        curvature_shares: of dᵀHd along the step d, what the samples of either group bring: NaN where not asked for.
        norm: ‖d‖.
        size: number of parameters n.
    """

    kind: ClassVar[str] = "opposing signals"

    losses: Float[np.ndarray, " b"]
    changes: Float[np.ndarray, " b"]
    up: Int[np.ndarray, " u"]
    down: Int[np.ndarray, " v"]
    cosine: float
    cosine_stderr: float
    curvature_shares: tuple[float, float] = (math.nan, math.nan)
    norm: float
    size: int

    @property
    def opposition(self) -> Estimate:
        """Cosine between the mean gradients of the two groups; near −1 where they oppose each other.

        The groups are chosen by what the step does to them, so that it is below zero without opposing signals as well: −0.2 in
        100 and −0.7 in 3 dimensions of mere noise. The error, over the samples of the groups, knows nothing of that choice.
        """
        return Estimate(self.cosine, self.cosine_stderr, min(len(self.up), len(self.down)) - 1)

    @property
    def share(self) -> float:
        """(|Σ δ| over the first group + the same over the second) / Σ|δ|: how much of all that moves they are; NaN where a δ is."""
        moved = float(np.abs(self.changes).sum())
        groups = (places[(places >= 0) & (places < len(self.changes))] for places in (self.up, self.down))
        found = sum(abs(float(self.changes[places].sum())) for places in groups)
        return found / moved if moved != 0 else 0.0

    @property
    def samples(self) -> Int[np.ndarray, " o"]:
        """Places of the samples of both groups, ascending."""
        return np.union1d(self.up, self.down)

    def alternation(self, later: OpposingSignals) -> Estimate:
        """Correlation of the changes of two steps over the samples of both groups: near −1 where one undoes the other.

        Args:
            later: of another step on the same samples.

        Raises:
            ValueError: it is of other samples.
        """
        if later.changes.shape != self.changes.shape:
            raise ValueError(
                f"Expected changes of the same {len(self.changes):,} samples, found {len(later.changes):,}. Measure both steps on "
                "one problem."
            )
        one, other = self.changes[self.samples], later.changes[self.samples]
        count = len(one)
        if count < 4:
            return Estimate(_correlation(one, other), math.nan)
        left_out = np.array([_correlation(np.delete(one, i), np.delete(other, i)) for i in range(count)])
        value = _correlation(one, other)
        return Estimate(
            value, float(jackknife_stderr(left_out, whole=np.asarray(value), weights=np.ones(count))), count - 1
        )

    def summary(self) -> tuple[str, ...]:
        """Samples, groups, how they oppose each other."""
        return (
            f"{plural(len(self.changes), 'sample')}, ‖d‖ = {number(self.norm)}",
            f"{len(self.up)} rise and {len(self.down)} fall most, {100 * self.share:.0f} % of all change",
            f"cos = {with_error(self.cosine, self.cosine_stderr, source='samples')}",
        )


def extremes(
    changes: Float[np.ndarray, " b"], *, count: int | None = None
) -> tuple[Int[np.ndarray, " u"], Int[np.ndarray, " v"]]:
    """Places of the samples that rise most and of those that fall most, the strongest first; NaN belongs to neither.

    Args:
        changes: of the losses.
        count: samples of each group at most; None takes 5 or half a per cent of all, whichever is more.
    """
    count = max(LEAST, int(SHARE * len(changes))) if count is None else count
    order = np.argsort(changes, kind="stable")
    order = order[np.isfinite(changes[order])]
    falling, rising = order[changes[order] < 0], order[changes[order] > 0][::-1]
    return rising[:count].copy(), falling[:count]


def _correlation(one: Float[np.ndarray, " o"], other: Float[np.ndarray, " o"]) -> float:
    if len(one) < 2:
        return math.nan
    a, b = one - one.mean(), other - other.mean()
    lengths = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / lengths if lengths > 0 else math.nan
