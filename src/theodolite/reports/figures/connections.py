"""Losses between checkpoints: along curves from one to another, and barriers between every two."""

from __future__ import annotations

import numpy as np

from theodolite.records import Connectivity
from theodolite.records import Path as PathRecord
from theodolite.reports.figures.description import Axis, Band, Figure, Line, Mark, Panel
from theodolite.reports.figures.relief import Heat
from theodolite.reports.figures.scales import ends_of, fitted_axis
from theodolite.reports.wording import number, slug

COLORS = ("loss", "curvature", "bound", "parameter", "crossing", "ink")
CHORD = "max over t of L(t) − (1−t)·L(0) − t·L(1)"
WRITTEN = 10  # checkpoints up to which every barrier is written into its cell


def profiles(record: PathRecord) -> Figure:
    """Losses along every curve between two checkpoints, and the chord above which barriers are read.

    Args:
        record: of at least one profile.

    Returns:
        A figure of one panel.
    """
    losses = np.where(np.isfinite(record.losses), record.losses, np.nan)
    errors = np.where(np.isfinite(record.stderrs), record.stderrs, np.nan)
    y = fitted_axis("loss", *losses, *(losses - errors), *(losses + errors), decades=2.0)
    t, first = record.ts, losses[0]
    chord = (1 - t) * first[0] + t * first[-1]
    marks: list[Mark] = [Line(x=t, y=chord, color="faint", width=1.0, dash=True, label="chord")]
    for place, name in enumerate(record.profiles):
        color = COLORS[place % len(COLORS)]
        if np.isfinite(errors[place]).any():
            low = losses[place] - errors[place]
            low = np.maximum(low, y.limits[0]) if y.scale == "log" else low
            marks.append(Band(x=t, low=low, high=losses[place] + errors[place], color=color, alpha=0.2))
        marks.append(
            Line(x=t, y=losses[place], color=color, width=1.7, label=f"{name} {_barrier(record, name)}"),
        )
    if record.predicted is not None:
        marks.append(
            Line(x=t, y=chord + record.predicted, color="loss", width=1.1, dash=True, label="predicted from both ends")
        )
    return Figure(
        name=slug(f"path-{'-'.join(record.profiles)}"),
        title="Loss between two checkpoints",
        caption=_profile_caption(record),
        limits=(
            "One curve of each kind: that a straight line has a barrier does not part two minima, and a curve without one does not "
            "make their average good. Between the positions the loss was not read."
        ),
        panels=(Panel(marks=tuple(marks), x=Axis(label="t, from start to end", limits=ends_of(t)), y=y),),
        height=380,
    )


def _barrier(record: PathRecord, name: str) -> str:
    found = record.barrier(name)
    return number(found.value, found.stderr, digits=2)


def _profile_caption(record: PathRecord) -> str:
    name = record.profiles[0]
    others = ", ".join(
        f"{number(each.value, each.stderr)} above the {word}"
        for word, each in (
            ("larger end", record.barrier(name, above="larger")),
            ("mean of the ends", record.barrier(name, above="mean")),
        )
    )
    lost = int((~np.isfinite(record.losses)).sum())
    text = [
        f"{record.ts.size} positions. Numbers beside the names are barriers above the chord, {CHORD}, ± one standard error from "
        f"the data; that of {name} is {others}.",
        f"Distance between the checkpoints {number(float(record.distances[0]), digits=3)}.",
    ]
    if np.isfinite(record.stderrs).any():
        text.append("Bands are one standard error of the deviation from the chord.")
    else:
        text.append("The error from the data is not known (a single chunk).")
    if record.predicted is not None and np.isfinite(record.prediction_error):
        text.append(
            f"The prediction is off by {number(100 * record.prediction_error, digits=2)} % of the deviation next to the ends."
        )
    if lost:
        text.append(f"{lost} losses are not finite and left out.")
    return " ".join(text)


def connectivity(record: Connectivity) -> Figure:
    """Barriers between every two checkpoints as a table of colours.

    Args:
        record: of at least two checkpoints.

    Returns:
        A figure of one panel.
    """
    count = len(record.names)
    z = np.where(np.isfinite(record.barriers), record.barriers, np.nan)
    np.fill_diagonal(z, np.nan)
    finite = z[np.isfinite(z)]
    high = float(finite.max()) if finite.size and finite.max() > 0 else 1.0
    hover = tuple(
        tuple(
            f"{one}<br>loss {number(float(record.losses[i]))}"
            if i == j
            else f"{one} · {other}<br>barrier {number(float(record.barriers[i, j]), float(record.stderrs[i, j]))}"
            f"<br>distance {number(float(record.distances[i, j]), digits=3)}"
            for j, other in enumerate(record.names)
        )
        for i, one in enumerate(record.names)
    )
    texts = tuple(
        tuple("" if i == j else number(float(record.barriers[i, j]), digits=2) for j in range(count))
        for i in range(count)
    )
    heat = Heat(z=z, high=high, label="barrier above the chord", texts=texts if count <= WRITTEN else (), hover=hover)
    size = (64 if count <= 5 else 46 if count <= WRITTEN else 26) * count
    return Figure(
        name=slug(f"connectivity-{record.profile}"),
        title=f"Barriers between {count} checkpoints, {record.profile} paths",
        caption=_matrix_caption(record, finite),
        limits=(
            "Straight paths alone: checkpoints with a barrier between them may be joined by a curve. Errors are those of the data, "
            "not of other runs."
        ),
        panels=(
            Panel(
                marks=(heat,),
                x=Axis(label="", limits=(-0.5, count - 0.5), names=record.names),
                y=Axis(label="", limits=(count - 0.5, -0.5), names=record.names),
                aspect=1.0,
            ),
        ),
        width=max(380, min(760, 220 + size)),
        height=max(280, min(700, 110 + size)),
    )


def _matrix_caption(record: Connectivity, finite: np.ndarray) -> str:
    errors = record.stderrs[np.triu_indices(len(record.names), k=1)]
    errors = errors[np.isfinite(errors)]
    lost = int((~np.isfinite(record.barriers[np.triu_indices(len(record.names), k=1)])).sum())
    text = [
        f"{CHORD}, at {record.points} positions a pair; losses of the checkpoints from {number(float(record.losses.min()))} to "
        f"{number(float(record.losses.max()))}."
    ]
    text.append(
        f"Standard errors from the data up to {number(float(errors.max()), digits=2)}."
        if errors.size
        else "The error from the data is not known (a single chunk)."
    )
    if lost:
        text.append(f"{lost} pairs are not finite (grey).")
    if not finite.size:
        text.append("No barrier is finite.")
    return " ".join(text)
