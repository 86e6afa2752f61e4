"""The loss at many points, each read from θ afresh on the same samples, and its error from the data."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
from jaxtyping import Float
from torch import Tensor

from theodolite.landscapes.prefix import Prefix
from theodolite.landscapes.reading import Reading as Reading
from theodolite.landscapes.routes import Route
from theodolite.landscapes.sweep import AS_IT_IS, Manner, Move, Write, assign, sweep
from theodolite.problem import Point, Problem
from theodolite.records.jackknife import jackknife_stderr

OnPoint = Callable[[int, int], None]
Beside = Mapping[str, tuple[Problem, Manner]]
# Points share one call of the model while they take less than this together: its entry costs as much as a small forward pass,
# and progress is told, and readings are kept, between calls.
BLOCK_SECONDS, MOST = 0.2, 64


def read(problem: Problem, point: Point, *, manner: Manner = AS_IT_IS) -> Reading:
    """The loss at a point.

    Cost: one forward pass.
    """
    return sweep(problem, [partial(assign, values=[leaf.detach() for leaf in point.leaves])], manner=manner)[0]


def read_grid(
    problem: Problem,
    coordinates: Float[np.ndarray, "g k"],
    directions: Sequence[Float[Tensor, " n"]],
    *,
    center: Reading,
    on_point: OnPoint | None = None,
    manner: Manner = AS_IT_IS,
    also: Beside | None = None,
) -> list[Reading]:
    """The loss at θ + Σ coordinates · directions, one reading a row of coordinates, in their order.

    Cost: one forward pass a row; none for a row of zeros, which is the centre itself, bit for bit.

    Args:
        problem: what is evaluated; its model is not written to.
        coordinates: a list of points rather than a grid, so that they can be cut, divided and resumed.
        directions: k of them.
        center: reading at θ.
        on_point: called after every point with the number done and the number of all.
        manner: how points are read.
        also: problems of the same model on other data, and how to read them, whose readings stand among the scalars.
    """
    readings = []
    for reading in points_of(problem, coordinates, directions, center=center, manner=manner, also=also):
        readings.append(reading)
        if on_point is not None:
            on_point(len(readings), len(coordinates))
    return readings


def points_of(
    problem: Problem,
    coordinates: Float[np.ndarray, "g k"],
    directions: Sequence[Float[Tensor, " n"]],
    *,
    center: Reading,
    manner: Manner = AS_IT_IS,
    also: Beside | None = None,
    route: Route | None = None,
) -> Iterator[Reading]:
    """As ``read_grid``, each reading as soon as its block is done, by the loop or another route."""
    route = Route() if route is None else route
    base = [leaf.detach() for leaf in problem.point().leaves]
    axes = [problem.layout.unflatten(direction) for direction in directions]
    moving = [any(bool(part.any()) for part in parts) for parts in zip(*axes, strict=True)]
    prefixes: list[Prefix | None] = [None] * (1 + len(also or {}))
    if problem.point().constants or not all(moving):  # one for each problem: their chunks are others
        prefixes = [Prefix(moving, memory=problem.memory // 4) for _ in range(1 + len(also or {}))]
    size = start = 0
    while start < len(coordinates):
        # By vmap always as many, so that the bits do not depend on how fast the machine is.
        block = coordinates[start : start + (route.width if route.engine == "vmap" else max(size, 1))]
        places = [index for index, position in enumerate(block) if position.any()]
        moves = [Move(base, axes, block[index].tolist()) for index in places]
        begin = time.perf_counter()
        read_here = read_moves(problem, moves, route, manner=manner, also=also, prefixes=prefixes)
        found = dict(zip(places, read_here, strict=True))
        if places and not manner.quantities.gradient:  # whose rows would pile up
            size = fitting(problem, (time.perf_counter() - begin) / len(places))
        start += len(block)
        yield from (found.get(index, center) for index in range(len(block)))


def read_all(
    problem: Problem, writes: Sequence[Write], *, manner: Manner = AS_IT_IS, also: Beside | None = None
) -> list[Reading]:
    """Readings of a problem with those of others on other data among its scalars, under their names."""
    return _beside(sweep(problem, writes, manner=manner), also, lambda other, how, _: sweep(other, writes, manner=how))


def read_moves(
    problem: Problem,
    moves: Sequence[Move],
    route: Route,
    *,
    manner: Manner,
    also: Beside | None,
    prefixes: Sequence[Prefix | None],
) -> list[Reading]:
    """As ``read_all``, by a route, with what earlier calls kept."""
    if not moves:
        return []
    first, *others = prefixes
    return _beside(
        route.read(problem, moves, manner, first),
        also,
        lambda other, how, place: route.read(other, moves, how, others[place]),
    )


def fitting(problem: Problem, seconds: float) -> int:
    """How many points of so many seconds share a call; the same on all ranks, which enter it together."""
    return MOST if problem.ranks.size > 1 else int(min(max(BLOCK_SECONDS / max(seconds, 1e-9), 1), MOST))


def at_parameters(problem: Problem, flat: Float[Tensor, " n"]) -> Point:
    """The point with other values of the selected parameters."""
    leaves = problem.point().leaves
    parts = problem.layout.unflatten(flat)
    return problem.displaced(tuple(part.to(leaf.dtype) for part, leaf in zip(parts, leaves, strict=True)))


def stderrs(readings: Sequence[Reading], *, center: Reading) -> Float[np.ndarray, " g"]:
    """Standard errors of loss − loss at the centre as estimates for what the data are a sample of.

    The jackknife over chunks of unequal weight, of the rise: the same chunk is left out at both places.

    Args:
        readings: at the points.
        center: at θ, on the same chunks.

    Returns:
        One for each reading: 0 at the centre, NaN where a loss is not finite or the data are a single chunk, and where a
        point was read no further than its first chunk.

    References:
        Busing, Meijer & van der Leeden, "Delete-m jackknife for unequal m" (1999).
    """
    unknown = np.full(len(center.weights), np.nan)
    with np.errstate(invalid="ignore"):  # infinity − infinity is a reading, NaN
        left_out = np.stack(
            [
                reading.left_out - center.left_out if len(reading.weights) == len(center.weights) else unknown
                for reading in readings
            ],
            axis=1,
        )
        whole = np.array([reading.loss - center.loss for reading in readings])
    return jackknife_stderr(left_out, whole=whole, weights=center.weights)


def _beside(
    readings: list[Reading], also: Beside | None, read_other: Callable[[Problem, Manner, int], list[Reading]]
) -> list[Reading]:
    for place, (name, (other, how)) in enumerate((also or {}).items()):
        there = read_other(other, how, place)
        readings = [_joined(reading, name, found) for reading, found in zip(readings, there, strict=True)]
    return readings


def _joined(reading: Reading, name: str, other: Reading) -> Reading:
    scalars = {f"{name} loss": other} | {f"{name} {each}": found for each, found in other.scalars.items()}
    return Reading(
        reading.loss,
        reading.totals,
        reading.weights,
        reading.divisor,
        {**reading.scalars, **scalars},
        reading.partial,
    )
