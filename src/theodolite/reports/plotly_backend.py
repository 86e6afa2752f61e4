"""Writes a figure as a Plotly specification: plain lists and numbers, without importing plotly."""

from __future__ import annotations

import math

import numpy as np

from theodolite.reports.figures.description import Axis, Figure, Panel, Rule, Ticks
from theodolite.reports.figures.relief import Surface
from theodolite.reports.figures.scales import log_ticks, symlog_ticks
from theodolite.reports.palette import LIGHT, tint
from theodolite.reports.plotly_marks import TRACES, Colors, Spec, escaped, positions
from theodolite.reports.plotly_relief import RELIEF, surface
from theodolite.reports.wording import short, tick_labels

DRAWN = TRACES | RELIEF

LEGEND: Spec = {
    "orientation": "h",
    "xanchor": "left",
    "yanchor": "bottom",
    "font": {"size": 11.5},
    "bgcolor": "rgba(0,0,0,0)",
    "itemwidth": 30,
}
# Marks at the edge of a panel keep their height while the axis beneath is zoomed.
EDGE: Spec = {"range": [0, 1], "visible": False, "fixedrange": True}


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
    gap = 58 / figure.height if figure.arrangement == "stacked" else 44 / figure.width
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
    if isinstance(panel.marks[0], Surface):
        trace, layout[f"scene{suffix}"] = surface(panel, figure, colors)
        data.append({"scene": f"scene{suffix}", "showlegend": False} | trace)
        return
    x, y = _axes(index, panel, domain, figure, colors)
    top, left = (domain[1], 0.0) if stacked else (1.0, domain[0])
    legend = LEGEND | {"x": left, "y": top + 6 / figure.height}
    layout |= {f"xaxis{suffix}": x, f"yaxis{suffix}": y, f"legend{suffix}": legend}
    if any(isinstance(mark, Ticks) for mark in panel.marks):
        layout[f"yaxis{index + 10}"] = EDGE | {"overlaying": f"y{suffix}", "anchor": f"x{suffix}"}
    place = {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}", "legend": f"legend{suffix}"}
    for mark in panel.marks:
        if isinstance(mark, Rule):
            _rule(mark, panel, suffix, colors, layout)
            continue
        for trace in DRAWN[type(mark)](mark, panel, colors):
            axis = {"yaxis": f"y{index + 10}"} if isinstance(mark, Ticks) else {}
            data.append(place | axis | {"showlegend": bool(trace.get("name"))} | trace)


def _axes(index: int, panel: Panel, domain: tuple[float, float], figure: Figure, colors: Colors) -> tuple[Spec, Spec]:
    """Both axes of a panel, tied to those of the first; labels only at the outer edge of the figure."""
    stacked = figure.arrangement == "stacked"
    suffix = "" if index == 1 else str(index)
    x, y = _axis(panel.x, colors), _axis(panel.y, colors)
    x |= {"anchor": f"y{suffix}", "domain": [0, 1] if stacked else list(domain)}
    y |= {"anchor": f"x{suffix}", "domain": list(domain) if stacked else [0, 1]}
    if stacked and index > 1:
        x |= {"matches": "x"}
    if stacked and index < len(figure.panels):
        x |= {"showticklabels": False, "title": {"text": ""}}
    if not stacked and index > 1:
        y |= {"matches": "y", "showticklabels": False, "title": {"text": ""}}
    if panel.aspect is not None:
        y |= {"scaleanchor": f"x{suffix}", "scaleratio": panel.aspect, "constrain": "domain"}
        x |= {"constrain": "domain"}
    return x, y


def _axis(axis: Axis, colors: Colors) -> Spec:
    spec: Spec = {
        "title": {"text": escaped(axis.label), "font": {"size": 12}, "standoff": 8},
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
        decades = math.log10(axis.limits[1]) - math.log10(axis.limits[0])
        spec |= {"type": "log", "range": [math.log10(end) for end in axis.limits]}
        # Plotly enlarges powers of ten by a quarter to make room for the exponent.
        powers: Spec = {"dtick": math.ceil(decades / 7), "tickfont": {"size": 9}}
        ticks = log_ticks(axis)
        few: Spec = {"tickvals": ticks.tolist(), "ticktext": tick_labels(ticks)}
        spec |= powers if decades >= 2 else few
    if axis.scale == "symlog":
        ticks = symlog_ticks(axis)
        spec |= {
            "range": positions(np.array(axis.limits), axis),
            "tickvals": positions(ticks, axis),
            "ticktext": tick_labels(ticks),
        }
    if axis.names:
        crowded = len(axis.names) > 40
        spec |= {
            "tickvals": list(axis.places or range(len(axis.names))),
            "ticktext": [escaped(short(name)) for name in axis.names],
            "tickfont": {"size": 9 if crowded else 11},
            "ticks": "",
            "showgrid": False,
        }
    return spec


def _rule(mark: Rule, panel: Panel, suffix: str, colors: Colors, layout: Spec) -> None:
    color = colors[mark.color]
    upright = mark.direction == "vertical"
    at = positions(np.array([mark.at]), panel.x if upright else panel.y)[0]
    across = {"x0": at, "x1": at, "y0": 0, "y1": 1} if upright else {"x0": 0, "x1": 1, "y0": at, "y1": at}
    references = {
        "xref": f"x{suffix}" if upright else f"x{suffix} domain",
        "yref": f"y{suffix} domain" if upright else f"y{suffix}",
    }
    line = {"color": color, "width": mark.width, "dash": "solid" if upright else "6px,4px"}
    # What lies below is beneath the grid too, which would wash out an upright rule that falls on one of its lines.
    layer = "above" if upright else "below"
    layout["shapes"].append({"type": "line", **across, **references, "line": line, "layer": layer})
    if not mark.label:
        return
    head = upright and mark.end == "head"
    late = upright and mark.at > sum(panel.x.limits) / 2
    logarithmic = (panel.x if upright else panel.y).scale == "log"  # shapes lie at values there, texts at logarithms
    height = math.log10(mark.at) if logarithmic else at
    place = {"x": height, "y": 1 if head else 0} if upright else {"x": 1, "y": height}
    layout["annotations"].append(
        {
            "text": f"<b>{escaped(mark.label)}</b>" if upright else escaped(mark.label),
            "showarrow": False,
            "xanchor": "right" if late or not upright else "left",
            "yanchor": "top" if head else "bottom",
            "xshift": -4 if late else 4,
            "yshift": -4 if head else 4 if upright else 0,
            "font": {"size": 12 if upright else 11, "color": color},
            "bgcolor": tint(colors["paper"], 0.8),
            **place,
            **references,
        }
    )
