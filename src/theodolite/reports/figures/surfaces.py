"""Losses over a plane as a surface that can be turned."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

from theodolite.records import Plane
from theodolite.reports.figures.description import Figure, Panel
from theodolite.reports.figures.planes import contours, plane
from theodolite.reports.figures.relief import Surface
from theodolite.reports.wording import slug

MOST = 61  # points on an axis, about 25 kB of a page for a square


def surface(record: Plane, *, cap: float | None = None) -> Figure:
    """The surface of the loss over a plane, on the levels and with the colours of its contours.

    Args:
        record: of at least two points on both axes.
        cap: losses above are holes, as for ``plane``.

    Returns:
        A figure of one panel in three dimensions, seen from the same place for every plane.

    References:
        Li et al., "Visualizing the loss landscape of neural nets" (2018).
    """
    flat = plane(record, cap=cap)
    contour, hidden = contours(record, cap)
    rows, columns = thinned(len(contour.y)), thinned(len(contour.x))
    mark = Surface(
        x=contour.x[columns],
        y=contour.y[rows],
        z=contour.z[np.ix_(rows, columns)],
        levels=contour.levels,
        scale=contour.scale,
        label=contour.label,
    )
    shown = f"{len(columns)} × {len(rows)} of {len(contour.x)} × {len(contour.y)} points are drawn."
    said = [flat.caption.replace(" White dot: the surveyed parameters.", "")]
    said += [shown] if len(rows) < len(contour.y) or len(columns) < len(contour.x) else []
    said += ["Holes are what is masked."] if hidden else []
    return Figure(
        name=slug(f"surface-{record.name}"),
        title=flat.title.replace("Loss over", "Surface of the loss over"),
        caption=" ".join(said),
        limits=(
            f"{flat.limits} A surface hides what lies behind its ridges, and errors do not show in it: read values from the "
            "contours."
        ),
        panels=(Panel(marks=(mark,), x=flat.panels[0].x, y=flat.panels[0].y, aspect=flat.panels[0].aspect),),
        width=flat.width,
        height=480,
    )


def thinned(count: int) -> Int[np.ndarray, " m"]:
    """Every so-manieth of some positions, both ends among them."""
    stride = -(-(count - 1) // (MOST - 1)) if count > MOST else 1
    return np.unique(np.append(np.arange(0, count, stride), count - 1))
