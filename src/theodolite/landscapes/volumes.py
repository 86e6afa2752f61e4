"""Losses over a volume through the parameters."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from theodolite.errors import ProblemError
from theodolite.landscapes.directions import Triple, flat_parameters, length, named_triple
from theodolite.landscapes.directions.vectors import PARALLEL
from theodolite.landscapes.grids import Span, positions
from theodolite.landscapes.lines import KEEP
from theodolite.landscapes.readings import OnPoint, Reading, points_of, read, stderrs
from theodolite.landscapes.remarks import context, cost, kept, remarks
from theodolite.landscapes.store import PointStore
from theodolite.problem import Problem
from theodolite.problem.arrays import to_numpy
from theodolite.records import Volume

Three = tuple[int, int, int]


def volume(
    problem: Problem,
    *,
    directions: Triple = "filter",
    points: int | Three = 13,
    span: Span | tuple[Span, Span, Span] = (-1.0, 1.0),
    seed: int = 0,
    store: str | os.PathLike[str] | None = None,
    keep_directions_below: int = KEEP,
    on_point: OnPoint | None = None,
    step: int | None = None,
) -> Volume:
    """Losses L(θ + α·d₁ + β·d₂ + γ·d₃) on the same samples at every point.

    A third direction tells a valley from a cut through a valley. The model is not written to, and the loss of the centre is
    that of θ, bit for bit, as for ``plane``.

    Cost: one forward pass a point, 2,197 by default; one more where the grid does not contain the centre; what measured
    directions cost.

    Args:
        problem: what is surveyed.
        directions: a name that ``directions.named_triple`` knows (``"filter"``, ``"gaussian"``, ``"hessian"``, …), each made
            orthogonal to those before it; three, each a name or a vector of n numbers, used as they are; or three named vectors.
        points: number of positions on each axis, or on all three.
        span: first and last position on all axes, in units of the directions, or three of those.
        seed: of random directions or of Lanczos; the first two are those of ``plane``.
        store: folder in which every reading is kept as it is taken, from which the same call resumes to the same bytes.
        keep_directions_below: bytes up to which the record keeps the directions; 256 MiB by default.
        on_point: called after every point with the number done and the number of all.
        step: optimiser step, kept in the record.

    Returns:
        Positions, losses, and standard errors of their rise above the centre from the data.

    Raises:
        ProblemError: directions of another length, of zeros or that span less than a volume, a span that does not increase, too
            few points.
        NonFiniteError: parameters or directions are not finite. Losses that are not finite are readings.

    Example:
        >>> from torch import nn
        >>> model = nn.Linear(3, 2)
        >>> problem = Problem(model, nn.MSELoss(), [(torch.randn(8, 3), torch.randn(8, 2)) for _ in range(4)])
        >>> volume(problem, points=3).losses.shape
        (3, 3, 3)
    """
    started = time.perf_counter()
    parameters = flat_parameters(problem)
    named = named_triple(problem, directions, seed=seed)
    cosines = _cosines(named.vectors)
    axes = _axes(points, span)
    center = read(problem, problem.point())
    coordinates = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    held = None if store is None else PointStore(store, problem, named.vectors)
    readings = _readings(problem, coordinates.reshape(-1, 3), named.vectors, center, held, on_point)
    arrays, dropped = kept(named.vectors, below=keep_directions_below)
    return Volume(
        step=step,
        alphas=axes[0],
        betas=axes[1],
        gammas=axes[2],
        losses=np.array([reading.loss for reading in readings]).reshape(coordinates.shape[:-1]),
        stderrs=stderrs(readings, center=center).reshape(coordinates.shape[:-1]),
        directions=None if arrays is None else (arrays[0], arrays[1], arrays[2]),
        direction_norms=cast(tuple[float, float, float], tuple(map(length, named.vectors))),
        cosines=cosines,
        name=named.name,
        parameter_norm=length(parameters),
        cost=named.cost + cost([*readings, center], started=started),
        seed=seed if named.random else None,
        notes=(*named.notes, *remarks(readings, center), *dropped),
        context=context(problem, name=named.name, center=center),
    )


def _cosines(directions: Sequence[Float[Tensor, " n"]]) -> Float[np.ndarray, "3 3"]:
    """Cosines between all directions, in double precision.

    Raises:
        ProblemError: they lie in a plane.
    """
    units = torch.stack([direction.double() / length(direction) for direction in directions])
    smallest = float(torch.linalg.svdvals(units)[-1])
    if len(units[0]) < len(units) or smallest < PARALLEL:
        raise ProblemError(
            f"Expected three directions that span a volume, found them in a plane (smallest singular value of the unit vectors "
            f"{smallest:.3g}). Use plane(), or give another third direction."
        )
    found = to_numpy(units @ units.T)
    np.fill_diagonal(found, 1.0)
    return found


def _axes(points: int | Three, span: Span | tuple[Span, Span, Span]) -> list[Float[np.ndarray, " _"]]:
    counts = points if isinstance(points, tuple) else (points,) * 3
    spans = span if isinstance(span[0], tuple) else (span,) * 3
    if len(counts) != 3 or len(spans) != 3:
        raise ProblemError(
            f"Expected one number of points and one span, or three of each, found {points!r} and {span!r}."
        )
    return [positions(count, each) for count, each in zip(counts, spans, strict=True)]


def _readings(
    problem: Problem,
    coordinates: Float[np.ndarray, "g 3"],
    directions: Sequence[Float[Tensor, " n"]],
    center: Reading,
    store: PointStore | None,
    on_point: OnPoint | None,
) -> list[Reading]:
    """Readings at all points, those that the store holds from there."""
    places = [tuple(position) for position in coordinates.tolist()]
    readings = [None if store is None else store.get(place) for place in places]
    missing = [index for index, reading in enumerate(readings) if reading is None]
    done = len(places) - len(missing)
    for index, reading in zip(
        missing, points_of(problem, coordinates[missing], directions, center=center), strict=True
    ):
        readings[index] = reading
        if store is not None and reading is not center:
            store.add(places[index], reading)
        done += 1
        if on_point is not None:
            on_point(done, len(places))
    return [reading for reading in readings if reading is not None]
