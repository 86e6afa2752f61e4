"""Losses over a plane through the parameters."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float

from theodolite.records import Plane
from theodolite.reports.figures.description import Axis, Contour, Figure, Panel, Path, Scatter
from theodolite.reports.figures.lines import DRAWN
from theodolite.reports.figures.overlays import off_plane, overlay_words, ring, zones
from theodolite.reports.figures.scales import HUGE, ends_of
from theodolite.reports.wording import number, slug

HIDDEN_DIMENSIONS = "Two of all directions: walls, valleys and barriers outside this plane leave no mark on it."
CAP_DECADES = 6.0  # above the lowest loss; beyond, contours of an explosion leave no colours for the basin
EDGE = 1e-6  # of the range, so that the extremes lie inside the outer levels and not on them
WIDTH = 680
ELONGATED = 4.0  # axes of more unequal lengths are drawn to different scales


def plane(record: Plane, *, cap: float | None = None) -> Figure:
    """Filled contours of the loss over a plane, with the trajectory where there is one.

    Cells that are not finite, and those above the cap, are hatched and counted in the caption. Levels are logarithmic
    where the loss spans a decade or more.

    Args:
        record: the plane.
        cap: losses above are masked; None masks what lies more than six decades above the lowest loss.

    Returns:
        A figure of one panel, in which equal lengths are equal distances in parameter space.

    References:
        Li et al., "Visualizing the loss landscape of neural nets" (2018).
    """
    contour, hidden = contours(record, cap)
    aspect = _aspect(record)
    bands = zones(record, contour)
    marks = (contour, *bands, *ring(record), *_trajectory(record, contour))
    return Figure(
        name=slug(f"plane-{record.name}"),
        title=_plane_title(record),
        caption=_plane_caption(record, hidden, aspect, banded=bool(bands)),
        limits=_plane_limits(record),
        panels=(Panel(marks=marks, x=_plane_axis(record, 0), y=_plane_axis(record, 1), aspect=aspect),),
        width=WIDTH,
        height=_height(record, aspect),
    )


def contours(record: Plane, cap: float | None) -> tuple[Contour, str]:
    """The contours, and what of the plane they hide."""
    z = record.losses.T
    lost = ~np.isfinite(z)
    top = min(cap if cap is not None else _automatic_cap(z), record.cap)
    capped = ~lost & ((z > top) | (z < -HUGE))
    if record.partial is not None:  # read on the first chunk alone
        capped |= ~lost & record.partial.T
    masked = lost | capped
    scale, levels = _levels(z[~masked])
    hidden = _masked_label(int(lost.sum()), int(capped.sum()), top)
    contour = Contour(
        x=record.alphas,
        y=record.betas,
        z=np.where(masked, np.nan, z),
        masked=masked,
        levels=levels,
        scale=scale,
        label="loss" + (", log scale" if scale == "log" else ""),
        masked_label=hidden,
    )
    return contour, hidden


def _automatic_cap(z: Float[np.ndarray, "b a"]) -> float:
    finite = z[np.isfinite(z)]
    if finite.size == 0 or finite.min() <= 0 or finite.max() <= finite.min() * 10**CAP_DECADES:
        return HUGE
    return min(float(finite.min() * 10**CAP_DECADES), HUGE)


def _levels(losses: Float[np.ndarray, " m"]) -> tuple[Literal["linear", "log"], Float[np.ndarray, " l"]]:
    """Equally spaced levels, in the logarithm where all losses are positive and span a decade."""
    if losses.size == 0:
        return "linear", np.linspace(0.0, 1.0, 17)
    low, high = float(losses.min()), float(losses.max())
    if low > 0 and high >= 10 * low:
        return "log", np.geomspace(low * (1 - EDGE), high * (1 + EDGE), 17)
    size = max(abs(low), abs(high))
    if high - low < 100 * np.spacing(size):  # flat: no 17 numbers lie between
        room = 0.5 * size if size > 1e-300 else 0.5
        low, high = low - room, high + room
    room = EDGE * (high - low)
    return "linear", np.linspace(low - room, high + room, 17)


def _trajectory(record: Plane, contour: Contour) -> tuple[Path | Scatter, ...]:
    if record.path is None or len(record.path) == 0:
        return (_centre(),)
    points = len(record.path)
    values = record.path_losses if record.path_losses is not None else np.full(points, np.nan)
    steps = [f"step {s}" for s in record.path_steps] if record.path_steps is not None else [""] * points
    off = record.path_distances if record.path_distances is not None else np.full(points, np.nan)
    return (
        Path(
            x=record.path[:, 0].copy(),
            y=record.path[:, 1].copy(),
            values=values,
            levels=contour.levels,
            scale=contour.scale,
            off=off_plane(record),
            label="checkpoints, coloured by their own loss",
            hover=tuple(
                f"{step}<br>loss at the checkpoint {number(value)}<br>distance from the plane {number(d, digits=3)}"
                for step, value, d in zip(steps, values, off, strict=True)
            ),
        ),
    )


def _centre() -> Scatter:
    return Scatter(
        x=np.zeros(1), y=np.zeros(1), hollow=np.array([False]), color="halo", size=4.0, hover=("surveyed parameters",)
    )


def _height(record: Plane, aspect: float | None) -> int:
    """Height at which the panel fills the figure: beside it lie about 160 pixels of labels, above and below 90."""
    if aspect is None:
        return 460
    tall = aspect * float(np.ptp(record.betas)) / float(np.ptp(record.alphas))
    return int(min(max((WIDTH - 160) * tall + 90, 240), 640))


def _aspect(record: Plane) -> float | None:
    """‖d₂‖/‖d₁‖, so that equal lengths are equal distances; None for a plane too elongated to be read that way."""
    first, second = record.direction_norms
    if not (first > 0 and second > 0 and np.isfinite(first) and np.isfinite(second)):
        return None
    wide, tall = first * np.ptp(record.alphas), second * np.ptp(record.betas)
    return float(second / first) if wide > 0 and tall > 0 and 1 / ELONGATED < wide / tall < ELONGATED else None


def _plane_axis(record: Plane, which: Literal[0, 1]) -> Axis:
    letter, index = ("α", "₁") if which == 0 else ("β", "₂")
    share = "" if record.explained is None else f"\n{100 * record.explained[which]:.1f} % of the variance"
    norm = number(record.direction_norms[which], digits=3)
    positions = record.alphas if which == 0 else record.betas
    return Axis(label=f"{letter} (units of ‖d{index}‖ = {norm}){share}", limits=ends_of(positions))


def _masked_label(lost: int, capped: int, cap: float) -> str:
    parts = [f"{lost} cells not finite"] if lost else []
    parts += [f"{capped} cells above {number(cap, digits=2)}"] if capped else []
    return ", ".join(parts)


def _plane_title(record: Plane) -> str:
    if record.name == "trajectory":
        return "Loss over the plane of the trajectory"
    return f"Loss over a plane of {DRAWN.get(record.name, record.name)} directions"


def _plane_caption(record: Plane, hidden: str, aspect: float | None, *, banded: bool) -> str:
    finite = record.losses[np.isfinite(record.losses)]
    span = (
        f"Losses from {number(float(finite.min()))} to {number(float(finite.max()))}"
        if finite.size
        else "No loss is finite"
    )
    rows, columns = len(record.alphas), len(record.betas)
    text = [f"{span} on {rows} × {columns} points; cosine between the axes {number(record.cosine, digits=2)}."]
    errors = record.stderrs[np.isfinite(record.stderrs)]
    if errors.size:
        text.append(
            f"Standard error of a difference from the centre, from the data: median {number(float(np.median(errors)), digits=2)}, "
            f"largest {number(float(errors.max()), digits=2)}."
        )
    else:
        text.append("The error from the data is not known (a single chunk).")
    if record.path is None or len(record.path) == 0:
        text.append("White dot: the surveyed parameters.")
    if hidden:
        text.append(f"Masked: {hidden}.")
    if record.path_distances is not None and len(record.path_distances):
        far = float(np.max(record.path_distances))
        text.append(
            f"The checkpoints lie up to {number(far, digits=3)} off the plane; where a marker's colour differs from "
            "its surroundings, the plane does not show the loss that the training saw. White rings are as wide as the share of "
            "the way to a checkpoint that lies off the plane."
        )
    text += overlay_words(record, banded=banded)
    text.append(
        "Equal lengths are equal distances in parameter space." if aspect else "The axes are drawn to different scales."
    )
    return " ".join(text)


def _plane_limits(record: Plane) -> str:
    if record.name != "trajectory":
        return f"{HIDDEN_DIMENSIONS} Random directions mostly see the average curvature, not the sharpest."
    return (
        f"{HIDDEN_DIMENSIONS} The axes were fitted to this trajectory: that it looks smooth and flat here holds for "
        "random walks too (Antognini & Sohl-Dickstein, 2018)."
    )
