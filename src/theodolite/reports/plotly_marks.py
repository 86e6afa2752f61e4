"""How each mark of a figure becomes Plotly traces."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from theodolite.reports.figures.description import (
    Axis,
    Band,
    Bars,
    Cells,
    Contour,
    Labels,
    Line,
    Mark,
    Panel,
    Path,
    Scatter,
    Ticks,
)
from theodolite.reports.figures.scales import to_symlog
from theodolite.reports.palette import LIGHT, tint
from theodolite.reports.wording import number

Colors = Mapping[str, str]
Spec = dict[str, Any]


def positions(values: Float[np.ndarray, " n"], axis: Axis) -> list[float | None]:
    """Where values lie on an axis; None where they are not finite, or not positive on a logarithmic one."""
    if axis.scale == "symlog":
        values = to_symlog(np.asarray(values, dtype=np.float64), threshold=axis.threshold)
    shown = np.isfinite(values) & ((values > 0) | (axis.scale != "log"))
    return [rounded(float(value), digits=6) if good else None for value, good in zip(values, shown, strict=True)]


def rounded(value: float, *, digits: int = 5) -> float | None:
    """To what the eye can tell apart, for half the bytes; None where that is not finite."""
    short = float(f"{value:.{digits}g}")
    return short if math.isfinite(short) else None


def _line(mark: Line, panel: Panel, colors: Colors) -> list[Spec]:
    color = tint(colors[mark.color], mark.alpha) if mark.alpha < 1 else colors[mark.color]
    line = {"color": color, "width": mark.width * 1.2, "dash": "6px,4px" if mark.dash else "solid"}
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "x": positions(mark.x, panel.x),
            "y": positions(mark.y, panel.y),
            "line": line,
            "name": escaped(mark.label),
            "hoverinfo": "x+y+name" if mark.label else "skip",
            "connectgaps": False,
        }
    ]


def _band(mark: Band, panel: Panel, colors: Colors) -> list[Spec]:
    known = np.isfinite(mark.low) & np.isfinite(mark.high) & np.isfinite(mark.x)
    x, low, high = mark.x[known], mark.low[known], mark.high[known]
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "x": positions(np.concatenate([x, x[::-1]]), panel.x),
            "y": positions(np.concatenate([low, high[::-1]]), panel.y),
            "fill": "toself",
            "fillcolor": tint(colors[mark.color], mark.alpha),
            "line": {"width": 0, "color": colors[mark.color]},
            "name": escaped(mark.label),
            "hoverinfo": "skip",
        }
    ]


def _scatter(mark: Scatter, panel: Panel, colors: Colors) -> list[Spec]:
    color = colors[mark.color]
    spec: Spec = {
        "type": "scatter",
        "mode": "markers",
        "x": positions(mark.x, panel.x),
        "y": positions(mark.y, panel.y),
        "marker": {
            "size": mark.size * 1.5,
            "color": [colors["paper"] if hollow else color for hollow in mark.hollow],
            "line": {"color": color, "width": 1.5},
        },
        "name": escaped(mark.label),
    }
    if mark.error is not None:
        spec["error_y" if mark.direction == "vertical" else "error_x"] = _error(mark, mark.error, panel, color)
    return [spec | _hover(mark.hover)]


def _error(mark: Scatter, error: Float[np.ndarray, " n"], panel: Panel, color: str) -> Spec:
    """Error bars, turned into distances on the axis where it is symlog; none where the error is not known."""
    axis, values = (panel.y, mark.y) if mark.direction == "vertical" else (panel.x, mark.x)
    size = np.where(np.isfinite(error), error, 0.0)
    up, down = size, size
    if axis.scale == "symlog":
        at = to_symlog(values, threshold=axis.threshold)
        up = to_symlog(values + size, threshold=axis.threshold) - at
        down = at - to_symlog(values - size, threshold=axis.threshold)
    if axis.scale == "log":
        down = np.minimum(size, values - axis.limits[0] * 0.5)
    return {
        "type": "data",
        "symmetric": False,
        "array": [rounded(float(e)) or 0.0 for e in up],
        "arrayminus": [rounded(float(e)) or 0.0 for e in down],
        "color": color,
        "thickness": 1.2,
        "width": 2.5,
    }


def _bars(mark: Bars, panel: Panel, colors: Colors) -> list[Spec]:
    return [
        {
            "type": "bar",
            "orientation": "h",
            "x": positions(mark.values, panel.x),
            "y": [float(y) for y in mark.y],
            "width": mark.thickness,
            "marker": {"color": tint(colors[mark.color], mark.alpha), "line": {"width": 0}},
        }
        | _hover(mark.hover)
    ]


def _ticks(mark: Ticks, panel: Panel, colors: Colors) -> list[Spec]:
    color = colors[mark.color]
    height = 0.0 if mark.edge == "bottom" else 1.0
    symbol = "x-thin-open" if mark.shape == "cross" else "line-ns-open"
    traces: list[Spec] = []
    for hollow, label in ((False, mark.label), (True, "not converged")):
        chosen = mark.hollow == hollow
        if not chosen.any():
            continue
        hover = tuple(text for text, good in zip(mark.hover, chosen, strict=False) if good)
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": positions(mark.x[chosen], panel.x),
                "y": [height] * int(chosen.sum()),
                "marker": {
                    "symbol": "circle-open" if hollow else symbol,
                    "size": 7 if mark.shape == "cross" or hollow else 22,
                    "color": color,
                    "line": {"color": color, "width": 1.6},
                },
                "cliponaxis": mark.shape == "tick" and not hollow,
                "name": escaped(label),
            }
            | _hover(hover)
        )
    return traces


def _contour(mark: Contour, panel: Panel, colors: Colors) -> list[Spec]:
    shade = [_shade(mark, panel, colors)] if mark.masked.any() else []
    if mark.masked.all():
        return shade
    logarithmic = mark.scale == "log"
    levels = np.log10(mark.levels) if logarithmic else mark.levels
    z = np.log10(mark.z) if logarithmic else mark.z
    return [
        *shade,
        {
            "type": "contour",
            "x": positions(mark.x, panel.x),
            "y": positions(mark.y, panel.y),
            "z": [[rounded(float(v)) for v in row] for row in z],
            "customdata": [[number(float(v)) for v in row] for row in mark.z],
            "hovertemplate": "α %{x:.3g}, β %{y:.3g}<br>loss %{customdata}<extra></extra>",
            "colorscale": "Viridis",
            "zmin": float(levels[0]),
            "zmax": float(levels[-1]),
            "autocontour": False,
            "contours": {
                "start": float(levels[0]),
                "end": float(levels[-1]),
                "size": float(levels[1] - levels[0]),
                "coloring": "fill",
            },
            "line": {"width": 0.5, "color": "rgba(255,255,255,0.45)", "smoothing": 0},
            "connectgaps": False,
            "colorbar": {
                "title": {"text": escaped(mark.label), "side": "right", "font": {"size": 12}},
                "tickvals": levels[::4].tolist(),
                "ticktext": [number(float(level), digits=2) for level in mark.levels[::4]],
                "thickness": 12,
                "outlinewidth": 0,
                "tickfont": {"size": 11},
                "x": 1.01,
            },
        },
    ]


def _shade(mark: Contour, panel: Panel, colors: Colors) -> Spec:
    """Flat colour one cell wider than the mask: contours end at the last valid point, and lie above."""
    return {
        "type": "heatmap",
        "x": positions(mark.x, panel.x),
        "y": positions(mark.y, panel.y),
        "z": [[1 if near else None for near in row] for row in _widened(mark.masked)],
        "colorscale": [[0, colors["mask"]], [1, colors["mask"]]],
        "opacity": 0.55,
        "showscale": False,
        "name": escaped(mark.masked_label),
        "hoverinfo": "skip",
    }


def _widened(mask: Bool[np.ndarray, "ny nx"]) -> Bool[np.ndarray, "ny nx"]:
    padded = np.pad(mask, 1)
    rows = padded[:-2] | padded[1:-1] | padded[2:]
    return np.asarray(rows[:, :-2] | rows[:, 1:-1] | rows[:, 2:])


def _path(mark: Path, panel: Panel, colors: Colors) -> list[Spec]:
    x, y = positions(mark.x, panel.x), positions(mark.y, panel.y)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.log10(mark.values) if mark.scale == "log" else mark.values
        low, high = (np.log10(mark.levels) if mark.scale == "log" else mark.levels)[[0, -1]]
    words = [""] * len(x)
    words[0], words[-1] = "start", "end"
    halo = {"type": "scatter", "mode": "lines", "x": x, "y": y, "hoverinfo": "skip"}
    return [
        halo | {"line": {"color": tint(colors["halo"], 0.8), "width": 4}},
        halo | {"line": {"color": colors["path"], "width": 1.8}},
        *([] if mark.off is None else [halo | _rings(mark, colors)]),
        {
            "type": "scatter",
            "mode": "markers+text",
            "x": x,
            "y": y,
            "text": words,
            "textposition": "top right",
            "cliponaxis": False,
            "textfont": {
                "color": colors["path"],
                "size": 13,
                "weight": 700,
                "shadow": ", ".join([f"0 0 3px {LIGHT['halo']}"] * 4),
            },
            "marker": {
                "size": 9,
                "color": [rounded(float(v)) for v in values],
                "colorscale": "Viridis",
                "cmin": float(low),
                "cmax": float(high),
                "line": {"color": colors["halo"], "width": 1.5},
            },
            "name": escaped(mark.label),
        }
        | _hover(mark.hover),
    ]


def _rings(mark: Path, colors: Colors) -> Spec:
    assert mark.off is not None
    sizes = [rounded(9 + 12 * min(max(float(share), 0.0), 1.0), digits=3) or 9 for share in mark.off]
    return {"mode": "markers", "marker": {"size": sizes, "color": tint(colors["halo"], 0.8), "line": {"width": 0}}}


def _cells(mark: Cells, panel: Panel, colors: Colors) -> list[Spec]:
    lost = ~np.isfinite(mark.z)
    grey = {"z": [[1 if gone else None for gone in row] for row in lost], "showscale": False, "hoverinfo": "skip"}
    shade = {"type": "heatmap", "colorscale": [[0, colors["mask"]], [1, colors["mask"]]], **grey}
    across, along = np.nonzero(mark.marked)
    crosses = {
        "type": "scatter",
        "mode": "markers",
        "x": along.tolist(),
        "y": across.tolist(),
        "marker": {
            "symbol": "x-thin-open",
            "size": 6,
            "color": [colors["halo" if abs(value) > 0.6 else "path"] for value in mark.z[across, along].tolist()],
            "line": {"width": 1.4},
        },
        "hoverinfo": "skip",
    }
    table: Spec = {
        "type": "heatmap",
        "z": [[rounded(float(value), digits=2) for value in row] for row in mark.z],
        "colorscale": "RdBu",
        "zmin": -1,
        "zmax": 1,
        "hoverinfo": "z",
        "colorbar": {
            "title": {"text": escaped(mark.label), "side": "right", "font": {"size": 12}},
            "tickvals": [-1, -0.5, 0, 0.5, 1],
            "ticktext": ["−1", "−0.5", "0", "0.5", "1"],
            "thickness": 12,
            "outlinewidth": 0,
            "tickfont": {"size": 11},
            "x": 1.01,
        },
    }
    if mark.hover:
        table |= {"text": [[escaped(text) for text in row] for row in mark.hover], "hoverinfo": "text"}
    return [*([shade] if lost.any() else []), table, *([crosses] if along.size else [])]


def _labels(mark: Labels, panel: Panel, colors: Colors) -> list[Spec]:
    return [
        {
            "type": "scatter",
            "mode": "text",
            "x": positions(mark.x, panel.x),
            "y": positions(mark.y, panel.y),
            "text": [escaped(text) for text in mark.texts],
            "textposition": "top center",
            "textfont": {"color": colors[mark.color], "size": 11},
            "hoverinfo": "skip",
        }
    ]


def _hover(texts: tuple[str, ...]) -> Spec:
    """What a reader sees on pointing: the given text, or the coordinates."""
    return {"hovertext": [escaped(text) for text in texts], "hoverinfo": "text"} if texts else {"hoverinfo": "x+y"}


def escaped(text: str) -> str:
    """Plotly reads a few tags and entities in its texts; only our own line breaks are meant."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("&lt;br>", "<br>").replace("\n", "<br>")


TRACES: dict[type[Mark], Callable[[Any, Panel, Colors], list[Spec]]] = {
    Line: _line,
    Band: _band,
    Scatter: _scatter,
    Bars: _bars,
    Ticks: _ticks,
    Contour: _contour,
    Path: _path,
    Cells: _cells,
    Labels: _labels,
}
