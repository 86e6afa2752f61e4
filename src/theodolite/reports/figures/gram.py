"""Cosines between the gradients of all pairs of samples, ordered by group."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from theodolite.records import Gradients
from theodolite.records.gram import cosines
from theodolite.reports.figures.description import Axis, Cells, Figure, Line, Panel
from theodolite.reports.wording import number

MOST_SAMPLES = 128  # beyond, a cell is smaller than a pixel and the page grows by megabytes


def gram(gradients: Gradients) -> Figure:
    """Cosine between the gradients of every pair of samples: blocks are groups, red is conflict.

    Args:
        gradients: a record with a Gram matrix.

    Returns:
        A figure of one panel; with many samples of some of them, from every group in proportion.

    Raises:
        ValueError: if the record has no Gram matrix, or fewer than two samples with a finite gradient.
    """
    kept = np.flatnonzero(gradients.finite)
    if len(kept) < 2:
        raise ValueError(f"The figure of a Gram matrix needs two samples with a finite gradient; found {len(kept)}.")
    shown = _ordered(gradients, kept)
    with np.errstate(all="ignore"):
        z = cosines(gradients.finite_gram)
    place = np.searchsorted(kept, shown)
    table = z[np.ix_(place, place)]
    names, places, edges = _groups(gradients, shown)
    count = len(shown)
    rules = tuple(
        Line(x=np.array(x, dtype=np.float64), y=np.array(y, dtype=np.float64), color="path", width=0.8)
        for edge in edges
        for x, y in (((edge, edge), (-0.5, count - 0.5)), ((-0.5, count - 0.5), (edge, edge)))
    )
    label = "sample, by group" if names else "sample, by norm of its gradient"
    axes = [
        Axis(label=label, limits=limits, names=names, places=places)
        for limits in ((-0.5, count - 0.5), (count - 0.5, -0.5))
    ]
    hover = _hover(gradients, shown, table) if count <= 64 else ()
    cells = Cells(z=table, marked=np.zeros(table.shape, dtype=bool), label="cosine", hover=hover)
    return Figure(
        name="gradient-cosines",
        title="Cosines between the gradients of samples",
        caption=_caption(gradients, len(kept), count),
        limits=(
            "Each row is a sample, those of a group beside each other with the largest norm first. A cosine says nothing of how "
            "long the gradients are: in a large model those of unrelated samples are close to orthogonal, and small cosines of one "
            "sign add up."
        ),
        panels=(Panel(marks=(cells, *rules), x=axes[0], y=axes[1], aspect=1.0),),
        width=620,
        height=540,
    )


def _ordered(gradients: Gradients, kept: Int[np.ndarray, " f"]) -> Int[np.ndarray, " m"]:
    """Samples to draw: by group, in it by norm, every group thinned alike."""
    norms = gradients.sample_norms[kept]
    groups = np.zeros(len(kept), dtype=np.int64) if gradients.groups is None else gradients.groups[kept]
    order = kept[np.lexsort((-norms, groups))]
    if len(order) <= MOST_SAMPLES:
        return order
    return order[np.linspace(0, len(order) - 1, MOST_SAMPLES).round().astype(np.int64)]


def _groups(
    gradients: Gradients, shown: Int[np.ndarray, " m"]
) -> tuple[tuple[str, ...], tuple[float, ...], list[float]]:
    """Names of the groups, where their middle lies, and the edges between them."""
    if gradients.groups is None:
        return (), (), []
    groups = gradients.groups[shown]
    present = list(dict.fromkeys(groups.tolist()))
    names = tuple(gradients.group_names[place] for place in present)
    middles = tuple(float(np.flatnonzero(groups == place).mean()) for place in present)
    edges = (np.flatnonzero(np.diff(groups)) + 0.5).tolist()
    return names, middles, edges


def _hover(
    gradients: Gradients, shown: Int[np.ndarray, " m"], table: Float[np.ndarray, "m m"]
) -> tuple[tuple[str, ...], ...]:
    places = shown if gradients.indices is None else gradients.indices[shown]
    return tuple(
        tuple(
            f"samples {a} and {b}<br>cosine {number(float(value), digits=2)}"
            for b, value in zip(places, row, strict=True)
        )
        for a, row in zip(places, table, strict=True)
    )


def _caption(gradients: Gradients, finite: int, drawn: int) -> str:
    mean, opposed = gradients.mean_cosine, gradients.negative_fraction
    text = [
        f"Mean cosine of a pair {number(mean.value, mean.stderr)}; {100 * opposed.value:.0f} % of the pairs oppose each other "
        f"(± {100 * opposed.stderr:.2g})."
    ]
    if gradients.groups is not None:
        found = gradients.group_alignment
        text.append(f"Within groups {number(found.within, digits=2)}, between them {number(found.between, digits=2)}.")
    if drawn < finite:
        text.append(f"Drawn are {drawn} of {finite} samples, from every group in proportion.")
    if not gradients.finite.all():
        text.append(f"{int((~gradients.finite).sum())} samples without a finite gradient are left out.")
    return " ".join(text)
