"""Problems on parts of a problem's data, which weigh what they weigh in the whole."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from theodolite.errors import DataError
from theodolite.problem.data import Batches
from theodolite.problem.subsets import Drawn, Rows, first_batches, first_samples

if TYPE_CHECKING:
    from theodolite.problem.problem import Problem

Choice = Callable[[list[int]], Sequence[Sequence[Rows]]]


def parts_of(problem: Problem, choose: Choice) -> list[Problem]:
    """The same problem on parts of its data; certificate and checks carry over.

    Cost: one walk over the data without the model, and a copy of what is chosen.

    Args:
        problem: the whole.
        choose: from the sizes of the batches to the rows of each batch that belong to each part, on this rank.
    """
    whole = problem.samples
    with problem.together("dividing the data"):
        sizes = [problem.objective.samples(batch) for batch in problem.batches]
        parts = [_on(problem, sizes, rows) for rows in choose(sizes)]
    counts = problem.ranks.sum(torch.tensor([part.samples_here for part in parts], dtype=torch.float64))
    for part, count in zip(parts, counts.tolist(), strict=True):
        part._samples, part._share = int(count), problem._share * count / whole
        part._drawn_from = problem._drawn_from or whole
    return parts


def first_of(problem: Problem, samples: int, *, seed: int) -> Choice:
    """The samples that come first in a random order: this rank's share of them, rounded up."""
    return lambda sizes: _first_and_rest(problem, sizes, samples, seed=seed)[:1]


def halves_of(problem: Problem, *, seed: int) -> Choice:
    """The first half of a random order, and the rest.

    Raises:
        DataError: there is nothing to halve.
    """

    def choose(sizes: list[int]) -> Sequence[Sequence[Rows]]:
        if (len(sizes) if problem.coupled else sum(sizes)) < 2:
            raise DataError(
                f"Expected two samples or more to halve, found {sum(sizes)}"
                + (" in one batch whose samples are coupled. Use smaller batches." if problem.coupled else ".")
            )
        return _first_and_rest(problem, sizes, -(-problem.samples // 2), seed=seed)

    return choose


def _first_and_rest(problem: Problem, sizes: list[int], samples: int, *, seed: int) -> tuple[list[Rows], list[Rows]]:
    here = -(-samples * sum(sizes) // problem.samples)
    return (first_batches if problem.coupled else first_samples)(sizes, count=here, seed=seed + problem.ranks.rank)


def _on(problem: Problem, sizes: list[int], chosen: Sequence[Rows]) -> Problem:
    other = copy.copy(problem)
    drawn = Drawn(problem.batches, sizes, chosen)
    other.batches = Batches(list(drawn) if problem.batches.in_memory else drawn)
    other._samples_here = sum(map(len, chosen))
    other._depth = 0
    return other
