"""Curvature by layer: the trace of each diagonal block."""

from __future__ import annotations

from theodolite.records import Trace
from theodolite.reports.figures.description import Figure
from theodolite.reports.figures.layers import layer_panel, layers_height, left_out, shown_layers
from theodolite.reports.figures.spectra import OPERATORS
from theodolite.reports.wording import number, slug


def traces(trace: Trace) -> Figure:
    """Trace of each layer's diagonal block, with its standard error over probes.

    Args:
        trace: the record.

    Returns:
        A figure of one panel.

    Raises:
        ValueError: if the record has no layers.
    """
    if not trace.layers:
        raise ValueError("The figure of layer traces needs at least one layer; found a Trace record without.")
    rows = shown_layers(trace.layer_values)
    names = tuple(trace.layers[row] for row in rows)
    values, errors = trace.layer_values[rows], trace.layer_stderrs[rows]
    hover = tuple(
        f"{name}<br>trace {number(value, error)}" for name, value, error in zip(names, values, errors, strict=True)
    )
    operator = OPERATORS.get(trace.operator, trace.operator)
    panel = layer_panel(
        f"trace of the {operator} block",
        names,
        values,
        errors,
        color="curvature",
        hover=hover,
    )
    return Figure(
        name=slug(f"layer-traces-{trace.operator}"),
        title="Curvature by layer",
        caption=(
            f"Trace of the whole {operator}: {number(trace.value, trace.stderr)}, by {trace.method} with "
            f"{trace.probes} probes; the blocks come from the same probes. Error bars: one standard error over "
            f"probes.{left_out(len(rows), len(trace.layers))}"
        ),
        limits=(
            "A trace adds eigenvalues of both signs: a small one can hide large ones that cancel. Errors are those "
            "of the probes on these data; they leave out that the data are a sample."
        ),
        panels=(panel,),
        height=layers_height(len(rows)),
    )
