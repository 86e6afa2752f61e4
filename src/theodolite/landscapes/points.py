"""A list of points, read by one process or by several, and kept as they are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from theodolite.errors import ProblemError
from theodolite.landscapes.asked import Asked
from theodolite.landscapes.reading import Reading
from theodolite.landscapes.readings import OnPoint, points_of
from theodolite.landscapes.store import PointStore, parsed, written
from theodolite.problem import Problem
from theodolite.problem.ranks import Facts, Ranks


def read_points(
    problem: Problem,
    coordinates: Float[np.ndarray, "g k"],
    directions: Sequence[Float[Tensor, " n"]],
    *,
    center: Reading,
    asked: Asked,
    store: PointStore | None = None,
    among: Ranks | None = None,
    on_point: OnPoint | None = None,
) -> list[Reading]:
    """Readings in the order of the coordinates, to the same bits however many processes share them.

    Args:
        problem: with all its data on every process where several share the points.
        coordinates: of the points.
        directions: their units.
        center: reading at θ.
        asked: what is read.
        store: from which readings are taken, and into which they go.
        among: the processes that share the points.
        on_point: called after every point of this process.
    """
    here = slice(None) if among is None else slice(among.rank, None, among.size)
    share = 1 if among is None else among.size

    def one_part() -> list[Reading]:
        found: list[Reading] = []
        for reading in _each(problem, coordinates[here], directions, center, asked, store):
            found.append(reading)
            if on_point is not None:
                on_point(min(len(found) * share, len(coordinates)), len(coordinates))
        return found

    if among is None or among.size == 1:
        return one_part()
    # Equal on all ranks: how many points, and where the first few lie.
    equal = {"the number of points": float(len(coordinates)), "the points (by a sum over them)": _sum(coordinates)}
    with among.step("points of a landscape", lambda: Facts(equal, {}, {})):
        mine = one_part()
    said = among.texts("\n".join(written((float(index),), reading) for index, reading in enumerate(mine)))
    readings: list[Any] = [None] * len(coordinates)
    for rank, text in enumerate(said):
        for line in filter(None, text.splitlines()):
            (index,), reading = parsed(line)
            readings[rank + share * int(index)] = reading
    return [reading if place.any() else center for place, reading in zip(coordinates, readings, strict=True)]


def sharing(problem: Problem, among: Any) -> Ranks | None:
    """The processes among which points are divided.

    Raises:
        ProblemError: they divide the data already.
    """
    if among is None:
        return None
    if problem.ranks.size > 1:
        raise ProblemError(
            f"Expected a problem with all its data on every rank, to divide points among them, found data divided among "
            f"{problem.ranks.size} ranks. Make it with group=None and the same batches on every rank, or divide the data alone."
        )
    return Ranks(among)


def _each(
    problem: Problem,
    coordinates: Float[np.ndarray, "g k"],
    directions: Sequence[Float[Tensor, " n"]],
    center: Reading,
    asked: Asked,
    store: PointStore | None,
) -> Iterator[Reading]:
    """Those that the store holds from there, the others as they are read."""
    places = [tuple(position) for position in coordinates.tolist()]
    held = [None if store is None else store.get(place) for place in places]
    missing = np.array([reading is None for reading in held], dtype=bool)
    fresh = points_of(
        problem,
        coordinates[missing],
        directions,
        center=center,
        manner=asked.manner,
        also=asked.beside,
        route=asked.route,
    )
    for place, reading in zip(places, held, strict=True):
        if reading is not None:
            yield reading
            continue
        found = next(fresh)
        if store is not None and found is not center:
            store.add(place, found)
        yield found


def _sum(coordinates: Float[np.ndarray, "g k"]) -> float:
    weights = 1 + np.arange(coordinates.size) * 0.6180339887498949 % 1
    return float(coordinates.ravel() @ weights)
