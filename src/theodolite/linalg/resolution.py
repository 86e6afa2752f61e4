"""Which Ritz values are eigenvalues, told apart from all others by their residuals."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Bool, Float

RESOLVED = 2e-2  # width of uncertainty over distance to the next, below which Ritz values stand for one eigenvalue
ALONE = 1e-4  # width over magnitude


@final
@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Ritz values with overlapping intervals of uncertainty.

    Args:
        nodes: their positions.
        low: lower end of their intervals.
        high: upper end.
        resolved: whether all else is so far away that they are one eigenvalue, perhaps repeated.
    """

    nodes: slice
    low: float
    high: float
    resolved: bool


def clusters(values: Float[np.ndarray, " s"], slack: Float[np.ndarray, " s"]) -> list[Cluster]:
    """Ascending values grouped where their intervals, of half-width ``slack``, overlap.

    Copies of a repeated eigenvalue that rounding brings are in one cluster, and so is a bulk that has not converged.
    """
    # Running ends, because a wide interval may reach beyond its next neighbour.
    lower = np.minimum.accumulate((values - slack)[::-1])[::-1]
    upper = np.maximum.accumulate(values + slack)
    borders = [0, *(np.flatnonzero(lower[1:] > upper[:-1]) + 1).tolist(), len(values)]
    slices = [slice(first, last) for first, last in itertools.pairwise(borders)]
    lows, highs = np.array([lower[s.start] for s in slices]), np.array([upper[s.stop - 1] for s in slices])
    gaps = np.concatenate([[np.inf], lows[1:] - highs[:-1], [np.inf]])
    # A cluster that is alone has no distance to the next; it is one eigenvalue if it is hardly wider than rounding.
    lone = ALONE / RESOLVED * np.maximum(np.abs(lows), np.abs(highs)) if len(slices) == 1 else np.inf
    resolved = highs - lows <= RESOLVED * np.minimum(np.minimum(gaps[:-1], gaps[1:]), lone)
    return [
        Cluster(nodes=nodes, low=float(low), high=float(high), resolved=bool(alone))
        for nodes, low, high, alone in zip(slices, lows, highs, resolved, strict=True)
    ]


def are_resolved(values: Float[np.ndarray, " s"], slack: Float[np.ndarray, " s"]) -> Bool[np.ndarray, " s"]:
    """Which values lie in resolved clusters."""
    found = np.zeros(len(values), dtype=bool)
    for cluster in clusters(values, slack):
        found[cluster.nodes] = cluster.resolved
    return found
