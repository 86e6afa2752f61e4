"""How each mark of a figure is drawn on matplotlib axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from theodolite.reports.figures.description import (
    Band,
    Bars,
    Cells,
    Contour,
    Labels,
    Line,
    Mark,
    Path,
    Rule,
    Scatter,
    Ticks,
)
from theodolite.reports.wording import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Colors = dict[str, str]
DARK_CELL = 0.6  # from this size on a cell is too dark for a dark cross


def _line(axes: Axes, mark: Line, colors: Colors, order: float) -> None:
    style = (0, (5, 2.5)) if mark.dash else "-"
    axes.plot(
        mark.x,
        mark.y,
        color=colors[mark.color],
        linewidth=mark.width,
        alpha=mark.alpha,
        linestyle=style,
        label=plain(mark.label) or "_",
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
        label=plain(mark.label) or "_",
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
        label=plain(mark.label) or "_",
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
            mark.at, color=color, linewidth=1.2, linestyle=(0, (5, 2.5)), zorder=order, label=plain(mark.label) or "_"
        )
        return
    axes.axvline(mark.at, color=color, linewidth=mark.width, zorder=order)
    if mark.label:
        foot = 0 if mark.end == "foot" else 1
        late = mark.at > np.mean(axes.get_xlim())
        axes.annotate(
            plain(mark.label),
            xy=(mark.at, foot),
            xycoords=("data", "axes fraction"),
            xytext=(-4 if late else 4, 4 if foot == 0 else -4),
            textcoords="offset points",
            ha="right" if late else "left",
            va="bottom" if foot == 0 else "top",
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
            label=plain(mark.label) or "_",
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
                label=plain(label) or "_",
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
            label=plain(mark.masked_label),
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
        bar = axes.figure.colorbar(filled, cax=axes.inset_axes((1.03, 0, 0.03, 1)), label=plain(mark.label))
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
    if mark.off is not None:
        sizes = (6.5 + 9 * np.clip(mark.off, 0, 1)) ** 2
        axes.scatter(mark.x, mark.y, s=sizes, color=colors["halo"], alpha=0.8, linewidths=0, zorder=order + 0.01)
    axes.scatter(
        mark.x,
        mark.y,
        c=np.ma.masked_invalid(mark.values),
        s=26,
        cmap="viridis",
        norm=_norm(mark.levels, mark.scale),
        edgecolors=colors["halo"],
        linewidths=1.1,
        label=plain(mark.label) or "_",
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


def _cells(axes: Axes, mark: Cells, colors: Colors, order: float) -> None:
    from matplotlib import colormaps

    rows, columns = mark.z.shape
    painted = axes.pcolormesh(
        np.arange(columns + 1) - 0.5,
        np.arange(rows + 1) - 0.5,
        np.ma.masked_invalid(mark.z),
        cmap=colormaps["RdBu"].with_extremes(bad=colors["mask"]),
        vmin=-1,
        vmax=1,
        rasterized=True,
        zorder=order,
    )
    across, along = np.nonzero(mark.marked)
    strokes = [colors["halo" if dark else "path"] for dark in np.abs(mark.z[across, along]) > DARK_CELL]
    axes.scatter(along, across, marker="x", s=18, c=strokes, linewidths=0.9, zorder=order + 0.05)
    axes.grid(visible=False)
    bar = axes.figure.colorbar(painted, cax=axes.inset_axes((1.02, 0, 0.025, 1)), label=plain(mark.label))
    bar.outline.set_visible(False)
    bar.ax.grid(visible=False)
    bar.set_ticks([-1, -0.5, 0, 0.5, 1], labels=["−1", "−0.5", "0", "0.5", "1"])


def _labels(axes: Axes, mark: Labels, colors: Colors, order: float) -> None:
    for x, y, text in zip(mark.x, mark.y, mark.texts, strict=True):
        axes.annotate(
            plain(text),
            (x, y),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=7,
            color=colors[mark.color],
            zorder=order,
        )


def _norm(levels: Any, scale: str) -> Any:
    from matplotlib.colors import LogNorm, Normalize

    return (LogNorm if scale == "log" else Normalize)(vmin=float(levels[0]), vmax=float(levels[-1]))


def plain(text: str) -> str:
    """Names are no formulas: matplotlib sets what stands between two dollar signs as mathematics."""
    return text.replace("$", r"\$")


MARKS: dict[type[Mark], Callable[[Any, Any, Colors, float], None]] = {
    Line: _line,
    Band: _band,
    Scatter: _scatter,
    Bars: _bars,
    Rule: _rule,
    Ticks: _ticks,
    Contour: _contour,
    Path: _path,
    Cells: _cells,
    Labels: _labels,
}
