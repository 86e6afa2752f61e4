"""What a plane hides of a training: true losses of the checkpoints beside those of their projections."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from theodolite.records import Trajectory
from theodolite.reports.figures.description import Axis, Band, Figure, Line, Mark, Panel, Scatter
from theodolite.reports.figures.scales import ends_of, fitted_axis
from theodolite.reports.wording import number, slug

RANDOM_WALK = (
    "That two directions explain most of the variance holds for random walks too (Antognini & Sohl-Dickstein, 2018)."
)


def trajectory(record: Trajectory) -> Figure:
    """Loss at the checkpoints and at their places on the plane, above the share of each displacement that lies off it.

    Args:
        record: of at least one checkpoint.

    Returns:
        A figure of two panels over the steps of the optimiser, or over the checkpoints where these are not known.

    References:
        Antognini & Sohl-Dickstein, "PCA of high dimensional random walks with comparison to neural network training" (2018).
    """
    count = len(record.losses)
    steps = np.arange(1.0, count + 1) if record.steps is None else record.steps.astype(np.float64)
    x = Axis(label="checkpoint" if record.steps is None else "optimiser step", limits=ends_of(steps))
    return Figure(
        name=slug(f"trajectory-{record.name}"),
        title="Loss of the training and of its picture in the plane",
        caption=_caption(record),
        limits=RANDOM_WALK,
        panels=(_losses(record, steps, x), _distances(record, steps, x)),
        height=440,
    )


def _losses(record: Trajectory, steps: Float[np.ndarray, " t"], x: Axis) -> Panel:
    true, shown, errors = (_finite(each) for each in (record.losses, record.plane_losses, record.stderrs))
    y = fitted_axis("loss", true, shown, decades=2.0)
    marks: list[Mark] = []
    if np.isfinite(errors).any():
        low = np.maximum(true - errors, y.limits[0]) if y.scale == "log" else true - errors
        marks.append(Band(x=steps, low=low, high=true + errors, color="loss", label="± 1 s.e. of L(θ_t) − L(θ)"))
    marks += [
        Line(x=steps, y=shown, color="muted", dash=True, label="at the projection, as the plane shows it"),
        Line(x=steps, y=true, color="loss", width=1.6, label="at the checkpoint"),
        Scatter(
            x=steps,
            y=true,
            hollow=np.zeros(len(true), dtype=bool),
            color="loss",
            size=3.5,
            hover=tuple(
                f"loss {number(value, error)}<br>on the plane {number(other)}"
                for value, error, other in zip(record.losses, record.stderrs, record.plane_losses, strict=True)
            ),
        ),
    ]
    return Panel(marks=tuple(marks), x=x, y=y, weight=1.6)


def _distances(record: Trajectory, steps: Float[np.ndarray, " t"], x: Axis) -> Panel:
    off = record.off_plane
    marks = (
        Line(x=steps, y=off, color="parameter", width=1.2),
        Scatter(
            x=steps,
            y=off,
            hollow=np.zeros(len(off), dtype=bool),
            color="parameter",
            size=3.5,
            hover=tuple(
                f"{number(distance, digits=3)} off the plane of {number(whole, digits=3)} from θ"
                for distance, whole in zip(record.distances, record.displacements, strict=True)
            ),
        ),
    )
    return Panel(marks=marks, x=x, y=Axis(label="share off the plane", limits=(-0.03, 1.03)))


def _finite(values: Float[np.ndarray, " t"]) -> Float[np.ndarray, " t"]:
    return np.where(np.isfinite(values), values, np.nan)


def _caption(record: Trajectory) -> str:
    first, second = (100 * share for share in record.explained)
    lost = int((~np.isfinite(record.losses)).sum())
    gap = record.hidden[np.isfinite(record.hidden)]
    text = [
        f"{len(record.losses)} checkpoints; the plane explains {number(first, digits=3)} % and {number(second, digits=3)} % of "
        "Σ‖θ_t − θ‖².",
        f"Loss at θ {number(record.center)}.",
    ]
    if gap.size:
        text.append(f"The plane is off the true loss by up to {number(float(np.abs(gap).max()), digits=3)}.")
    if not np.isfinite(record.stderrs).any():
        text.append("The error from the data is not known (a single chunk).")
    if lost:
        text.append(f"{lost} losses are not finite and left out.")
    return " ".join(text)
