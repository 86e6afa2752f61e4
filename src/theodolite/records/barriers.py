"""What stands between two ends of a curve of losses, by each of the definitions in use."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from jaxtyping import Float

Above = Literal["chord", "larger", "mean"]
ABOVE: tuple[str, ...] = get_args(Above)
# Barriers above each, and the mode connectivity, in the columns in which a record keeps their errors.
HEIGHTS = (*ABOVE, "connectivity")


def deviations(losses: Float[np.ndarray, "*k a"], ts: Float[np.ndarray, " a"]) -> Float[np.ndarray, "*k a"]:
    """L(t) − (1−t)·L(0) − t·L(1), 0 at both ends.

    Args:
        losses: at each position, the ends first and last.
        ts: positions from 0 to 1.
    """
    with np.errstate(invalid="ignore", over="ignore"):  # infinity − infinity is a reading, NaN
        # In this form the chord between equal ends is exactly level, so that a constant loss has no barrier from rounding.
        rises = losses - (losses[..., :1] + ts * (losses[..., -1:] - losses[..., :1]))
    if not ts.size:
        return np.asarray(rises)
    rises[..., [0, -1]] = np.where(np.isfinite(losses[..., [0, -1]]), 0.0, np.nan)
    return np.asarray(rises)


def heights(losses: Float[np.ndarray, "*k a"], ts: Float[np.ndarray, " a"]) -> Float[np.ndarray, "*k 4"]:
    """The barrier of a curve above its chord, its larger end and the mean of its ends, and its mode connectivity.

    The first three are the largest of L(t) − (1−t)·L(0) − t·L(1), of L(t) − max(L(0), L(1)) and of L(t) − ½(L(0) + L(1))
    over all positions; the last is ½(L(0) + L(1)) − L(t*) where that is largest in magnitude, negative for a barrier and
    positive where the curve leads below its ends. NaN where a loss is NaN.

    Args:
        losses: at each position, the ends first and last.
        ts: positions from 0 to 1.

    References:
        Frankle, Dziugaite, Roy & Carbin, "Linear mode connectivity and the lottery ticket hypothesis" (2020), the mean;
        Entezari, Sedghi, Saukh & Neyshabur, "The role of permutation invariance in linear mode connectivity" (2022), the
        chord; Yang et al., "Taxonomizing local versus global structure in neural network loss landscapes" (2021), mode
        connectivity.
    """
    if not ts.size:
        return np.full((*losses.shape[:-1], len(HEIGHTS)), np.nan)
    ends = losses[..., [0, -1]]
    with np.errstate(invalid="ignore", over="ignore"):
        below = ends.mean(axis=-1, keepdims=True) - losses
        above_larger = (losses - ends.max(axis=-1, keepdims=True)).max(axis=-1)
        farthest = np.where(np.isnan(below), np.inf, np.abs(below)).argmax(axis=-1)
    connectivity = np.take_along_axis(below, farthest[..., None], axis=-1)[..., 0]
    return np.stack([deviations(losses, ts).max(axis=-1), above_larger, (-below).max(axis=-1), connectivity], axis=-1)
