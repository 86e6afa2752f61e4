"""What lies over the contours of a plane: where levels may run, where the quadratic model holds, how far checkpoints are off."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from theodolite.records import Plane
from theodolite.reports.figures.description import Contour, Line
from theodolite.reports.figures.relief import Zone
from theodolite.reports.wording import number

COVERAGE = 0.9  # from 5 to 95 %
FAR = 1e3  # half-widths of a band; beyond it lies no level


def zones(record: Plane, contour: Contour) -> tuple[Zone, ...]:
    """Where three of the levels may run, by the error of every loss less that of the centre; nothing where it is not known."""
    low, high = record.band(COVERAGE)
    half = (high - low).T / 2
    if not (half > 0).any():
        return ()
    found = []
    for level in contour.levels[4:-1:4]:
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            away = np.clip((contour.z - level) / half, -FAR, FAR)
        away = np.where(half > 0, away, np.sign(contour.z - level) * FAR)
        found.append(Zone(x=contour.x, y=contour.y, z=np.where(contour.masked, np.nan, away), color="halo"))
    return tuple(found)


def ring(record: Plane) -> tuple[Line, ...]:
    """The curve within which the quadratic model at the centre misses at most a tenth of the range of the losses."""
    model = record.quadratic
    if model is None or not 0 < model.radius < np.inf:
        return ()
    angles = np.linspace(0, 2 * np.pi, 97)
    return (
        Line(
            x=model.radius * np.cos(angles),
            y=model.radius * np.sin(angles),
            color="bound",
            width=1.5,
            dash=True,
            label="quadratic model within 10 %",
        ),
    )


def off_plane(record: Plane) -> Float[np.ndarray, " t"] | None:
    """‖r‖/‖θ_t − θ‖ of each checkpoint of the path: the share of its displacement that the plane does not show."""
    if record.path is None or record.path_distances is None:
        return None
    (first, second), angle = record.direction_norms, record.cosine
    a, b = record.path[:, 0] * first, record.path[:, 1] * second
    whole = np.sqrt(np.maximum(a**2 + b**2 + 2 * angle * a * b, 0) + record.path_distances**2)
    return np.asarray(np.where(whole > 0, record.path_distances / np.where(whole > 0, whole, 1), 0.0))


def overlay_words(record: Plane, *, banded: bool) -> list[str]:
    """Sentences of a caption for what lies over the contours."""
    text = []
    if banded:
        text.append("Pale bands: where three of the levels may run, 5 to 95 % by the error of the data.")
    model = record.quadratic
    if model is not None and np.isfinite(model.radius):
        text.append(
            f"The quadratic model from one gradient and two products is within 10 % up to {number(model.radius, digits=2)} from "
            "the centre."
            if model.radius > 0
            else "The quadratic model misses the losses at every distance that was read: kinks, noise or wrong derivatives."
        )
    if record.evaluated is not None:
        text.append(
            f"{int(record.evaluated.sum()):,} points evaluated, the others from a spline that misses held-out points by up to "
            f"{number(100 * record.interpolation_error, digits=2)} % of the range."
        )
    if record.seed is not None:
        text.append(f"Seed {record.seed}.")
    return text
