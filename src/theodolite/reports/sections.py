"""The records of a run, ordered by lens: each figure with its tables and where its numbers come from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from theodolite.records import (
    Atlas,
    Connectivity,
    Cost,
    Density,
    Event,
    Gradients,
    Line,
    Path,
    Plane,
    Record,
    Scalars,
    Snapshot,
    Spectrum,
    Stability,
    TaskGradients,
    Trace,
    Trajectory,
)
from theodolite.reports import figures
from theodolite.reports.curvature_rows import TABLES
from theodolite.reports.figures import Figure
from theodolite.reports.gradient_rows import readings_table, samples_table, tasks_table
from theodolite.reports.landscape_rows import atlas_table, connectivity_table, path_table, trajectory_table
from theodolite.reports.rows import (
    density_table,
    gradients_table,
    landscape_table,
    spectrum_tables,
    stability_table,
    trace_table,
)
from theodolite.reports.tables import Table
from theodolite.reports.wording import count, duration, slug

R = TypeVar("R", bound=Record)
SHOWN: tuple[type[Record], ...] = (
    Atlas,
    Connectivity,
    Density,
    Event,
    Gradients,
    Line,
    Path,
    Plane,
    Scalars,
    Snapshot,
    Spectrum,
    Stability,
    TaskGradients,
    Trace,
    Trajectory,
    *TABLES,
)


@dataclass(frozen=True, kw_only=True)
class Block:
    """A figure, its numbers, and where they come from.

    Args:
        title: what was measured.
        figure: None where there is nothing to draw.
        tables: the numbers.
        origin: step, seed and cost, one line a record.
        notes: what the records say must be known to trust them.
        half: whether half the width of a wide page is enough.
    """

    title: str
    figure: Figure | None
    tables: tuple[Table, ...]
    origin: tuple[str, ...]
    notes: tuple[str, ...]
    half: bool = False


@dataclass(frozen=True, kw_only=True)
class Section:
    """One lens.

    Args:
        name: for anchors.
        title: of the lens.
        blocks: not empty.
    """

    name: str
    title: str
    blocks: tuple[Block, ...]


def sections(records: Sequence[Record]) -> tuple[Section, ...]:
    """The lenses through which a run was looked at; a lens without records is left out.

    Args:
        records: of one run. Of each measure the record of the last step is shown.

    Returns:
        Sections in the order loss, curvature, layers, alignment, detail, landscape, others.
    """
    lenses: tuple[tuple[str, str, Callable[[Sequence[Record]], Iterable[Block]]], ...] = (
        ("loss", "Loss and stability", _loss),
        ("curvature", "Loss curvature", _curvature),
        ("layers", "Curvature and gradient magnitude by layer", _layers),
        ("alignment", "Gradient magnitude and alignment", _alignment),
        ("detail", "Curvature by class, direction and batch", _detail),
        ("landscape", "Loss landscape", _landscape),
        ("others", "Other readings", _others),
    )
    built = [(name, title, tuple(blocks(records))) for name, title, blocks in lenses]
    return tuple(Section(name=name, title=title, blocks=blocks) for name, title, blocks in built if blocks)


def figures_of(records: Sequence[Record]) -> tuple[Figure, ...]:
    """All figures of a run, in the order of its sections."""
    blocks = (block for section in sections(records) for block in section.blocks)
    return tuple(block.figure for block in blocks if block.figure is not None)


def _loss(records: Sequence[Record]) -> Iterable[Block]:
    readings = [r for r in records if isinstance(r, Stability)]
    curve = any(isinstance(r, Scalars) and "loss" in r.values and r.step is not None for r in records)
    drawn = curve or any(r.step is not None for r in readings)
    if not drawn and not readings:
        return
    figure = figures.loss_and_sharpness(records) if drawn else None
    yield Block(
        title=figure.title if figure else "Stability",
        figure=figure,
        tables=(stability_table(readings),) if readings else (),
        origin=(_series_origin(readings),) if readings else (),
        notes=_notes(readings),
    )


def _curvature(records: Sequence[Record]) -> Iterable[Block]:
    spectra = {slug(r.operator): r for r in _last(records, Spectrum, lambda r: slug(r.operator))}
    for density in _last(records, Density, lambda r: slug(r.operator)):
        if not density.nodes.size or not np.isfinite(density.nodes[density.weights != 0]).all():
            yield _block("Spectral density", None, (), [density], "The nodes are not finite: there is no density.")
            continue
        spectrum = spectra.get(slug(density.operator))
        same = spectrum if spectrum is not None and spectrum.step == density.step else None
        if same is not None:
            del spectra[slug(density.operator)]
        tables = spectrum_tables(same) if same is not None else ()
        figure = figures.density(density, same)
        yield _block(
            "Spectral density", figure, (*tables, density_table(density)), [density, *([same] if same else [])]
        )
    for spectrum in spectra.values():
        yield _spectrum_block(spectrum)


def _spectrum_block(spectrum: Spectrum) -> Block:
    """The eigenvalues, over the density where the same products gave one."""
    tables = spectrum_tables(spectrum)
    if spectrum.nodes is None or not np.isfinite(spectrum.nodes[spectrum.weights != 0]).all():
        return _block("Extreme eigenvalues", None, tables, [spectrum])
    density = spectrum.density
    figure = figures.density(density, spectrum)
    return _block("Spectral density", figure, (*tables, density_table(density, spectrum)), [spectrum])


def _layers(records: Sequence[Record]) -> Iterable[Block]:
    measured = {slug(r.operator): r for r in _last(records, Trace, lambda r: slug(r.operator))}
    beside = {slug(r.operator): r for r in _last(records, Spectrum, lambda r: slug(r.operator)) if r.layers}
    for name in dict.fromkeys((*measured, *beside)):
        source = measured.get(name) or beside[name]
        trace = source.layer_trace if isinstance(source, Spectrum) else source
        drawn = figures.traces(trace) if trace.layers else None
        yield _block("Curvature by layer", drawn, (trace_table(trace),), [source], half=True)
    for gradients in _last(records, Gradients, lambda r: r.kind):
        figure = figures.gradient_norms(gradients) if gradients.layers else None
        yield _block("Gradient norms by layer", figure, (gradients_table(gradients),), [gradients], half=True)


def _alignment(records: Sequence[Record]) -> Iterable[Block]:
    """What a Gram matrix of per-sample gradients shows; a figure that its readings do not allow is left out, and said."""
    for gradients in _last(records, Gradients, lambda r: r.kind):
        if gradients.gram is None or not gradients.finite.any():
            continue
        tables = {"gram": readings_table(gradients), "norms": samples_table(gradients)}
        drawn: tuple[tuple[str, str, Callable[[Gradients], Figure]], ...] = (
            ("gram", "Cosines between the gradients of samples", figures.gram),
            ("conflicts", "Agreement of groups by layer", figures.conflicts),
            ("norms", "Norms of the gradients of samples", figures.sample_norms),
            ("trade-off", "What a batch size costs", figures.trade_off),
        )
        for name, title, draw in drawn:
            if name == "conflicts" and (gradients.groups is None or len(gradients.group_names) < 2):
                continue
            figure, remark = _drawn(draw, gradients)
            own = (tables[name],) if name in tables else ()
            if figure is not None or own:
                yield _block(title, figure, own, [gradients], *remark, half=name in ("norms", "trade-off"))
    yield from _tasks(records)


def _tasks(records: Sequence[Record]) -> Iterable[Block]:
    for tasks in _last(records, TaskGradients, lambda r: slug(" ".join(r.tasks))):
        figure = figures.conflicts(tasks) if len(tasks.tasks) > 1 else None
        yield _block("Gradients of tasks", figure, (tasks_table(tasks),), [tasks])


def _drawn(draw: Callable[[Gradients], Figure], gradients: Gradients) -> tuple[Figure | None, tuple[str, ...]]:
    """The figure, or why there is none."""
    try:
        return draw(gradients), ()
    except ValueError as error:
        return None, (str(error),)


def _detail(records: Sequence[Record]) -> Iterable[Block]:
    for kind, table in TABLES.items():
        for record in _last(records, kind, lambda r: slug(str(getattr(r, "name", r.kind)))):
            shown = table(record)
            yield _block(shown.title, None, (replace(shown, title=""),), [record])


def _others(records: Sequence[Record]) -> Iterable[Block]:
    """What no other section shows, in the words of each record."""
    left = [record for record in records if not isinstance(record, SHOWN)]
    if left:
        rows = tuple((r.kind, "—" if r.step is None else f"{r.step:,}", "; ".join(r.summary())) for r in left)
        table = Table(title="", columns=("reading", "step", "says"), rows=rows, words=3)
        yield Block(title="Other readings", figure=None, tables=(table,), origin=(), notes=_notes(left))


def _landscape(records: Sequence[Record]) -> Iterable[Block]:
    for atlas in _last(records, Atlas, lambda r: r.kind):
        yield _block("Slices", figures.atlas(atlas) if atlas.names else None, (atlas_table(atlas),), [atlas])
    for plane in _last(records, Plane, lambda r: slug(r.name)):
        broad = min(plane.losses.shape) > 1
        figure = figures.plane(plane) if broad else None
        yield _block("Loss over a plane", figure, (landscape_table(plane),), [plane], half=True)
        if broad and np.isfinite(plane.losses).any():
            yield _block("Surface over a plane", figures.surface(plane), (), [plane], half=True)
    for trajectory in _last(records, Trajectory, lambda r: slug(r.name)):
        figure = figures.trajectory(trajectory) if trajectory.losses.size else None
        yield _block("A training from a plane", figure, (trajectory_table(trajectory),), [trajectory], half=True)
    for line in _last(records, Line, lambda r: slug(r.name)):
        figure = figures.line(line) if line.losses.size else None
        yield _block("Loss along a line", figure, (landscape_table(line),), [line], half=True)
    yield from _over_training(records)
    for path in _last(records, Path, lambda r: slug("-".join(r.profiles))):
        figure = figures.profiles(path) if path.losses.size else None
        yield _block("Loss between two checkpoints", figure, (path_table(path),), [path])
    for pairs in _last(records, Connectivity, lambda r: slug(r.profile)):
        figure = figures.connectivity(pairs) if len(pairs.names) > 1 else None
        yield _block("Barriers between checkpoints", figure, (connectivity_table(pairs),), [pairs], half=True)


def _over_training(records: Sequence[Record]) -> Iterable[Block]:
    """Lines of one kind at three steps or more, on the positions of the last."""
    kinds: dict[str, list[Line]] = {}
    for record in records:
        if isinstance(record, Line) and record.step is not None and record.losses.size:
            kinds.setdefault(slug(record.name), []).append(record)
    for lines in kinds.values():
        alike = [
            line for line in lines if line.name == lines[-1].name and np.array_equal(line.alphas, lines[-1].alphas)
        ]
        if len({line.step for line in alike}) > 2:
            spent = cost_text(sum((line.cost for line in alike), Cost()))
            block = _block("Slices over training", figures.ridgelines(alike), (), alike)
            yield replace(block, origin=(f"{len(alike)} lines · {spent} in all",), half=True)


def _last(records: Sequence[Record], kind: type[R], key: Callable[[R], str]) -> list[R]:
    """The record of the last step for each key, those of one step in the order of writing."""
    found: dict[str, R] = {}
    for record in records:
        if isinstance(record, kind):
            earlier = found.get(key(record))
            if earlier is None or record.step is None or earlier.step is None or record.step >= earlier.step:
                found[key(record)] = record
    return list(found.values())


def _block(
    title: str,
    figure: Figure | None,
    tables: tuple[Table, ...],
    shown: Sequence[Record],
    *remarks: str,
    half: bool = False,
) -> Block:
    return Block(
        title=title if figure is None else figure.title,
        figure=figure,
        tables=tables,
        origin=tuple(_origin(record) for record in shown),
        notes=(*remarks, *_notes(shown)),
        half=half,
    )


def _origin(record: Record) -> str:
    parts = [record.kind.capitalize()]
    parts += [f"step {record.step:,}"] if record.step is not None else []
    parts += [f"seed {record.seed}"] if record.seed is not None else []
    return " · ".join([*parts, cost_text(record.cost)])


def _series_origin(readings: Sequence[Stability]) -> str:
    total = sum((reading.cost for reading in readings), Cost())
    seeds = sorted({reading.seed for reading in readings if reading.seed is not None})
    named = f" · seed {', '.join(map(str, seeds[:4]))}{' …' if len(seeds) > 4 else ''}" if seeds else ""
    return f"{len(readings)} probes{named} · {cost_text(total)} in all"


def cost_text(cost: Cost) -> str:
    """A cost in words."""
    parts: list[tuple[float, Any]] = [
        (cost.products, "products"),
        (cost.gradients, "gradients"),
        (cost.forwards, "forwards"),
    ]
    named = [f"{count(value)} {name if value != 1 else name[:-1]}" for value, name in parts if value]
    return ", ".join([*named, duration(cost.seconds)])


def _notes(shown: Iterable[Record]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(note for record in shown for note in record.notes))
