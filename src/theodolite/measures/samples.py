"""As many samples as a stated error from the data demands."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, final

from theodolite.errors import ProblemError
from theodolite.problem import Problem
from theodolite.records import Cost, Trace

FEWEST = 64
CHUNKS = 16  # of which the error from the data is estimated, with a relative error of 1/√30 = 18 %

Samples = int | Literal["auto"] | None


@final
@dataclass(frozen=True)
class Part:
    """The part of the data that was settled on.

    Args:
        problem: on that part.
        cost: what settling took, in passes over that part.
        notes: what was settled, in words.
    """

    problem: Problem
    cost: Cost
    notes: tuple[str, ...]


@final
@dataclass(frozen=True)
class Precision:
    """How far a quick measurement of the asked quantity can be trusted.

    Args:
        relative: error from the data over the value.
        cost: of the measurement, in passes over its own samples.
    """

    relative: float
    cost: Cost


def enough(
    problem: Problem,
    samples: int | str,
    precision: Callable[[Problem], Precision],
    *,
    tol: float,
    seed: int,
) -> Part:
    """So many samples of the problem's data, or as many as bring the error from the data below a tolerance.

    Samples are drawn nested in one random order and doubled until the error is small enough or all are taken; as the error
    falls with the square root of their number, the measurements on the way cost no more than the last one.

    Args:
        problem: the whole.
        samples: how many, or ``"auto"``.
        precision: a quick measurement on a part.
        tol: relative error.
        seed: of the order.

    Raises:
        ProblemError: samples or tol make no sense.
    """
    if samples != "auto":
        if isinstance(samples, str):
            raise ProblemError(f"Expected samples to be a number, 'auto' or None for all, found {samples!r}.")
        return Part(problem.take(samples, seed=seed), Cost(), ())
    if not tol > 0:
        raise ProblemError(f"Expected data_tol to be a positive relative error, found {tol!r}.")
    spent: list[tuple[int, Cost]] = []
    for drawn in problem.growing(start=FEWEST, seed=seed):
        part = _cut(drawn)
        found = precision(part)
        spent.append((part.samples, found.cost))
        reached = f"{part.samples:,} of {problem.samples:,} samples: relative error from the data {found.relative:.2g}"
        if found.relative <= tol:
            return Part(part, _in_passes_over(part, spent), (f"{reached}, at most the {tol:.2g} asked for",))
    note = f"{reached}, NOT the {tol:.2g} asked for: there are no more samples"
    return Part(part, _in_passes_over(part, spent), (note,))


def precision_of_trace(found: Trace) -> Precision:
    """Of a trace by Hutchinson's method."""
    relative = found.data_stderr / abs(found.value) if found.value else math.nan
    return Precision(relative if math.isfinite(relative) else math.inf, found.cost)


def _cut(part: Problem) -> Problem:
    """The same in enough chunks for an error from the data."""
    size = max(1, part.samples // CHUNKS)
    if part.coupled or (part.microbatch is not None and part.microbatch <= size):
        return part
    return part.replace(microbatch=size)


def _in_passes_over(part: Problem, spent: list[tuple[int, Cost]]) -> Cost:
    total = Cost()
    for samples, cost in spent:
        share = samples / part.samples
        total += Cost(products=cost.products * share, gradients=cost.gradients * share, seconds=cost.seconds)
    return total
