"""Gradient norms by layer, beside what they are relative to the parameters they move."""

from __future__ import annotations

import numpy as np

from theodolite.records import Gradients
from theodolite.reports.figures.description import Figure
from theodolite.reports.figures.layers import layer_panel, layers_height, left_out, shown_layers
from theodolite.reports.wording import number


def gradient_norms(gradients: Gradients) -> Figure:
    """Gradient norm of each layer, and the same over the norm of its parameters.

    Args:
        gradients: the record.

    Returns:
        A figure of two panels beside each other.

    Raises:
        ValueError: if the record has no layers.
    """
    if not gradients.layers:
        raise ValueError("The figure of gradient norms needs at least one layer; found a Gradients record without.")
    rows = shown_layers(gradients.layer_norms)
    names = tuple(gradients.layers[row] for row in rows)
    norms, errors = gradients.layer_norms[rows], gradients.layer_norm_stderrs[rows]
    parameters = np.where(gradients.parameter_norms[rows] > 0, gradients.parameter_norms[rows], np.nan)
    hover = tuple(
        f"{name}<br>gradient {number(g, e)}<br>parameters {number(p)}"
        for name, g, e, p in zip(names, norms, errors, gradients.parameter_norms[rows], strict=True)
    )
    panels = (
        layer_panel("gradient norm ‖∇L‖", names, norms, errors, color="gradient", hover=hover),
        layer_panel(
            "relative to parameters ‖∇L‖ / ‖θ‖",
            names,
            norms / parameters,
            errors / parameters,
            color="parameter",
            hover=hover,
        ),
    )
    return Figure(
        name="gradient-norms",
        title="Gradient norms by layer",
        caption=_caption(gradients) + left_out(len(rows), len(gradients.layers)),
        limits=(
            "The norm of the mean gradient over the surveyed samples, not the spread of single-sample gradients; "
            "layers in the order of the parameters, biases and norms with their layer. Layers whose parameters are "
            "zero have no relative norm."
        ),
        panels=panels,
        arrangement="beside",
        height=layers_height(len(rows)),
    )


def _caption(gradients: Gradients) -> str:
    finite = np.isfinite(gradients.layer_norms)
    total = f"Whole gradient norm {number(gradients.norm, gradients.norm_stderr)} over {gradients.samples:,} samples."
    if not finite.any():
        return f"{total} No layer has a finite gradient."
    norms = np.where(finite, gradients.layer_norms, -np.inf)
    largest = int(norms.argmax())
    share = (gradients.layer_norms[largest] / gradients.norm) ** 2 if gradients.norm > 0 else np.nan
    part = f", {100 * share:.0f} % of the squared norm" if np.isfinite(share) else ""
    lost = f" {int((~finite).sum())} layers have a gradient that is not finite." if not finite.all() else ""
    return (
        f"{total} Largest in {gradients.layers[largest]}{part}. Error bars: one standard error from the data, "
        f"where it is known.{lost}"
    )
