"""As many samples as a stated error from the data demands."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from typing import Literal, final

from theodolite.errors import ProblemError
from theodolite.problem import Problem
from theodolite.problem.arguments import real
from theodolite.records import Cost

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
        whole: samples of all the data.
        tol: relative error that was asked for, None where a number of samples was.
        asked: that number, None where it was found.
        relative: error that the last measurement on the way found on this part, NaN where a number of samples was asked for.
    """

    problem: Problem
    cost: Cost
    whole: int
    tol: float | None = None
    asked: int | None = None
    relative: float = math.nan

    def note(self, relative: float) -> tuple[str, ...]:
        """What was settled, in words.

        Args:
            relative: error from the data over the value of the record that the part gave. The measurements on the way are
                rougher, and a note of theirs would differ from what the record prints.
        """
        taken = self.problem.samples
        if self.tol is None:
            few = self.asked is not None and self.asked > self.whole
            return (
                (f"samples={self.asked:,} was asked for: all {self.whole:,} that there are were taken",) if few else ()
            )
        found = f"{taken:,} of {self.whole:,} samples: relative error from the data {relative:.2g}"
        if relative <= self.tol:
            return (f"{found}, at most the {self.tol:.2g} asked for",)
        why = "there are no more samples" if taken >= self.whole else "a rougher measurement had promised it"
        return (f"{found}, NOT the {self.tol:.2g} asked for: {why}",)


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
        asked = _counted(samples)
        return Part(problem.take(asked, seed=seed), Cost(), problem.samples, asked=asked)
    real(data_tol=tol)
    if not tol > 0:
        raise ProblemError(f"Expected data_tol to be a positive relative error, found {tol!r}.")
    spent: list[tuple[int, Cost]] = []
    for drawn in problem.growing(start=FEWEST, seed=seed):
        part = _cut(drawn)
        found = precision(part)
        spent.append((part.samples, found.cost))
        if found.relative <= tol:
            break
    return Part(part, _in_passes_over(part, spent), problem.samples, tol=tol, relative=found.relative)


def _counted(samples: object) -> int:
    if isinstance(samples, bool) or not isinstance(samples, Integral):
        raise ProblemError(f"Expected samples to be a whole number, 'auto' or None for all, found {samples!r}.")
    return int(samples)


def relative_error(value: float, stderr: float) -> float:
    """Error over value; infinite where one of them is not known, or the value is 0."""
    relative = stderr / abs(value) if value else math.nan
    return relative if math.isfinite(relative) else math.inf


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
