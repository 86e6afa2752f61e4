"""Where in the network groups of samples or tasks pull against each other: cosines of their mean gradients by layer."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import numpy as np

from theodolite.records import Gradients, TaskGradients
from theodolite.records.groups import GroupAlignment
from theodolite.reports.figures.description import Axis, Cells, Figure, Panel
from theodolite.reports.figures.layers import MOST_ROWS, shown_layers
from theodolite.reports.wording import number

MOST_PAIRS = 24


def conflicts(record: Gradients | TaskGradients) -> Figure:
    """Cosine between the mean gradients of every pair of groups or tasks in every layer; crosses mark conflicts beyond chance.

    Args:
        record: gradients with groups, or those of tasks.

    Returns:
        A figure of one panel: the whole gradient on top, the layers below in network order.

    Raises:
        ValueError: if the record has no groups, or only one.
    """
    kind, whole, layers = _read(record)
    if len(whole.names) < 2:
        raise ValueError(f"The map of conflicts needs two {kind} or more; found {len(whole.names)}.")
    rows = shown_layers(np.array([_least(each) for each in layers.values()]), most=MOST_ROWS - 1)
    names = tuple(layers)
    found = {"whole": whole} | {names[row]: layers[names[row]] for row in rows}
    pairs = _pairs(list(found.values()))
    z = np.array([[each.cosines[a, b] for a, b in pairs] for each in found.values()])
    graphs = [each.conflict_graph() for each in found.values()]
    marked = np.array([[bool(graph[a, b]) for a, b in pairs] for graph in graphs])
    named = tuple(f"{whole.names[a]} · {whole.names[b]}" for a, b in pairs)
    hover = tuple(
        tuple(
            f"{layer}<br>{name}<br>cosine {number(float(each.cosines[a, b]), float(each.cosine_stderrs[a, b]))}"
            for name, (a, b) in zip(named, pairs, strict=True)
        )
        for layer, each in found.items()
    )
    return Figure(
        name=f"{kind[:-1]}-conflicts",
        title=f"Agreement of {kind} by layer",
        caption=_caption(kind, whole, found, marked, len(pairs)),
        limits=(
            "A cross is a dot product of mean gradients below zero beyond chance, with the level of 95 % shared among the pairs of "
            "a row, not among rows. Plain gradients are compared: an optimiser that scales entries may turn an agreement around."
        ),
        panels=(
            Panel(
                marks=(Cells(z=z, marked=marked, label="cosine of mean gradients", hover=hover),),
                x=Axis(label="", limits=(-0.5, len(pairs) - 0.5), names=named),
                y=Axis(label="", limits=(len(found) - 0.5, -0.5), names=tuple(found)),
            ),
        ),
        width=max(360, min(760, 260 + 34 * len(pairs))),
        height=150 + (22 if len(found) <= 20 else 13) * len(found),
    )


def _read(record: Gradients | TaskGradients) -> tuple[str, GroupAlignment, Mapping[str, GroupAlignment]]:
    """What is compared, in the whole gradient and in each layer that was kept."""
    if isinstance(record, TaskGradients):
        return "tasks", record.alignment, record.layer_alignment
    layers = {} if record.layer_grams is None else record.layer_group_alignment
    return "groups", record.group_alignment, layers


def _least(alignment: GroupAlignment) -> float:
    """The most negative cosine; the layers of the strongest conflicts and agreements are drawn where not all fit."""
    above = alignment.cosines[np.triu_indices(len(alignment.names), k=1)]
    known = above[np.isfinite(above)]
    return float(known.min()) if known.size else float("nan")


def _pairs(rows: list[GroupAlignment]) -> list[tuple[int, int]]:
    """All pairs of groups, or those that oppose each other most in some row."""
    pairs = list(combinations(range(len(rows[0].names)), 2))
    if len(pairs) <= MOST_PAIRS:
        return pairs
    lows = np.array([[row.cosines[a, b] for a, b in pairs] for row in rows])
    lows = np.where(np.isfinite(lows), lows, 2.0).min(axis=0)
    return [pairs[place] for place in sorted(np.argsort(lows, kind="stable")[:MOST_PAIRS].tolist())]


def _caption(kind: str, whole: GroupAlignment, found: dict[str, GroupAlignment], marked: np.ndarray, drawn: int) -> str:
    edges = whole.conflicts()
    text = [
        f"Conflicts of the whole gradient: {', '.join(f'{a} against {b}' for a, b in edges[:6])}{' …' if len(edges) > 6 else ''}."
        if edges
        else f"No two {kind} conflict in the whole gradient beyond chance."
    ]
    layers = int(marked[1:].any(axis=1).sum())
    if len(found) > 1:
        text.append(f"{layers} of {len(found) - 1} layers drawn have a conflict beyond chance, each by itself.")
    else:
        text.append("Layers were not kept: measure with layers=True.")
    every = len(whole.names) * (len(whole.names) - 1) // 2
    if drawn < every:
        text.append(f"Drawn are the {drawn} of {every} pairs that oppose each other most.")
    return " ".join(text)
