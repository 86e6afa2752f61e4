"""How the marks of landscapes become Plotly traces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from theodolite.reports.figures.description import Axis, Figure, Mark, Panel
from theodolite.reports.figures.relief import Heat, Surface, Zone
from theodolite.reports.palette import tint
from theodolite.reports.plotly_marks import Colors, Spec, escaped, positions, rounded
from theodolite.reports.wording import number

CAMERA: Spec = {"eye": {"x": 1.1, "y": -1.42, "z": 0.92}, "center": {"x": 0, "y": 0, "z": -0.12}}
BAR: Spec = {"thickness": 12, "outlinewidth": 0, "tickfont": {"size": 11}, "x": 1.01}
BRIGHT_CELL = 0.55  # of the scale, from which on viridis is too bright for white words


def surface(panel: Panel, figure: Figure, colors: Colors) -> tuple[Spec, Spec]:
    """The trace of a panel of one surface, and the scene that replaces its axes."""
    (mark,) = panel.marks
    assert isinstance(mark, Surface)
    logarithmic = mark.scale == "log"
    heights, levels = (np.log10(mark.z), np.log10(mark.levels)) if logarithmic else (mark.z, mark.levels)
    low, high = float(levels[0]), float(levels[-1])
    words = {
        "tickvals": levels[::4].tolist(),
        "ticktext": [number(float(value), digits=2) for value in mark.levels[::4]],
    }
    trace: Spec = {
        "type": "surface",
        "x": positions(mark.x, panel.x),
        "y": positions(mark.y, panel.y),
        "z": [[rounded(float(value)) for value in row] for row in heights],
        "text": [[number(float(value)) for value in row] for row in mark.z],
        "hovertemplate": "α %{x:.3g}, β %{y:.3g}<br>loss %{text}<extra></extra>",
        "colorscale": "Viridis",
        "cmin": low,
        "cmax": high,
        "contours": {
            "z": {
                "show": True,
                "start": low,
                "end": high,
                "size": (high - low) / (len(levels) - 1),
                "color": "rgba(255,255,255,0.45)",
                "width": 1,
            }
        },
        "colorbar": {"title": {"text": escaped(mark.label), "side": "right", "font": {"size": 12}}, **words, **BAR},
    }
    scene: Spec = {
        "xaxis": _axis(panel.x, colors),
        "yaxis": _axis(panel.y, colors),
        "zaxis": _axis(Axis(label="", limits=(low, high)), colors) | words,
        "aspectmode": "manual",
        "aspectratio": {"x": 1, "y": panel.aspect or 1, "z": 0.7},
        "camera": CAMERA,
        "dragmode": "turntable",
    }
    return trace, scene


def _axis(axis: Axis, colors: Colors) -> Spec:
    return {
        "title": {"text": escaped(axis.label.partition(" (")[0]), "font": {"size": 12}},
        "range": list(axis.limits),
        "gridcolor": colors["grid"],
        "linecolor": colors["faint"],
        "showbackground": False,
        "zeroline": False,
        "tickfont": {"size": 11},
        "showspikes": False,
    }


def _zone(mark: Zone, panel: Panel, colors: Colors) -> list[Spec]:
    return [
        {
            "type": "contour",
            "x": positions(mark.x, panel.x),
            "y": positions(mark.y, panel.y),
            "z": [[rounded(float(value)) for value in row] for row in mark.z],
            "contours": {"type": "constraint", "operation": "][", "value": [-1, 1]},  # Plotly fills what it excludes
            "fillcolor": tint(colors[mark.color], mark.alpha),
            "line": {"width": 0},
            "connectgaps": False,
            "hoverinfo": "skip",
            "showscale": False,
        }
    ]


def _heat(mark: Heat, panel: Panel, colors: Colors) -> list[Spec]:
    lost = ~np.isfinite(mark.z)
    grey = {"z": [[1 if gone else None for gone in row] for row in lost], "showscale": False, "hoverinfo": "skip"}
    shade = {"type": "heatmap", "colorscale": [[0, colors["mask"]], [1, colors["mask"]]], **grey}
    table: Spec = {
        "type": "heatmap",
        "z": [[rounded(float(value)) for value in row] for row in mark.z],
        "colorscale": "Viridis",
        "zmin": 0,
        "zmax": mark.high,
        "hoverinfo": "z",
        "colorbar": {"title": {"text": escaped(mark.label), "side": "right", "font": {"size": 12}}, **BAR},
    }
    if mark.hover:
        table |= {"hovertext": [[escaped(text) for text in row] for row in mark.hover], "hoverinfo": "text"}
    return [*([shade] if lost.any() else []), table, *([_words(mark, colors)] if mark.texts else [])]


def _words(mark: Heat, colors: Colors) -> Spec:
    rows, columns = mark.z.shape
    cells = [(row, column) for row in range(rows) for column in range(columns)]
    bright = [not mark.z[cell] < BRIGHT_CELL * mark.high for cell in cells]
    return {
        "type": "scatter",
        "mode": "text",
        "x": [column for _, column in cells],
        "y": [row for row, _ in cells],
        "text": [escaped(mark.texts[row][column]) for row, column in cells],
        "textfont": {"size": 11, "color": [colors["path" if each else "halo"] for each in bright]},
        "hoverinfo": "skip",
    }


RELIEF: dict[type[Mark], Callable[[Any, Panel, Colors], list[Spec]]] = {Zone: _zone, Heat: _heat}
