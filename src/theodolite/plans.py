"""Several measures of a problem at one point, by name or by function, kept and resumed through a run log."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from theodolite.errors import ProblemError, TheodoliteWarning
from theodolite.landscapes import line, plane
from theodolite.measures import density, gradients, spectrum, trace
from theodolite.problem import Problem
from theodolite.problem.identity import identity
from theodolite.records import Event, Log, Record, read

Measure = Callable[[Problem], Record]
Progress = Callable[[str, int, int], None]

MEASURES: dict[str, Callable[..., Record]] = {
    "gradients": gradients,
    "spectrum": partial(spectrum, k=5, which="both"),
    "trace": partial(trace, probes=32),
    "density": partial(density, probes=4, steps=40),
    "line": partial(line, points=41),
    "plane": partial(plane, points=21),
}
FAILED = "measure failed"
STANDARD = ("gradients", "spectrum", "trace", "density", "plane")


def survey(
    problem: Problem,
    *,
    measures: Sequence[str | Measure] = STANDARD,
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
    with, is recorded as an event, with a warning, and the others go on.

    Cost: for the standard measures about 260 products, two gradients and 441 forward passes.

    Args:
        problem: what to survey.
        measures: names (``"gradients"``, ``"spectrum"``, ``"trace"``, ``"density"``, ``"line"``, ``"plane"``), or functions
            from the problem to a record.
        log: folder of the run log.
        step: optimiser step, kept in the records.
        seed: of all random numbers.
        on_progress: called with the name of each measure, how many are done, and how many there are, before each and at
            the end.

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
    named = [_named(measure, seed=seed) for measure in measures]
    problem.ensure_checked()
    point = problem.digest()
    if log is None:
        return tuple(_run_all(problem, named, {}, point, None, step, on_progress))
    with Log(log) as book:
        taken = {(record.context.get("plan"), record.context.get("point")): record for record in read(log)}
        return tuple(_run_all(problem, named, taken, point, book, step, on_progress))


def _run_all(
    problem: Problem,
    named: Sequence[tuple[str, str | None, Measure]],
    taken: dict[tuple[Any, Any], Record],
    point: str,
    log: Log | None,
    step: int | None,
    on_progress: Progress | None,
) -> list[Record]:
    records = []
    for index, (name, plan, measure) in enumerate(named):
        if on_progress is not None:
            on_progress(name, index, len(named))
        record = None if plan is None else taken.get((plan, point))
        if record is None or record.step != step:
            record = _run(problem, name, measure).replace(step=step)
            if plan is not None and not isinstance(record, Event):
                record = record.replace(context={**record.context, "plan": plan, "point": point})
            if log is not None:
                log.append(record)
        records.append(record)
    if on_progress is not None:
        on_progress("done", len(named), len(named))
    return records


def _run(problem: Problem, name: str, measure: Measure) -> Record:
    try:
        return measure(problem)
    except Exception as error:  # anything, out of memory too: the others may still succeed
        message = f"{name} failed: {type(error).__name__}: {error}"
        warnings.warn(message, TheodoliteWarning, stacklevel=2)
        return Event(name=FAILED, message=message)


def _named(measure: str | Measure, *, seed: int) -> tuple[str, str | None, Measure]:
    """Name, description that identifies what is computed (None where nothing does), and function of a measure."""
    if isinstance(measure, str):
        if measure not in MEASURES:
            raise ProblemError(
                f"Expected measures among {', '.join(map(repr, MEASURES))}, or functions of the problem, found {measure!r}."
            )
        draws = "seed" in inspect.signature(MEASURES[measure]).parameters
        function = partial(MEASURES[measure], seed=seed) if draws else partial(MEASURES[measure])
        options = ", ".join(f"{key}={value!r}" for key, value in function.keywords.items())
        return measure, f"{measure}({options})", function
    name = str(getattr(getattr(measure, "func", measure), "__name__", type(measure).__name__))
    content = identity(measure, strict=True)
    return name, None if content is None else f"{name} {content}", measure
