"""Measures of a problem at one point, kept and resumed through a run log."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import accumulate
from pathlib import Path
from typing import Any

from theodolite.errors import TheodoliteWarning
from theodolite.plans.menu import Measure, Measurement, chosen
from theodolite.plans.price import shares
from theodolite.problem import Problem
from theodolite.records import Event, Log, Record, read
from theodolite.records.layout import LOG

Progress = Callable[[str, float], None]

FAILED = "measure failed"
POINTS = "points"  # folder, within that of the log, of readings whose grid is not done


def survey(
    problem: Problem,
    *,
    measures: str | Sequence[str | Measure] = "standard",
    log: str | os.PathLike[str] | None = None,
    step: int | None = None,
    seed: int = 0,
    on_progress: Progress | None = None,
) -> tuple[Record, ...]:
    """Measure a problem at its current parameters.

    With a log, every record is kept as soon as it is taken. A survey that was interrupted resumes: what the log holds
    of the same measure at the same parameters, data, criterion, options and seed is taken from it instead of measured
    again. A function counts as the same when its code, defaults, closure and the globals it names are; one that holds
    what cannot be compared (an open file, a random generator) is measured every time. A measure that fails, whatever
    with, is recorded as an event, with a warning, and the others go on. Where ranks share the data, the first one writes the log.

    Cost: ``theodolite.plans.quote`` tells it beforehand.

    Args:
        problem: what to survey.
        measures: a plan, ``"quick"``, ``"standard"`` or ``"deep"``; or names (the keys of ``theodolite.plans.MEASURES``) and
            functions from the problem to a record.
        log: folder of the run log.
        step: optimiser step, kept in the records.
        seed: of all random numbers.
        on_progress: called with what is going on and the share of the expected work that is done, from 0 to 1.

    Returns:
        One record for each measure, in order; an ``Event`` named ``"measure failed"`` for one that failed.

    Raises:
        ProblemError: a name is unknown, or the problem cannot be surveyed at all.
        LogInUseError: another process writes to the log.

    Example:
        >>> import torch
        >>> inputs, targets = torch.randn(64, 10), torch.randint(3, (64,))
        >>> problem = Problem(torch.nn.Linear(10, 3), torch.nn.CrossEntropyLoss(), [(inputs, targets)])
        >>> [record.kind for record in survey(problem, measures=["gradients", "trace"])]
        ['gradients', 'trace']
    """
    asked = chosen(problem, measures)
    problem.ensure_checked()
    point = problem.digest()
    if log is None:
        return tuple(_run_all(problem, asked, {}, point, None, step, seed, on_progress))
    with Log(log) if problem.ranks.rank == 0 else nullcontext() as book:
        taken = _taken(problem, log)
        return tuple(_run_all(problem, asked, taken, point, book, step, seed, on_progress))


def _taken(problem: Problem, log: str | os.PathLike[str]) -> dict[tuple[Any, Any], Record]:
    """Records of the log by plan and point; where ranks share a problem, those that every rank can read."""
    if problem.ranks.size > 1:
        problem.ranks.texts("the log is open")  # no rank reads before the first has made it
    records = read(log) if (Path(log) / LOG).exists() else ()
    found = {(record.context.get("plan"), record.context.get("point")): record for record in records}
    if problem.ranks.size > 1:
        seen = [set(json.loads(text)) for text in problem.ranks.texts(json.dumps([str(key) for key in found]))]
        found = {key: record for key, record in found.items() if all(str(key) in keys for keys in seen)}
    return found


def _run_all(
    problem: Problem,
    asked: Sequence[Measurement],
    taken: dict[tuple[Any, Any], Record],
    point: str,
    log: Log | None,
    step: int | None,
    seed: int,
    on_progress: Progress | None,
) -> list[Record]:
    records = []
    widths = shares(asked)
    for measurement, width, end in zip(asked, widths, accumulate(widths), strict=True):

        def tell(what: str, part: float, width: float = width, end: float = end) -> None:
            if on_progress is not None:
                on_progress(what, min(end - width * (1 - part), 1.0))

        tell(measurement.name, 0.0)
        plan = None if measurement.plan is None else f"{measurement.plan} seed={seed}"
        record = None if plan is None else taken.get((plan, point))
        if record is None or record.step != step:
            # Ranks that share a grid must not differ in what they find there.
            store = None if log is None or problem.ranks.size > 1 else log.folder / POINTS
            record = _run(problem, measurement, seed=seed, store=store, tell=tell).replace(step=step)
            if plan is not None and not isinstance(record, Event):
                record = record.replace(context={**record.context, "plan": plan, "point": point})
            if log is not None:
                log.append(record)
                shutil.rmtree(log.folder / POINTS, ignore_errors=True)
        records.append(record)
    if on_progress is not None:
        on_progress("done", 1.0)
    return records


def _run(problem: Problem, measurement: Measurement, *, seed: int, store: Path | None, tell: Progress) -> Record:
    try:
        record = measurement(problem, seed=seed, store=store, on_part=tell)
        if not isinstance(record, Record):
            raise TypeError(f"expected a measure to return a Record, found {type(record).__name__}")
        return record
    except Exception as error:  # anything, out of memory too: the others may still succeed
        message = f"{measurement.name} failed: {type(error).__name__}: {error}"
        warnings.warn(message, TheodoliteWarning, stacklevel=2)
        return Event(name=FAILED, message=message)
