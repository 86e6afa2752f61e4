"""Draws a figure with matplotlib, to PNG and SVG files that are the same bytes for the same records."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from theodolite.reports.extras import extra
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
from theodolite.reports.figures.scales import log_ticks, symlog_ticks
from theodolite.reports.numbers import number, short, tick_labels
from theodolite.reports.palette import THEMES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

Colors = dict[str, str]
PIXELS = 96  # CSS pixels an inch


def render(
    figure: Figure,
    *,
    format: Literal["png", "svg"] = "svg",
    theme: Literal["light", "dark"] = "light",
    title: bool = True,
    scale: float = 2.0,
) -> bytes:
    """Draw a figure to a file's bytes.

    Cost: about 0.2 s.

    Args:
        figure: what to draw.
        format: ``"png"`` or ``"svg"``; an SVG holds no date and its text as outlines.
        theme: colours for light or dark surroundings.
        title: whether to write the title above the panels.
        scale: device pixels for a CSS pixel of a PNG.

    Returns:
        The content of the file.

    Raises:
        ImportError: without matplotlib.
    """
    matplotlib = extra("matplotlib")
    colors = dict(THEMES[theme])
    with _settings(matplotlib, colors):
        drawing = _draw(figure, colors, title=title)
        buffer = io.BytesIO()
        metadata = {"Date": None, "Creator": None} if format == "svg" else {"Software": None}
        drawing.savefig(buffer, format=format, dpi=PIXELS * scale, metadata=metadata)
    return buffer.getvalue()


@contextmanager
def _settings(matplotlib: Any, colors: Colors) -> Iterator[None]:
    """Our own rcParams on top of the defaults, whatever the reader's matplotlibrc says; restored afterwards."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "svg.hashsalt": "theodolite",
                "svg.fonttype": "path",
                "font.family": "DejaVu Sans",
                "font.size": 8.0,
                "axes.labelsize": 8.0,
                "xtick.labelsize": 7.5,
                "ytick.labelsize": 7.5,
                "legend.fontsize": 7.5,
                "figure.facecolor": colors["paper"],
                "savefig.facecolor": colors["paper"],
                "axes.facecolor": "none",
                "axes.edgecolor": colors["faint"],
                "axes.labelcolor": colors["muted"],
                "axes.linewidth": 0.7,
                "axes.axisbelow": True,
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.grid": True,
                "grid.color": colors["grid"],
                "grid.linewidth": 0.7,
                "text.color": colors["ink"],
                "xtick.color": colors["faint"],
                "ytick.color": colors["faint"],
                "xtick.labelcolor": colors["muted"],
                "ytick.labelcolor": colors["muted"],
                "xtick.major.size": 3,
                "ytick.major.size": 3,
                "xtick.minor.size": 1.5,
                "ytick.minor.size": 1.5,
                "xtick.major.width": 0.7,
                "ytick.major.width": 0.7,
                "hatch.color": colors["mask"],
                "hatch.linewidth": 0.7,
                "lines.solid_capstyle": "round",
                "mathtext.default": "regular",
            }
        )
        yield


def _draw(figure: Figure, colors: Colors, *, title: bool) -> Drawing:
    from matplotlib.figure import Figure as Drawing
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    size = (figure.width / PIXELS, (figure.height + (28 if title else 0)) / PIXELS)
    drawing = Drawing(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.05))
    if title:
        drawing.suptitle(figure.title, x=0.012, ha="left", fontsize=10.5, fontweight="bold", color=colors["ink"])
    stacked = figure.arrangement == "stacked"
    weights = [panel.weight for panel in figure.panels]
    grid = (
        drawing.add_gridspec(len(weights), 1, height_ratios=weights)
        if stacked
        else drawing.add_gridspec(1, len(weights), width_ratios=weights)
    )
    for index, panel in enumerate(figure.panels):
        axes = drawing.add_subplot(grid[index])
        _panel(axes, panel, colors)
        if stacked and index < len(weights) - 1:
            axes.tick_params(labelbottom=False)
            axes.set_xlabel("")
        if not stacked and index > 0:
            axes.tick_params(labelleft=False)
            axes.set_ylabel("")
    return drawing


def _panel(axes: Axes, panel: Panel, colors: Colors) -> None:
    _axis(axes, "x", panel.x)
    _axis(axes, "y", panel.y)
    axes.set(xlim=panel.x.limits, ylim=panel.y.limits)
    for order, mark in enumerate(panel.marks):
        DRAW[type(mark)](axes, mark, colors, 2 + 0.1 * order)
    axes.set(xlim=panel.x.limits, ylim=panel.y.limits)
    if panel.aspect is not None:
        axes.set_aspect(panel.aspect, adjustable="box")
        axes.grid(visible=False)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(0, 1.0),
            ncols=5,
            frameon=False,
            borderaxespad=0.2,
            handlelength=1.6,
            handletextpad=0.5,
            columnspacing=1.6,
            labelcolor=colors["muted"],
        )


def _axis(axes: Axes, which: Literal["x", "y"], axis: Axis) -> None:
    setter = axes.set_xscale if which == "x" else axes.set_yscale
    if axis.scale == "symlog":
        setter("symlog", linthresh=axis.threshold)
    else:
        setter(axis.scale)
    if axis.scale != "linear":
        ticks = log_ticks(axis) if axis.scale == "log" else symlog_ticks(axis)
        axes.set(**{f"{which}ticks": ticks, f"{which}ticklabels": tick_labels(ticks)})
        (axes.xaxis if which == "x" else axes.yaxis).set_minor_formatter("")
    axes.set(**{f"{which}label": axis.label})
    if axis.names:
        crowded = len(axis.names) > 40
        positions, names = np.arange(len(axis.names)), [short(name) for name in axis.names]
        axes.set_yticks(positions, labels=names, fontsize=5.5 if crowded else 7.0)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")


def _line(axes: Axes, mark: Line, colors: Colors, order: float) -> None:
    style = (0, (5, 2.5)) if mark.dash else "-"
    axes.plot(
        mark.x,
        mark.y,
        color=colors[mark.color],
        linewidth=mark.width,
        alpha=mark.alpha,
        linestyle=style,
        label=mark.label or "_",
        zorder=order,
    )


def _band(axes: Axes, mark: Band, colors: Colors, order: float) -> None:
    axes.fill_between(
        mark.x,
        mark.low,
        mark.high,
        color=colors[mark.color],
        alpha=mark.alpha,
        linewidth=0,
        label=mark.label or "_",
        zorder=order,
    )


def _scatter(axes: Axes, mark: Scatter, colors: Colors, order: float) -> None:
    color = colors[mark.color]
    if mark.error is not None:
        known = np.isfinite(mark.error) & np.isfinite(mark.y)
        error = {"yerr" if mark.direction == "vertical" else "xerr": mark.error[known]}
        axes.errorbar(
            mark.x[known], mark.y[known], **error, fmt="none", ecolor=color, elinewidth=1.0, capsize=1.8, zorder=order
        )
    faces = [colors["paper"] if hollow else color for hollow in mark.hollow]
    axes.scatter(
        mark.x,
        mark.y,
        s=mark.size**2,
        c=faces,
        edgecolors=color,
        linewidths=1.1,
        label=mark.label or "_",
        zorder=order + 0.05,
    )


def _bars(axes: Axes, mark: Bars, colors: Colors, order: float) -> None:
    left = axes.get_xlim()[0] if axes.get_xscale() == "log" else 0.0
    axes.barh(
        mark.y,
        mark.values - left,
        left=left,
        height=mark.thickness,
        color=colors[mark.color],
        alpha=mark.alpha,
        linewidth=0,
        zorder=order,
    )


def _rule(axes: Axes, mark: Rule, colors: Colors, order: float) -> None:
    color = colors[mark.color]
    if mark.direction == "horizontal":
        axes.axhline(
            mark.at, color=color, linewidth=1.2, linestyle=(0, (5, 2.5)), zorder=order, label=mark.label or "_"
        )
        return
    axes.axvline(mark.at, color=color, linewidth=mark.width, zorder=order)
    if mark.label:
        late = mark.at > np.mean(axes.get_xlim())
        axes.annotate(
            mark.label,
            xy=(mark.at, 1),
            xycoords=("data", "axes fraction"),
            xytext=(-4 if late else 4, -3),
            textcoords="offset points",
            ha="right" if late else "left",
            va="top",
            color=color,
            fontsize=7.5,
            fontweight="bold",
            zorder=order,
            bbox={"boxstyle": "square,pad=0.15", "facecolor": colors["paper"], "edgecolor": "none", "alpha": 0.85},
        )


def _ticks(axes: Axes, mark: Ticks, colors: Colors, order: float) -> None:
    color = colors[mark.color]
    height = 0.0 if mark.edge == "bottom" else 1.0
    if mark.shape == "cross":
        axes.plot(
            mark.x,
            np.full_like(mark.x, height),
            linestyle="none",
            marker="x",
            markersize=4.5,
            markeredgewidth=1.3,
            color=color,
            transform=axes.get_xaxis_transform(),
            clip_on=False,
            label=mark.label or "_",
            zorder=order,
        )
        return
    for hollow, label in ((False, mark.label), (True, "not converged")):
        chosen = mark.x[mark.hollow == hollow]
        if chosen.size:
            axes.vlines(
                chosen,
                height,
                0.09 if mark.edge == "bottom" else 0.91,
                color=color,
                linewidth=1.2,
                linestyle=(0, (1.2, 1.2)) if hollow else "-",
                transform=axes.get_xaxis_transform(),
                label=label or "_",
                zorder=order,
            )


def _contour(axes: Axes, mark: Contour, colors: Colors, order: float) -> None:
    from matplotlib.patches import Rectangle

    z = np.ma.masked_array(mark.z, mask=mark.masked)
    corner, size = (mark.x[0], mark.y[0]), (mark.x[-1] - mark.x[0], mark.y[-1] - mark.y[0])
    if mark.masked.any():
        patch = Rectangle(
            corner,
            *size,
            facecolor="none",
            hatch="/////",
            edgecolor=colors["mask"],
            linewidth=0,
            label=mark.masked_label,
            zorder=1,
        )
        axes.add_patch(patch)
    if not mark.masked.all():
        filled = axes.contourf(
            mark.x, mark.y, z, levels=mark.levels, norm=_norm(mark.levels, mark.scale), cmap="viridis", zorder=order
        )
        filled.set_edgecolor("face")
        filled.set_linewidth(0.2)
        axes.contour(mark.x, mark.y, z, levels=mark.levels, colors="#ffffff", linewidths=0.4, alpha=0.45, zorder=order)
        bar = axes.figure.colorbar(filled, cax=axes.inset_axes((1.03, 0, 0.03, 1)), label=mark.label)
        bar.outline.set_visible(False)
        bar.ax.grid(visible=False)
        bar.ax.minorticks_off()
        ticks = mark.levels[::4].tolist()
        bar.set_ticks(ticks, labels=[number(float(tick), digits=2) for tick in ticks])


def _path(axes: Axes, mark: Path, colors: Colors, order: float) -> None:
    from matplotlib.patheffects import Normal, Stroke

    axes.plot(
        mark.x,
        mark.y,
        color=colors["path"],
        linewidth=1.4,
        zorder=order,
        path_effects=[Stroke(linewidth=3.0, foreground=colors["halo"], alpha=0.8), Normal()],
    )
    axes.scatter(
        mark.x,
        mark.y,
        c=np.ma.masked_invalid(mark.values),
        s=26,
        cmap="viridis",
        norm=_norm(mark.levels, mark.scale),
        edgecolors=colors["halo"],
        linewidths=1.1,
        label=mark.label or "_",
        plotnonfinite=True,
        zorder=order + 0.02,
    )
    for index, word in ((0, "start"), (-1, "end")):
        axes.annotate(
            word,
            (mark.x[index], mark.y[index]),
            xytext=(6, 5),
            textcoords="offset points",
            fontsize=8,
            fontweight="bold",
            color=colors["path"],
            zorder=order + 0.04,
            path_effects=[Stroke(linewidth=2.5, foreground=colors["halo"]), Normal()],
        )


def _norm(levels: Any, scale: str) -> Any:
    from matplotlib.colors import LogNorm, Normalize

    return (LogNorm if scale == "log" else Normalize)(vmin=float(levels[0]), vmax=float(levels[-1]))


DRAW: dict[type[Mark], Callable[[Any, Any, Colors, float], None]] = {
    Line: _line,
    Band: _band,
    Scatter: _scatter,
    Bars: _bars,
    Rule: _rule,
    Ticks: _ticks,
    Contour: _contour,
    Path: _path,
}
