"""Many slices through one point, with the parabolas that derivatives predict."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from theodolite.records import Atlas
from theodolite.reports.figures.description import Axis, Band, Figure, Line, Mark, Panel, Rule, Scatter
from theodolite.reports.figures.scales import ends_of, fitted_axis
from theodolite.reports.wording import number

COLORS = ("loss", "curvature", "bound", "parameter", "crossing", "ink")


def atlas(record: Atlas) -> Figure:
    """Losses along every direction over the same distances; dashed, what slope and curvature at the centre predict.

    Rows of one name are drawn as the band between the lowest and the highest.

    Args:
        record: of at least one direction.

    Returns:
        A figure of one panel.
    """
    finite = np.where(np.isfinite(record.losses), record.losses, np.nan)
    y = fitted_axis("loss", finite.ravel(), decades=2.0)
    kinds = {name: record.rows(name) for name in dict.fromkeys(record.names)}
    marks: list[Mark] = [Rule(at=0.0, direction="vertical", color="faint", width=0.8)]
    for name in sorted(kinds, key=lambda name: kinds[name].size < 2):
        if kinds[name].size > 1:
            marks += _draws(record, finite, name, kinds[name])
    single = [name for name, rows in kinds.items() if rows.size == 1]
    for place, name in enumerate(single):
        marks += _slice(record, finite, name, int(kinds[name][0]), COLORS[place % len(COLORS)], y)
    reach = number(100 * float(np.abs(record.positions).max()), digits=2)
    x = Axis(label="x = ‖δ‖/‖θ‖, downhill to the right", limits=ends_of(record.positions))
    return Figure(
        name="atlas",
        title=f"Slices along {len(kinds)} directions, up to {reach} % of ‖θ‖",
        caption=_caption(record, kinds),
        limits=(
            "A handful of all directions. Dashed parabolas hold where the loss is smooth and close; where a slice leaves its "
            "parabola, curvature at the centre says nothing of it. Which way an eigenvector points is a matter of the slope alone."
        ),
        panels=(Panel(marks=tuple(marks), x=x, y=y),),
        height=440,
    )


def _draws(record: Atlas, finite: Float[np.ndarray, "d a"], name: str, rows: Int[np.ndarray, " r"]) -> tuple[Mark, ...]:
    """The band between the draws of a random direction, and the mean of their parabolas."""
    x, drawn = record.positions, finite[rows]
    known = np.isfinite(drawn).any(axis=0)
    low, high = np.full(x.shape, np.nan), np.full(x.shape, np.nan)
    low[known], high[known] = np.nanmin(drawn[:, known], axis=0), np.nanmax(drawn[:, known], axis=0)
    label = f"{name} ×{rows.size} {_curvature(record, name)}"
    return (
        Band(x=x, low=low, high=high, color="muted", alpha=0.25, label=label),
        Line(x=x, y=record.predicted[rows].mean(axis=0), color="muted", width=1.1, dash=True),
    )


def _slice(
    record: Atlas, finite: Float[np.ndarray, "d a"], name: str, row: int, color: str, y: Axis
) -> tuple[Mark, ...]:
    x, losses, errors = record.positions, finite[row], record.stderrs[row]
    low = losses - errors if y.scale != "log" else np.maximum(losses - errors, y.limits[0])
    band = (Band(x=x, low=low, high=losses + errors, color=color, alpha=0.2),) if np.isfinite(errors).any() else ()
    inside = (record.predicted[row] > y.limits[0]) & (record.predicted[row] < y.limits[1])
    end = record.norms[row] / record.parameter_norm
    lands = (
        Scatter(
            x=np.array([end]),
            y=np.interp([end], x, losses),
            hollow=np.array([True]),
            color=color,
            size=6.0,
            hover=("where the step of the optimiser ends",),
        ),
    )
    return (
        *band,
        Line(x=x, y=np.where(inside, record.predicted[row], np.nan), color=color, width=1.1, dash=True),
        Line(x=x, y=losses, color=color, width=1.7, label=f"{name} {_curvature(record, name)}"),
        *(lands if name == "update" and end <= x.max() else ()),
    )


def _curvature(record: Atlas, name: str) -> str:
    found = record.curvature(name)
    return number(found.value, found.stderr, digits=2)


def _caption(record: Atlas, kinds: dict[str, Int[np.ndarray, " r"]]) -> str:
    lost = int((~np.isfinite(record.losses)).sum())
    single = any(rows.size == 1 for rows in kinds.values())
    draws = any(rows.size > 1 for rows in kinds.values())
    known = np.isfinite(record.stderrs).any()
    text = [
        f"Loss {number(record.center)} at θ, ‖θ‖ = {number(record.parameter_norm, digits=3)}. Dashed: L + gᵀδ + ½δᵀHδ.",
        "Numbers beside the names are curvatures uᵀHu ± one standard error"
        + (", of single directions from the data" if single and known else "")
        + (", of random ones from the spread of the draws, whose range is the grey band" if draws else "")
        + ".",
        "Bands around lines are one standard error of L(x) − L(0)."
        if known
        else "The error from the data is not known (a single chunk).",
    ]
    if "update" in kinds:
        text.append("Ring: where the next step of the optimiser ends.")
    if lost:
        text.append(f"{lost} losses are not finite and left out.")
    if record.seed is not None:
        text.append(f"Seed {record.seed}.")
    return " ".join(text)
