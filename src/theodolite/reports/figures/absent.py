"""Readings that are not there: lost ones, which are a failure, and those that no bound applies to, which are none."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from theodolite.records import Stability
from theodolite.reports.figures.description import Axis, Band, Mark, Ticks

MOST_CROSSES = 24


def missing_marks(steps: Float[np.ndarray, " n"], values: Float[np.ndarray, " n"], y: Axis) -> list[Mark]:
    """A shaded stretch wherever readings were NaN or infinite, with a cross at its first step."""
    order = np.argsort(steps, kind="stable")
    steps, lost = steps[order], ~np.isfinite(values[order])
    if not lost.any():
        return []
    change = np.diff(lost.astype(int), prepend=0, append=0)
    starts, ends = np.flatnonzero(change == 1), np.flatnonzero(change == -1) - 1
    edges = np.stack([steps[starts], steps[starts], steps[ends], steps[ends]], axis=1).ravel()
    low = np.full(edges.shape, y.limits[0])
    high = np.tile([y.limits[0], y.limits[1], y.limits[1], y.limits[0]], len(starts))
    first = steps[starts][:MOST_CROSSES]
    return [
        Band(x=edges, low=low, high=high, color="crossing", alpha=0.09),
        Ticks(
            x=first,
            hollow=np.zeros(len(first), dtype=bool),
            color="crossing",
            edge="top",
            shape="cross",
            label="not finite from here",
            hover=tuple(f"step {step:.0f}: not finite" for step in first),
        ),
    ]


def unjudged(reading: Stability) -> bool:
    """Whether the sharpness is known but there was no bound to hold it against, as at the first step of Adam."""
    return bool(np.isnan(reading.ratio) and np.isfinite(reading.sharpness))


def unjudged_marks(steps: Float[np.ndarray, " n"]) -> list[Mark]:
    """Neutral ticks at the foot where there was no bound to hold the sharpness against."""
    if not steps.size:
        return []
    return [
        Ticks(
            x=steps,
            hollow=np.zeros(len(steps), dtype=bool),
            color="faint",
            label="not judged yet",
            hover=tuple(f"step {step:.0f}: measured, without a bound to judge it by" for step in steps),
        )
    ]


def unjudged_words(readings: Sequence[Stability]) -> str:
    """Where some readings have a bound and others have none yet."""
    open_ = [r for r in readings if unjudged(r)]
    if not open_ or len(open_) == len(readings):
        return ""
    where = f"at step {open_[0].step:,}" if len(open_) == 1 else f"{len(open_)} times, first at step {open_[0].step:,}"
    return f"The optimiser had no bound to judge by {where} (grey tick)."
