"""Draws a figure with matplotlib, to PNG and SVG files that are the same bytes for the same records."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from theodolite.reports.extras import extra
from theodolite.reports.figures.description import Axis, Figure, Panel
from theodolite.reports.figures.relief import Surface
from theodolite.reports.figures.scales import log_ticks, symlog_ticks
from theodolite.reports.matplotlib_marks import MARKS, Colors, plain
from theodolite.reports.matplotlib_relief import RELIEF, surface
from theodolite.reports.palette import THEMES
from theodolite.reports.wording import short, tick_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

DRAWN = MARKS | RELIEF
PIXELS = 96  # CSS pixels an inch
STYLE: dict[str, Any] = {
    "svg.hashsalt": "theodolite",  # element names are hashes; without a salt they are drawn at random
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 8.0,
    "axes.labelsize": 8.0,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "axes.facecolor": "none",
    "axes.linewidth": 0.7,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.linewidth": 0.7,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "xtick.minor.size": 1.5,
    "ytick.minor.size": 1.5,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "hatch.linewidth": 0.7,
    "lines.solid_capstyle": "round",
}


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
                **STYLE,
                "figure.facecolor": colors["paper"],
                "savefig.facecolor": colors["paper"],
                "axes.edgecolor": colors["faint"],
                "axes.labelcolor": colors["muted"],
                "grid.color": colors["grid"],
                "text.color": colors["ink"],
                "xtick.color": colors["faint"],
                "ytick.color": colors["faint"],
                "xtick.labelcolor": colors["muted"],
                "ytick.labelcolor": colors["muted"],
                "hatch.color": colors["mask"],
            }
        )
        yield


def _draw(figure: Figure, colors: Colors, *, title: bool) -> Drawing:
    from matplotlib.figure import Figure as Drawing
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    size = (figure.width / PIXELS, (figure.height + (28 if title else 0)) / PIXELS)
    drawing = Drawing(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.09, h_pad=0.05))
    if title:
        drawing.suptitle(plain(figure.title), x=0.012, ha="left", fontsize=10.5, fontweight="bold", color=colors["ink"])
    stacked = figure.arrangement == "stacked"
    weights = [panel.weight for panel in figure.panels]
    grid = (
        drawing.add_gridspec(len(weights), 1, height_ratios=weights)
        if stacked
        else drawing.add_gridspec(1, len(weights), width_ratios=weights)
    )
    for index, panel in enumerate(figure.panels):
        if isinstance(panel.marks[0], Surface):
            surface(drawing.add_subplot(grid[index], projection="3d"), panel, colors)
            continue
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
        DRAWN[type(mark)](axes, mark, colors, 2 + 0.1 * order)
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
    axes.set(**{f"{which}label": plain(axis.label)})
    if axis.names:
        crowded = len(axis.names) > 40
        positions, names = axis.places or range(len(axis.names)), [plain(short(name)) for name in axis.names]
        size = 5.5 if crowded else 7.0
        if which == "y":
            axes.set_yticks(positions, labels=names, fontsize=size)
        elif max(map(len, names)) <= 3:
            axes.set_xticks(positions, labels=names, fontsize=size)
        else:
            axes.set_xticks(positions, labels=names, fontsize=size, rotation=35, ha="right", rotation_mode="anchor")
        axes.tick_params(axis=which, length=0)
        axes.grid(visible=False, axis=which)
