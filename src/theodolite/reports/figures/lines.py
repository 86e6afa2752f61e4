"""Losses along a line through the parameters."""

from __future__ import annotations

import numpy as np

from theodolite.records import Line as LineRecord
from theodolite.reports.figures.description import Axis, Band, Figure, Line, Mark, Panel, Rule, Scatter
from theodolite.reports.figures.scales import ends_of, fitted_axis
from theodolite.reports.wording import number, slug

DRAWN = {"filter": "filter-normalised random", "gaussian": "Gaussian random"}


def line(record: LineRecord) -> Figure:
    """Loss along a direction, with the standard error of its difference from the centre.

    Args:
        record: the line.

    Returns:
        A figure of one panel.
    """
    losses = np.where(np.isfinite(record.losses), record.losses, np.nan)
    errors = np.where(np.isfinite(record.stderrs), record.stderrs, np.nan)
    known = np.isfinite(errors).any()
    y = fitted_axis("loss", losses, losses - errors, losses + errors, decades=2.0)
    low = losses - errors if y.scale != "log" else np.maximum(losses - errors, y.limits[0])
    marks: list[Mark] = [Rule(at=0.0, direction="vertical", color="faint", width=0.8)]
    if known:
        marks.append(
            Band(x=record.alphas, low=low, high=losses + errors, color="loss", label="± 1 s.e. of L(α) − L(0)")
        )
    marks += [
        Line(x=record.alphas, y=losses, color="loss", width=1.6, label="loss"),
        Scatter(
            x=record.alphas,
            y=losses,
            hollow=np.zeros(len(losses), dtype=bool),
            color="loss",
            size=2.5,
            hover=tuple(
                f"α = {a:.3g}<br>loss {number(value, error)}"
                for a, value, error in zip(record.alphas, record.losses, record.stderrs, strict=True)
            ),
        ),
    ]
    x = Axis(
        label=f"α (units of ‖d‖ = {number(record.direction_norm, digits=3)})",
        limits=ends_of(record.alphas),
    )
    return Figure(
        name=slug(f"line-{record.name}"),
        title=f"Loss along a {DRAWN.get(record.name, record.name)} direction",
        caption=_line_caption(record),
        limits="One of all directions; along others the loss may rise or fall faster.",
        panels=(Panel(marks=tuple(marks), x=x, y=y),),
        height=320,
    )


def _line_caption(record: LineRecord) -> str:
    lost = int((~np.isfinite(record.losses)).sum())
    finite = record.losses[np.isfinite(record.losses)]
    span = (
        f"Losses from {number(float(finite.min()))} to {number(float(finite.max()))} at {len(record.alphas)} points"
        if finite.size
        else f"No loss is finite at {len(record.alphas)} points"
    )
    known = np.isfinite(record.stderrs).any()
    error = (
        "The band is one standard error of the difference from the centre, from the data."
        if known
        else "The error from the data is not known (a single chunk)."
    )
    gaps = f" {lost} points are not finite and left out." if lost else ""
    norm = number(record.parameter_norm, digits=3)
    return f"{span}; ‖θ‖ = {norm}. {error}{gaps}"
