"""Which scale an axis needs, where it ends, and how a symlog axis is laid out."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

from theodolite.reports.figures.description import Axis, Scale

TINY, HUGE = 1e-200, 1e200  # an axis that held more would overflow where its ends are widened


def fitted_axis(label: str, *values: Float[np.ndarray, " _"], decades: float = 1.5, margin: float = 0.06) -> Axis:
    """An axis that holds all finite values: linear, or logarithmic once they span ``decades``.

    Args:
        label: of the axis.
        values: arrays to be held; NaN and infinity are passed over.
        decades: span from which on a linear axis would hide the small values.
        margin: free share of the axis at both ends.

    Returns:
        The axis; from 0 to 1 without a finite value.

    Example:
        >>> import numpy as np
        >>> fitted_axis("loss", np.array([1e-3, 10.0])).scale
        'log'
        >>> fitted_axis("trace", np.array([-1e3, 1.0, 2.0, 3.0, 1e4])).scale
        'symlog'
    """
    finite = np.concatenate([v[np.isfinite(v)] for v in values]) if values else np.empty(0)
    finite = np.sign(finite) * np.minimum(np.abs(finite), HUGE)
    if finite.size == 0:
        return Axis(label=label, limits=(0.0, 1.0))
    scale = scale_of(finite, decades=decades)
    low, high = float(finite.min()), float(finite.max())
    if scale == "log":
        low, high = max(low, TINY), max(high, TINY)
        room = margin * max(math.log10(high) - math.log10(low), 0.3)
        return Axis(label=label, limits=(low * 10**-room, high * 10**room), scale="log")
    if scale == "symlog":
        threshold = linear_threshold(finite)
        ends = to_symlog(np.array([low, high]), threshold=threshold)
        room = margin * float(ends[1] - ends[0])
        padded = from_symlog(ends + np.array([-room, room]), threshold=threshold)
        return Axis(label=label, limits=(float(padded[0]), float(padded[1])), scale="symlog", threshold=threshold)
    room = margin * (high - low) or 0.1 * abs(high) or 1.0
    return Axis(label=label, limits=(low - room, high + room))


def scale_of(finite: Float[np.ndarray, " n"], *, decades: float = 1.5) -> Scale:
    """Linear, or log (one sign) or symlog (both signs) once the magnitudes span ``decades``."""
    magnitudes = np.abs(finite[finite != 0])
    if magnitudes.size < 2 or np.log10(magnitudes.max()) - np.log10(magnitudes.min()) < decades:
        return "linear"
    if np.all(finite > 0):
        return "log"
    # Both signs: values close to zero are no reason to leave the linear axis, several decades on both sides are.
    return "symlog" if np.log10(magnitudes.max()) - np.log10(np.median(magnitudes)) > decades else "linear"


def linear_threshold(finite: Float[np.ndarray, " n"]) -> float:
    """A power of ten near the lower quartile of the magnitudes, at most seven decades below the largest."""
    magnitudes = np.abs(finite[finite != 0])
    return float(10 ** np.floor(max(np.log10(np.quantile(magnitudes, 0.25)), np.log10(magnitudes.max()) - 7)))


def position(value: float, axis: Axis) -> float:
    """Where a value lies on an axis, 0 at its lower and 1 at its upper end."""
    points = np.array([axis.limits[0], value, axis.limits[1]])
    if axis.scale == "log":
        points = np.log10(points)
    if axis.scale == "symlog":
        points = to_symlog(points, threshold=axis.threshold)
    return float((points[1] - points[0]) / (points[2] - points[0]))


def to_symlog(values: Float[np.ndarray, " n"], *, threshold: float) -> Float[np.ndarray, " n"]:
    """Positions on a symlog axis: linear within ±threshold (one unit long), one unit a decade beyond."""
    scaled = np.abs(values) / threshold
    with np.errstate(divide="ignore"):
        return np.asarray(np.sign(values) * np.where(scaled <= 1, scaled, 1 + np.log10(np.maximum(scaled, 1))))


def from_symlog(positions: Float[np.ndarray, " n"], *, threshold: float) -> Float[np.ndarray, " n"]:
    """Inverse of `to_symlog`."""
    size = np.abs(positions)
    return np.asarray(np.sign(positions) * threshold * np.where(size <= 1, size, 10 ** (np.maximum(size, 1) - 1)))


def symlog_ticks(axis: Axis, *, most: int = 9) -> Float[np.ndarray, " t"]:
    """Zero and powers of ten within a symlog axis, thinned to about ``most``."""
    reach = max(abs(axis.limits[0]), abs(axis.limits[1]))
    top = int(np.floor(np.log10(reach / axis.threshold)))
    stride = max(1, -(-2 * (top + 1) // most))
    powers = axis.threshold * 10.0 ** np.arange(top, -1, -stride)
    ticks = np.concatenate([-powers, [0.0], powers[::-1]])
    return ticks[(ticks >= axis.limits[0]) & (ticks <= axis.limits[1])]


def log_ticks(axis: Axis, *, most: int = 7) -> Float[np.ndarray, " t"]:
    """Powers of ten within a logarithmic axis, with their doubles and halves where there are fewer than two."""
    low, high = (np.log10(end) for end in axis.limits)
    steps = (1.0,) if high - low >= 2 else (1.0, 2.0, 5.0)
    stride = max(1, int(np.ceil((high - low) / most)))
    decades = np.arange(np.floor(low / stride) * stride, np.ceil(high) + 1, stride)
    ticks = np.sort(np.outer(10.0**decades, steps).ravel())
    return ticks[(ticks >= axis.limits[0]) & (ticks <= axis.limits[1])]


def ends_of(positions: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """The first and last of a grid's positions, apart even for a grid of one point."""
    low, high = float(positions.min()), float(positions.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)
