"""What a page says of a run as a whole: what it cost, what happened, how runs compare."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from theodolite.records import Cost, Density, Event, Gradients, Plane, Record, Scalars, Spectrum, Stability, Trace
from theodolite.reports.figures import crossing, departure
from theodolite.reports.sources import Source
from theodolite.reports.tables import SEVERITIES, Table
from theodolite.reports.wording import count, duration, number

MOST_EVENTS = 60
NONE = "—"


def costs_table(records: Sequence[Record]) -> Table:
    """What each kind of measurement cost, and all together."""
    totals: dict[str, Cost] = {}
    numbers: Counter[str] = Counter()
    for record in records:
        if record.cost != Cost():
            totals[record.kind] = totals.get(record.kind, Cost()) + record.cost
            numbers[record.kind] += 1
    rows = [_cost_row(kind, numbers[kind], cost) for kind, cost in totals.items()]
    if len(rows) > 1:
        rows.append(_cost_row("all", sum(numbers.values()), sum(totals.values(), Cost())))
    return Table(
        title="What the survey cost",
        columns=("measurement", "records", "products", "gradients", "forwards", "time"),
        rows=tuple(rows),
        note="Products, gradients and forward passes each go over the whole data of the problem once.",
    )


def events_table(records: Sequence[Record]) -> Table:
    """What happened, equal messages in one row."""
    grouped: dict[tuple[str, str], list[int | None]] = {}
    for record in records:
        if isinstance(record, Event):
            grouped.setdefault((record.name, record.message), []).append(record.step)
    rows = [(name, message, _step_span(steps), count(len(steps))) for (name, message), steps in grouped.items()]
    left = len(rows) - MOST_EVENTS
    return Table(
        title="Events",
        columns=("event", "message", "step", "times"),
        rows=tuple(rows[:MOST_EVENTS]),
        words=2,
        note=f"{left} further events are in the log." if left > 0 else "",
    )


def comparison_table(runs: Sequence[Source]) -> Table:
    """Runs side by side; a row that no run can fill is left out."""
    rows = [(name, *(read(run) for run in runs)) for name, read in QUANTITIES]
    return Table(
        title="Runs side by side",
        columns=("quantity", *(run.name for run in runs)),
        rows=tuple(row for row in rows if any(cell != NONE for cell in row[1:])),
        note="Of each quantity the last reading; ± is one standard error.",
    )


def _findings(run: Source) -> str:
    counts: Counter[str] = Counter(finding.severity for finding in run.findings)
    return ", ".join(f"{counts[name]} {name}" for name in SEVERITIES if counts[name]) or "none"


def _last_loss(run: Source) -> str:
    return _of(run, (Gradients, Stability), lambda r: number(r.loss, r.loss_stderr))


def _lost(run: Source) -> str:
    losses = [(r.step, r.values["loss"]) for r in run.records if isinstance(r, Scalars) and "loss" in r.values]
    if not losses:
        return NONE
    steps = [step for step, loss in losses if not math.isfinite(loss)]
    first = min((step for step in steps if step is not None), default=None)
    return "none" if not steps else f"{len(steps):,}{'' if first is None else f', first at step {first:,}'}"


def _crossing(run: Source) -> str:
    readings = [r for r in run.records if isinstance(r, Stability)]
    first = crossing(readings)
    if not readings:
        return NONE
    return "none" if first is None else f"step {first.step:,}"


def _departure(run: Source) -> str:
    if not any(isinstance(r, Stability) and math.isfinite(r.ratio) for r in run.records):
        return NONE
    left = departure(run.records)
    return "no" if left is None else f"step {left.step:,}"


def _largest_ratio(run: Source) -> str:
    readings = [r for r in run.records if isinstance(r, Stability) and math.isfinite(r.ratio)]
    if not readings:
        return NONE
    top = max(readings, key=lambda r: r.ratio)
    where = "" if top.step is None else f", step {top.step:,}"
    return f"{number(top.ratio, top.ratio_estimate.stderr)}{where}"


def _eigenvalue(index: int) -> Callable[[Source], str]:
    end = "largest" if index == 0 else "smallest"

    def read(run: Source) -> str:
        held = [r for r in run.records if isinstance(r, Spectrum) and r.which in (end, "both") and r.eigenvalues.size]
        if not held:
            return NONE
        text = number(float(held[-1].eigenvalues[index]), float(held[-1].data_stderr[index]))
        return text if held[-1].converged[index] else f"{text} (not converged)"

    return read


def _of(run: Source, kinds: tuple[type[Record], ...], read: Callable[[Any], str]) -> str:
    """A text on the last record of the first kind that the run has."""
    for kind in kinds:
        held = [record for record in run.records if isinstance(record, kind)]
        if held:
            return read(held[-1])
    return NONE


def _trace(run: Source) -> str:
    """Of the last trace, or the last spectrum that estimated one."""
    held = [r for r in run.records if isinstance(r, Trace) or (isinstance(r, Spectrum) and r.probes)]
    if not held:
        return NONE
    last = held[-1]
    return number(last.trace, last.trace_stderr) if isinstance(last, Spectrum) else number(last.value, last.stderr)


def _density_mass(run: Source) -> str:
    held = [
        r
        for r in run.records
        if (isinstance(r, Density) and r.nodes.size) or (isinstance(r, Spectrum) and r.nodes is not None)
    ]
    return number(held[-1].negative_mass.value, held[-1].negative_mass.stderr) if held else NONE


QUANTITIES: tuple[tuple[str, Callable[[Source], str]], ...] = (
    ("findings", _findings),
    ("loss", _last_loss),
    ("training losses not finite", _lost),
    ("first crossing of the stability bound", _crossing),
    ("loss left its range", _departure),
    ("largest stability ratio, whole run", _largest_ratio),
    (
        "learning rate at the last probe",
        lambda run: _of(run, (Stability,), lambda r: number(r.learning_rate, digits=3)),
    ),
    ("gradient norm", lambda run: _of(run, (Gradients,), lambda r: number(r.norm, r.norm_stderr))),
    ("largest eigenvalue", _eigenvalue(0)),
    ("smallest eigenvalue", _eigenvalue(-1)),
    ("trace", _trace),
    ("share of eigenvalues below zero", _density_mass),
    ("plane: points not finite", lambda run: _of(run, (Plane,), lambda r: count(int((~r.finite).sum())))),
    (
        "time spent measuring",
        lambda run: duration(sum((r.cost.seconds for r in run.records), 0.0)) if run.records else NONE,
    ),
)


def _cost_row(kind: str, records: int, cost: Cost) -> tuple[str, ...]:
    amounts = (cost.products, cost.gradients, cost.forwards)
    return (kind, count(records), *(count(amount) if amount else NONE for amount in amounts), duration(cost.seconds))


def _step_span(steps: Sequence[int | None]) -> str:
    known = [step for step in steps if step is not None]
    if not known:
        return NONE
    return f"{min(known):,}" if min(known) == max(known) else f"{min(known):,} to {max(known):,}"
