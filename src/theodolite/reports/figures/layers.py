"""Rows of layers: names down the side, one value with its error each."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from theodolite.reports.figures.description import Axis, Bars, Mark, Panel, Scatter
from theodolite.reports.figures.scales import fitted_axis

MOST_ROWS = 64  # beyond, names would be smaller than a reader can tell apart


def shown_layers(values: Float[np.ndarray, " n"], *, most: int = MOST_ROWS) -> Int[np.ndarray, " m"]:
    """Indices of the layers to draw, in network order: all, or those of the largest and smallest magnitude.

    Args:
        values: one a layer; those that are not finite come first.
        most: rows that fit.

    Returns:
        Ascending indices.

    Example:
        >>> import numpy as np
        >>> shown_layers(np.array([3.0, 1.0, np.nan, 9.0, 2.0]), most=3).tolist()
        [1, 2, 3]
    """
    if len(values) <= most:
        return np.arange(len(values))
    order = np.argsort(np.where(np.isfinite(values), -np.abs(values), -np.inf), kind="stable")
    top = most - most // 3
    return np.sort(np.concatenate([order[:top], order[len(order) - (most - top) :]]))


def layer_panel(
    label: str,
    names: tuple[str, ...],
    values: Float[np.ndarray, " n"],
    errors: Float[np.ndarray, " n"],
    *,
    color: str,
    hover: tuple[str, ...],
) -> Panel:
    """A panel of horizontal bars with a marker at the value and its error; stems where the axis is logarithmic.

    Args:
        label: of the value axis.
        names: of the layers.
        values: one a layer; values that are not finite have no bar, and zero none on a logarithmic axis.
        errors: standard errors, NaN where not known.
        color: role of the bars.
        hover: what a reader sees on pointing at a row.

    Returns:
        The panel, first layer on top.
    """
    held = np.where(np.isfinite(errors), errors, 0.0)
    axis = fitted_axis(label, _positive(values), values + held, _positive(values - held))
    if axis.scale != "log":
        low, high = axis.limits
        finite = np.isfinite(values)
        axis = Axis(
            label=label,
            limits=(min(0.0, low) if (values[finite] < 0).any() else 0.0, max(high, 0.0) or 1.0),
            scale=axis.scale,
            threshold=axis.threshold,
        )
    rows = np.arange(len(names), dtype=np.float64)
    shown = np.where(np.isfinite(values) & ((values > 0) | (axis.scale != "log")), values, np.nan)
    thin_ = axis.scale != "linear"
    marks: tuple[Mark, ...] = (
        Bars(y=rows, values=shown, color=color, thickness=0.1 if thin_ else 0.62, alpha=0.45, hover=hover),
        Scatter(
            x=shown,
            y=rows,
            error=errors,
            direction="horizontal",
            hollow=np.zeros(len(names), dtype=bool),
            color=color,
            size=4.0 if len(names) <= 40 else 3.0,
            hover=hover,
        ),
    )
    named = tuple(
        name if good else f"{name} (not finite)" for name, good in zip(names, np.isfinite(values), strict=True)
    )
    return Panel(marks=marks, x=axis, y=Axis(label="", limits=(len(names) - 0.4, -0.6), names=named))


def layers_height(rows: int) -> int:
    """Height in CSS pixels at which so many rows are readable."""
    return 70 + (20 if rows <= 12 else 16 if rows <= 40 else 12) * rows


def left_out(drawn: int, total: int) -> str:
    """A sentence on the layers that are not drawn, empty if all are."""
    if drawn == total:
        return ""
    return f" Drawn are the {drawn} of {total} layers with the largest and smallest values; the table holds all."


def _positive(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """The positive values of a quantity that is never negative; all of one that is."""
    return values if (values[np.isfinite(values)] < 0).any() else np.where(values > 0, values, np.nan)
