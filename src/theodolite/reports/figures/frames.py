"""Planes as the frames of a film: the same axes, levels and colours in all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from theodolite.records import Plane
from theodolite.reports.figures.description import Axis, Contour, Figure, Line, Mark, Scatter
from theodolite.reports.figures.planes import plane

TOGETHER = 1e-6  # of an axis: planes whose ends differ by less are on one frame


def frames(records: Sequence[Plane], *, cap: float | None = None) -> tuple[Figure, ...]:
    """Figures of planes that can be shown one after the other, so that what changes between them is the loss alone.

    Axes hold all planes; levels, their scale and the cap are those of all losses together. Marks and words that would come and
    go move the rest: there is no legend. Where a plane has a path, the way so far is a line with a dot at its last checkpoint.

    Args:
        records: planes along the same directions, in the order of the film.
        cap: losses above are masked; None masks what lies more than six decades above the lowest loss of all.

    Returns:
        One figure for each plane.

    Raises:
        ValueError: there are no planes, or their directions, the ends of their axes or their numbers of points differ. Of planes
            without directions their names, seeds, lengths and angle are compared.
    """
    _refuse_unlike(records)
    levels = _contour(plane(_pooled(records), cap=cap))
    shown = levels.z[~levels.masked]
    top = float(shown.max()) if shown.size else cap
    spans = [_ends([record.alphas for record in records]), _ends([record.betas for record in records])]
    return tuple(_frame(record, index, levels, top, spans) for index, record in enumerate(records))


def _frame(
    record: Plane, index: int, common: Contour, top: float | None, spans: Sequence[tuple[float, float]]
) -> Figure:
    figure = plane(record, cap=top)
    (panel,) = figure.panels
    contour = replace(_contour(figure), levels=common.levels, scale=common.scale, label=common.label, masked_label="")
    x, y = (replace(axis, limits=span) for axis, span in zip((panel.x, panel.y), spans, strict=True))
    step = f"frame {index + 1}" if record.step is None else f"step {record.step:,}"
    return replace(
        figure,
        name=f"frame-{index:04d}",
        title=f"Loss over the plane through the checkpoint · {step}",
        panels=(replace(panel, marks=(contour, *_way(record, x)), x=x, y=y),),
    )


def _way(record: Plane, x: Axis) -> tuple[Mark, ...]:
    """The path so far, and where it is."""
    if record.path is None or not len(record.path):
        return ()
    along, across = record.path[:, 0].copy(), record.path[:, 1].copy()
    here = Scatter(x=along[-1:], y=across[-1:], hollow=np.array([False]), color="halo", size=7.0)
    return Line(x=along, y=across, color="path", width=1.6), here


def _contour(figure: Figure) -> Contour:
    contour = figure.panels[0].marks[0]
    assert isinstance(contour, Contour)
    return contour


def _pooled(records: Sequence[Plane]) -> Plane:
    """The losses of all planes as those of one, for its levels."""
    losses = np.concatenate([record.losses.ravel() for record in records])[:, None]
    return Plane(
        alphas=np.arange(float(len(losses))),
        betas=np.zeros(1),
        losses=losses,
        stderrs=np.full(losses.shape, np.nan),
        direction_norms=records[0].direction_norms,
        cosine=records[0].cosine,
        name=records[0].name,
        parameter_norm=records[0].parameter_norm,
    )


def _ends(positions: Sequence[np.ndarray]) -> tuple[float, float]:
    low, high = min(float(each.min()) for each in positions), max(float(each.max()) for each in positions)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _refuse_unlike(records: Sequence[Plane]) -> None:
    if not records:
        raise ValueError("Expected planes to make a film of, found none.")
    for index, record in enumerate(records):
        if not isinstance(record, Plane):
            raise ValueError(
                f"Expected planes to make a film of, found a {type(record).__name__} in frame {index + 1}."
            )
        found = _other_directions(record, records[0]) or _other_axes(record, records[0])
        if found:
            what, here, there = found
            raise ValueError(
                f"Expected planes along the same {what} {here} in frame {index + 1} and {there} in the first. Draw them one by one."
            )


def _other_directions(record: Plane, first: Plane) -> tuple[str, object, object] | None:
    """How directions differ: in their lengths, their entries, or in what is known of those that were dropped."""
    here, there = (*record.direction_norms, record.cosine), (*first.direction_norms, first.cosine)
    if not np.allclose(here, there, rtol=TOGETHER, atol=TOGETHER, equal_nan=True):
        return "directions, found lengths and cosine", here, there
    if record.directions is None or first.directions is None:
        drawn = [f"{each.name!r} with seed {each.seed}" for each in (record, first)]
        return ("directions, found", drawn[0], drawn[1]) if drawn[0] != drawn[1] else None
    sizes = [f"{each[0].size:,} parameters" for each in (record.directions, first.directions)]
    if sizes[0] != sizes[1]:
        return "directions, found those of", sizes[0], sizes[1]
    for place, (one, other) in enumerate(zip(record.directions, first.directions, strict=True), start=1):
        off = float(np.linalg.norm(one.astype(np.float64) - other))
        if off > TOGETHER * float(np.linalg.norm(other)):
            return (
                f"directions, found d{'₀₁₂'[place]}",
                f"at a distance of {off:.3g}",
                f"of length {np.linalg.norm(other):.3g}",
            )
    return None


def _other_axes(record: Plane, first: Plane) -> tuple[str, object, object] | None:
    """How the ends of the axes or their numbers of points differ."""
    sizes = [f"{each.alphas.size} × {each.betas.size} points" for each in (record, first)]
    if sizes[0] != sizes[1]:
        return "axes, found", sizes[0], sizes[1]
    here, there = ([_ends([each.alphas]), _ends([each.betas])] for each in (record, first))
    width = max(high - low for low, high in there)
    return None if np.allclose(here, there, rtol=0, atol=TOGETHER * width) else ("axes, found spans", here, there)
