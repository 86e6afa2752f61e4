"""How the marks of landscapes are drawn on matplotlib axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from theodolite.reports.figures.description import Mark, Panel
from theodolite.reports.figures.relief import Heat, Surface, Zone
from theodolite.reports.matplotlib_marks import Colors, plain
from theodolite.reports.wording import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ELEVATION, AZIMUTH = 30, -55  # the same for all surfaces, so that two can be compared
BRIGHT_CELL = 0.55  # of the scale, from which on viridis is too bright for white words


def surface(axes: Any, panel: Panel, colors: Colors) -> None:
    """A panel of one surface, on axes in three dimensions, with its contours on the floor."""
    from matplotlib.ticker import MaxNLocator

    (mark,) = panel.marks
    assert isinstance(mark, Surface)
    logarithmic = mark.scale == "log"
    heights, levels = (np.log10(mark.z), np.log10(mark.levels)) if logarithmic else (mark.z, mark.levels)
    low, high = float(levels[0]), float(levels[-1])
    floor = low - 0.35 * (high - low)
    x, y = np.meshgrid(mark.x, mark.y)
    # Vectors of thousands of facets would be a file of megabytes.
    style = {"cmap": "viridis", "vmin": low, "vmax": high, "rasterized": True}
    axes.plot_surface(x, y, heights, rstride=1, cstride=1, linewidth=0.15, edgecolor="#ffffff30", **style)
    if np.isfinite(heights).sum() > 3:
        floored = axes.contour(x, y, heights, levels=levels, cmap="viridis", zdir="z", offset=floor, linewidths=0.7)
        floored.set_clim(low, high)
    ticks = levels[::4].tolist()
    axes.set(xlim=panel.x.limits, ylim=panel.y.limits, zlim=(floor, high))
    axes.set_zticks(ticks, labels=[number(float(value), digits=2) for value in mark.levels[::4]])
    axes.set(xlabel=plain(panel.x.label), ylabel=plain(panel.y.label), zlabel=plain(mark.label))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5))
    axes.view_init(elev=ELEVATION, azim=AZIMUTH)
    axes.set_box_aspect((1, panel.aspect or 1, 0.75), zoom=0.95)
    for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
        axis.set_pane_color((0, 0, 0, 0))
        axis.label.set_color(colors["muted"])
        axis._axinfo["grid"].update({"color": colors["grid"], "linewidth": 0.6})


def _zone(axes: Axes, mark: Zone, colors: Colors, order: float) -> None:
    axes.contourf(mark.x, mark.y, mark.z, levels=[-1, 1], colors=[colors[mark.color]], alpha=mark.alpha, zorder=order)


def _heat(axes: Axes, mark: Heat, colors: Colors, order: float) -> None:
    from matplotlib import colormaps

    rows, columns = mark.z.shape
    painted = axes.pcolormesh(
        np.arange(columns + 1) - 0.5,
        np.arange(rows + 1) - 0.5,
        np.ma.masked_invalid(mark.z),
        cmap=colormaps["viridis"].with_extremes(bad=colors["mask"]),
        vmin=0,
        vmax=mark.high,
        rasterized=True,
        zorder=order,
    )
    for row, texts in enumerate(mark.texts):
        for column, text in enumerate(texts):
            bright = not mark.z[row, column] < BRIGHT_CELL * mark.high
            color = colors["path" if bright else "halo"]
            axes.text(column, row, plain(text), ha="center", va="center", fontsize=7, color=color, zorder=order + 0.05)
    axes.grid(visible=False)
    bar = axes.figure.colorbar(painted, cax=axes.inset_axes((1.03, 0, 0.03, 1)), label=plain(mark.label))
    bar.outline.set_visible(False)
    bar.ax.grid(visible=False)


RELIEF: dict[type[Mark], Callable[[Any, Any, Colors, float], None]] = {Zone: _zone, Heat: _heat}
