"""What a figure shows, apart from any drawing library: panels of marks on labelled axes.

Colours are roles of `theodolite.reports.palette`. NaN in an ``error`` means that the error is not known, NaN in a
position leaves a gap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from theodolite.reports.figures.relief import Heat, Surface, Zone

Scale = Literal["linear", "log", "symlog"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Line:
    """A curve; NaN breaks it."""

    x: Float[np.ndarray, " n"]
    y: Float[np.ndarray, " n"]
    color: str
    label: str = ""
    width: float = 1.2
    alpha: float = 1.0
    dash: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Band:
    """The region between two curves."""

    x: Float[np.ndarray, " n"]
    low: Float[np.ndarray, " n"]
    high: Float[np.ndarray, " n"]
    color: str
    label: str = ""
    alpha: float = 0.2


@dataclass(frozen=True, kw_only=True, eq=False)
class Scatter:
    """Readings with errors of one standard error; hollow where they are not to be trusted."""

    x: Float[np.ndarray, " n"]
    y: Float[np.ndarray, " n"]
    hollow: Bool[np.ndarray, " n"]
    color: str
    error: Float[np.ndarray, " n"] | None = None
    direction: Literal["horizontal", "vertical"] = "vertical"
    label: str = ""
    size: float = 5.0
    hover: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Bars:
    """Horizontal bars, one for each name of the y axis, from the left edge of the panel."""

    y: Float[np.ndarray, " n"]
    values: Float[np.ndarray, " n"]
    color: str
    thickness: float = 0.62
    alpha: float = 1.0
    hover: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Rule:
    """A straight reference line across the panel; the label of a vertical one stands at its head or foot."""

    at: float
    direction: Literal["horizontal", "vertical"]
    color: str
    label: str = ""
    width: float = 1.3
    end: Literal["head", "foot"] = "foot"


@dataclass(frozen=True, kw_only=True, eq=False)
class Ticks:
    """Positions marked at an edge of the panel."""

    x: Float[np.ndarray, " n"]
    hollow: Bool[np.ndarray, " n"]
    color: str
    edge: Literal["bottom", "top"] = "bottom"
    shape: Literal["tick", "cross"] = "tick"
    label: str = ""
    hover: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Contour:
    """Filled contours of z over a grid; masked cells are hatched and counted in ``masked_label``."""

    x: Float[np.ndarray, " nx"]
    y: Float[np.ndarray, " ny"]
    z: Float[np.ndarray, "ny nx"]
    masked: Bool[np.ndarray, "ny nx"]
    levels: Float[np.ndarray, " l"]
    scale: Scale
    label: str
    masked_label: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Path:
    """A trajectory whose points carry a value, coloured on the scale of the contours beneath it.

    A ring around each is as wide as the share of its displacement ``off`` the plane.
    """

    x: Float[np.ndarray, " n"]
    y: Float[np.ndarray, " n"]
    values: Float[np.ndarray, " n"]
    levels: Float[np.ndarray, " l"]
    scale: Scale
    off: Float[np.ndarray, " n"] | None = None
    label: str = ""
    hover: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Cells:
    """A table of values as coloured cells from −1 (red) over 0 (white) to 1 (blue), at positions 0, 1, … both ways; NaN is grey.

    Crosses mark cells that stand out, by a test beyond the value.
    """

    z: Float[np.ndarray, "ny nx"]
    marked: Bool[np.ndarray, "ny nx"]
    label: str
    hover: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Labels:
    """Short words above points."""

    x: Float[np.ndarray, " n"]
    y: Float[np.ndarray, " n"]
    texts: tuple[str, ...]
    color: str


Mark = Line | Band | Scatter | Bars | Rule | Ticks | Contour | Path | Cells | Labels | Surface | Zone | Heat


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis.

    Args:
        label: quantity, with its unit in parentheses where it has one.
        limits: the two ends.
        scale: ``"linear"``, ``"log"``, or ``"symlog"``: linear within ±``threshold``, logarithmic beyond.
        threshold: half-width of the linear part of a symlog axis.
        names: for an axis of names: the name at positions 0, 1, …
        places: where the names lie instead.
    """

    label: str
    limits: tuple[float, float]
    scale: Scale = "linear"
    threshold: float = 1.0
    names: tuple[str, ...] = ()
    places: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Marks on a pair of axes.

    Args:
        marks: drawn in this order.
        x: horizontal axis.
        y: vertical axis.
        weight: share of the figure's height (stacked) or width (beside).
        aspect: length of one unit of y over that of one unit of x; None where the panel fills its place.
    """

    marks: tuple[Mark, ...]
    x: Axis
    y: Axis
    weight: float = 1.0
    aspect: float | None = None


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure.

    Args:
        name: for files and anchors: lower case and hyphens.
        title: what is plotted.
        caption: what the figure shows, with its numbers.
        limits: what it does not show.
        panels: stacked panels share the x axis, panels beside each other the y axis.
        arrangement: how the panels lie.
        width: in CSS pixels (1/96 inch).
        height: in CSS pixels.
    """

    name: str
    title: str
    caption: str
    limits: str
    panels: tuple[Panel, ...]
    arrangement: Literal["stacked", "beside"] = "stacked"
    width: int = 760
    height: int = 420
