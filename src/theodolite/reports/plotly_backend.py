"""Writes a figure as a Plotly specification: plain lists and numbers, without importing plotly."""

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
    Contour,
    Figure,
    Line,
    Mark,
    Panel,
    Path,
    Rule,
    Scatter,
    Ticks,
)
from theodolite.reports.figures.scales import symlog_ticks, to_symlog
from theodolite.reports.numbers import number, short, tick_labels
from theodolite.reports.palette import LIGHT, tint

Colors = Mapping[str, str]
Spec = dict[str, Any]


def specification(figure: Figure, *, colors: Colors = LIGHT) -> Spec:
    """The figure as a Plotly specification, ready for JSON.

    Args:
        figure: what to draw.
        colors: by role; the page gives `palette.TOKENS`, which it replaces when it knows the reader's mode.

    Returns:
        ``{"data": [...], "layout": {...}}``, without NaN.
    """
    layout: Spec = {
        "height": figure.height,
        "margin": {"l": 64, "r": 16, "t": 34, "b": 46},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"size": 12, "color": colors["muted"]},
        "hoverlabel": {"font": {"size": 12}, "align": "left"},
        "hovermode": "closest",
        "dragmode": "zoom",
        "showlegend": True,
        "shapes": [],
        "annotations": [],
    }
    data: list[Spec] = []
    for index, (panel, domain) in enumerate(zip(figure.panels, _domains(figure), strict=True), start=1):
        _panel(index, panel, domain, figure, colors, data, layout)
    if not any(trace["showlegend"] for trace in data):
        layout["margin"]["t"] = 12
    return {"data": data, "layout": layout}


def _domains(figure: Figure) -> list[tuple[float, float]]:
    """The share of the figure's height (from the top) or width that each panel fills."""
    gap = 58 / figure.height if figure.arrangement == "stacked" else 24 / figure.width
    weights = np.array([panel.weight for panel in figure.panels])
    sizes = (1 - gap * (len(weights) - 1)) * weights / weights.sum()
    starts = np.concatenate([[0.0], np.cumsum(sizes[:-1] + gap)])
    spans = [(float(start), float(min(start + size, 1.0))) for start, size in zip(starts, sizes, strict=True)]
    return [(1 - end, 1 - start) for start, end in spans] if figure.arrangement == "stacked" else spans


def _panel(
    index: int,
    panel: Panel,
    domain: tuple[float, float],
    figure: Figure,
    colors: Colors,
    data: list[Spec],
    layout: Spec,
) -> None:
    stacked = figure.arrangement == "stacked"
    suffix = "" if index == 1 else str(index)
    last = index == len(figure.panels)
    x, y = _axis(panel.x, colors), _axis(panel.y, colors)
    x |= {"anchor": f"y{suffix}", "domain": [0, 1] if stacked else list(domain)}
    y |= {"anchor": f"x{suffix}", "domain": list(domain) if stacked else [0, 1]}
    if stacked and len(figure.panels) > 1:
        x |= {"matches": "x"} if index > 1 else {}
        x |= {} if last else {"showticklabels": False, "title": {"text": ""}}
    if not stacked and index > 1:
        y |= {"matches": "y", "showticklabels": False, "title": {"text": ""}}
    if panel.aspect is not None:
        y |= {"scaleanchor": f"x{suffix}", "scaleratio": panel.aspect, "constrain": "domain"}
        x |= {"constrain": "domain"}
    edge = {
        "overlaying": f"y{suffix}",
        "anchor": f"x{suffix}",
        "range": [0, 1],
        "visible": False,
        "fixedrange": True,
    }
    legend = {
        "orientation": "h",
        "x": domain[0] if not stacked else 0,
        "y": (domain[1] if stacked else 1) + 6 / figure.height,
        "xanchor": "left",
        "yanchor": "bottom",
        "font": {"size": 11.5},
        "bgcolor": "rgba(0,0,0,0)",
        "itemwidth": 30,
    }
    layout |= {f"xaxis{suffix}": x, f"yaxis{suffix}": y, f"legend{suffix}": legend}
    if any(isinstance(mark, Ticks) for mark in panel.marks):
        layout[f"yaxis{index + 10}"] = edge
    place = {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}", "legend": f"legend{suffix}"}
    for mark in panel.marks:
        if isinstance(mark, Rule):
            _rule(mark, panel, suffix, colors, layout)
            continue
        for trace in TRACES[type(mark)](mark, panel, colors):
            axis = {"yaxis": f"y{index + 10}"} if isinstance(mark, Ticks) else {}
            data.append(place | axis | {"showlegend": bool(trace.get("name"))} | trace)


def _axis(axis: Axis, colors: Colors) -> Spec:
    spec: Spec = {
        "title": {"text": axis.label, "font": {"size": 12}, "standoff": 8},
        "gridcolor": colors["grid"],
        "linecolor": colors["faint"],
        "showline": True,
        "zeroline": False,
        "ticks": "outside",
        "ticklen": 4,
        "tickcolor": colors["faint"],
        "tickfont": {"size": 11},
        "exponentformat": "power",
        "automargin": True,
        "range": list(axis.limits),
    }
    if axis.scale == "log":
        decades = math.log10(axis.limits[1] / axis.limits[0])
        spec |= {"type": "log", "range": [math.log10(end) for end in axis.limits]}
        spec |= {"dtick": max(1, math.ceil(decades / 7)) if decades >= 2 else "D2"}
        # Plotly enlarges powers of ten by a quarter to make room for the exponent.
        spec |= {"tickfont": {"size": 9}} if decades >= 2 else {}
    if axis.scale == "symlog":
        ticks = symlog_ticks(axis)
        spec |= {
            "range": _positions(np.array(axis.limits), axis),
            "tickvals": _positions(ticks, axis),
            "ticktext": tick_labels(ticks),
        }
    if axis.names:
        crowded = len(axis.names) > 40
        spec |= {
            "tickvals": list(range(len(axis.names))),
            "ticktext": [short(name) for name in axis.names],
            "tickfont": {"size": 9 if crowded else 11},
            "ticks": "",
            "showgrid": False,
        }
    return spec


def _positions(values: Float[np.ndarray, " n"], axis: Axis) -> list[float | None]:
    """Where values lie on an axis; None where they are not finite, or not positive on a logarithmic one."""
    if axis.scale == "symlog":
        values = to_symlog(np.asarray(values, dtype=np.float64), threshold=axis.threshold)
    shown = np.isfinite(values) & ((values > 0) | (axis.scale != "log"))
    return [float(f"{value:.6g}") if good else None for value, good in zip(values, shown, strict=True)]


def _line(mark: Line, panel: Panel, colors: Colors) -> list[Spec]:
    color = tint(colors[mark.color], mark.alpha) if mark.alpha < 1 else colors[mark.color]
    line = {"color": color, "width": mark.width * 1.2, "dash": "6px,4px" if mark.dash else "solid"}
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "x": _positions(mark.x, panel.x),
            "y": _positions(mark.y, panel.y),
            "line": line,
            "name": mark.label,
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
            "x": _positions(np.concatenate([x, x[::-1]]), panel.x),
            "y": _positions(np.concatenate([low, high[::-1]]), panel.y),
            "fill": "toself",
            "fillcolor": tint(colors[mark.color], mark.alpha),
            "line": {"width": 0, "color": colors[mark.color]},
            "name": mark.label,
            "hoverinfo": "skip",
        }
    ]


def _scatter(mark: Scatter, panel: Panel, colors: Colors) -> list[Spec]:
    color = colors[mark.color]
    spec: Spec = {
        "type": "scatter",
        "mode": "markers",
        "x": _positions(mark.x, panel.x),
        "y": _positions(mark.y, panel.y),
        "marker": {
            "size": mark.size * 1.5,
            "color": [colors["paper"] if hollow else color for hollow in mark.hollow],
            "line": {"color": color, "width": 1.5},
        },
        "name": mark.label,
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
        "array": [float(f"{e:.4g}") if math.isfinite(e) else 0.0 for e in up],
        "arrayminus": [float(f"{e:.4g}") if math.isfinite(e) else 0.0 for e in down],
        "color": color,
        "thickness": 1.2,
        "width": 2.5,
    }


def _bars(mark: Bars, panel: Panel, colors: Colors) -> list[Spec]:
    return [
        {
            "type": "bar",
            "orientation": "h",
            "x": _positions(mark.values, panel.x),
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
                "x": _positions(mark.x[chosen], panel.x),
                "y": [height] * int(chosen.sum()),
                "marker": {
                    "symbol": "circle-open" if hollow else symbol,
                    "size": 7 if mark.shape == "cross" or hollow else 22,
                    "color": color,
                    "line": {"color": color, "width": 1.6},
                },
                "cliponaxis": mark.shape == "tick" and not hollow,
                "name": label,
            }
            | _hover(hover)
        )
    return traces


def _contour(mark: Contour, panel: Panel, colors: Colors) -> list[Spec]:
    x, y = _positions(mark.x, panel.x), _positions(mark.y, panel.y)
    position = np.log10 if mark.scale == "log" else np.asarray
    traces: list[Spec] = []
    if mark.masked.any():
        # One cell wider than the mask: contours end at the last valid point, and lie above.
        traces.append(
            {
                "type": "heatmap",
                "x": x,
                "y": y,
                "z": [[1 if near else None for near in row] for row in _widened(mark.masked)],
                "colorscale": [[0, colors["mask"]], [1, colors["mask"]]],
                "opacity": 0.55,
                "showscale": False,
                "name": mark.masked_label,
                "hoverinfo": "skip",
            }
        )
    if mark.masked.all():
        return traces
    levels = position(mark.levels)
    with np.errstate(invalid="ignore"):
        z = position(mark.z)
    ticks, texts = _color_ticks(mark)
    traces.append(
        {
            "type": "contour",
            "x": x,
            "y": y,
            "z": [[float(f"{v:.5g}") if math.isfinite(v) else None for v in row] for row in z],
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
                "title": {"text": mark.label, "side": "right", "font": {"size": 12}},
                "tickvals": ticks,
                "ticktext": texts,
                "thickness": 12,
                "outlinewidth": 0,
                "tickfont": {"size": 11},
                "x": 1.01,
            },
        }
    )
    return traces


def _widened(mask: Bool[np.ndarray, "ny nx"]) -> Bool[np.ndarray, "ny nx"]:
    padded = np.pad(mask, 1)
    rows = padded[:-2] | padded[1:-1] | padded[2:]
    return np.asarray(rows[:, :-2] | rows[:, 1:-1] | rows[:, 2:])


def _color_ticks(mark: Contour) -> tuple[list[float], list[str]]:
    levels = mark.levels[::4]
    shown = np.log10(levels) if mark.scale == "log" else levels
    return [float(v) for v in shown], [number(float(level), digits=2) for level in levels]


def _path(mark: Path, panel: Panel, colors: Colors) -> list[Spec]:
    x, y = _positions(mark.x, panel.x), _positions(mark.y, panel.y)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.log10(mark.values) if mark.scale == "log" else mark.values
        low, high = (np.log10(mark.levels) if mark.scale == "log" else mark.levels)[[0, -1]]
    words = [""] * len(x)
    words[0], words[-1] = "start", "end"
    halo = {"type": "scatter", "mode": "lines", "x": x, "y": y, "hoverinfo": "skip"}
    return [
        halo | {"line": {"color": tint(colors["halo"], 0.8), "width": 4}},
        halo | {"line": {"color": colors["path"], "width": 1.8}},
        {
            "type": "scatter",
            "mode": "markers+text",
            "x": x,
            "y": y,
            "text": words,
            "textposition": "top right",
            "textfont": {"color": colors["path"], "size": 13, "weight": 700, "shadow": f"0 0 4px {colors['halo']}"},
            "marker": {
                "size": 9,
                "color": [float(f"{v:.5g}") if math.isfinite(v) else None for v in values],
                "colorscale": "Viridis",
                "cmin": float(low),
                "cmax": float(high),
                "line": {"color": colors["halo"], "width": 1.5},
            },
            "name": mark.label,
        }
        | _hover(mark.hover),
    ]


def _hover(texts: tuple[str, ...]) -> Spec:
    """What a reader sees on pointing: the given text, or the coordinates."""
    return {"hovertext": [_escaped(text) for text in texts], "hoverinfo": "text"} if texts else {"hoverinfo": "x+y"}


def _escaped(text: str) -> str:
    """Plotly reads a few tags and entities in its texts; only our own line breaks are meant."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("&lt;br>", "<br>")


def _rule(mark: Rule, panel: Panel, suffix: str, colors: Colors, layout: Spec) -> None:
    color = colors[mark.color]
    upright = mark.direction == "vertical"
    at = _positions(np.array([mark.at]), panel.x if upright else panel.y)[0]
    across = {"x0": at, "x1": at, "y0": 0, "y1": 1} if upright else {"x0": 0, "x1": 1, "y0": at, "y1": at}
    references = {
        "xref": f"x{suffix}" if upright else f"x{suffix} domain",
        "yref": f"y{suffix} domain" if upright else f"y{suffix}",
    }
    line = {"color": color, "width": mark.width, "dash": "solid" if upright else "6px,4px"}
    layout["shapes"].append({"type": "line", **across, **references, "line": line, "layer": "below"})
    if not mark.label:
        return
    late = upright and mark.at > sum(panel.x.limits) / 2
    logarithmic = (panel.x if upright else panel.y).scale == "log"  # shapes lie at values there, texts at logarithms
    height = math.log10(mark.at) if logarithmic else at
    place = {"x": height, "y": 1} if upright else {"x": 1, "y": height}
    layout["annotations"].append(
        {
            "text": f"<b>{_escaped(mark.label)}</b>" if upright else _escaped(mark.label),
            "showarrow": False,
            "xanchor": "right" if late or not upright else "left",
            "yanchor": "top" if upright else "bottom",
            "xshift": -4 if late else 4,
            "font": {"size": 12 if upright else 11, "color": color},
            "bgcolor": tint(colors["paper"], 0.8),
            **place,
            **references,
        }
    )


TRACES: dict[type[Mark], Callable[[Any, Panel, Colors], list[Spec]]] = {
    Line: _line,
    Band: _band,
    Scatter: _scatter,
    Bars: _bars,
    Ticks: _ticks,
    Contour: _contour,
    Path: _path,
}
