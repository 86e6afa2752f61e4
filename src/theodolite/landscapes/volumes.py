"""Losses over a volume through the parameters."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from theodolite.errors import ProblemError
from theodolite.landscapes.asked import asked
from theodolite.landscapes.batchnorm import BatchNorm
from theodolite.landscapes.directions import Triple, flat_parameters, length, named_triple
from theodolite.landscapes.directions.vectors import PARALLEL
from theodolite.landscapes.engines import settled
from theodolite.landscapes.grids import Span, positions
from theodolite.landscapes.lines import KEEP, of_scalars
from theodolite.landscapes.points import read_points, sharing
from theodolite.landscapes.readings import OnPoint, stderrs
from theodolite.landscapes.remarks import context, kept, remarks
from theodolite.landscapes.routes import Engine
from theodolite.landscapes.scalars import Scalars
from theodolite.landscapes.store import PointStore
from theodolite.operators.grouped import By
from theodolite.problem import Problem
from theodolite.problem.arguments import whole
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
    scalars: Scalars = (),
    groups: By | None = None,
    also: Mapping[str, Problem] | None = None,
    batchnorm: BatchNorm | None = None,
    cap: float = float("inf"),
    engine: Engine = "loop",
    divide: Any = None,
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
        scalars: what else to count on the same forward pass, as for ``plane``, like the next five.
        groups: also the mean loss of each class or domain.
        also: problems of the same model on other data, read at the same points.
        batchnorm: which statistics.
        cap: a point whose first chunk has a larger loss is read no further, and counts as exploded.
        engine: as for ``plane``.
        divide: a process group among whose ranks the points are divided.
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
    whole(seed=seed)
    parameters = flat_parameters(problem)
    named = named_triple(problem, directions, seed=seed)
    cosines = _cosines(named.vectors)
    axes = _axes(points, span)
    manner = asked(problem, scalars=scalars, groups=groups, also=also, batchnorm=batchnorm, cap=cap)
    among = sharing(problem, divide)
    apart = store is not None or among is not None
    manner = settled(problem, manner, named.vectors, axes, engine=engine, apart=apart)
    center = manner.center(problem)
    coordinates = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    shape = coordinates.shape[:-1]
    held = None
    if store is not None:
        rank = 0 if among is None else among.rank
        held = PointStore(store, problem, named.vectors, key=manner.key, rank=rank)
    readings = read_points(
        problem,
        coordinates.reshape(-1, 3),
        named.vectors,
        center=center,
        asked=manner,
        store=held,
        among=among,
        on_point=on_point,
    )
    values, errors = of_scalars(readings, center)
    partial = np.array([reading.partial for reading in readings]).reshape(shape)
    arrays, dropped = kept(named.vectors, below=keep_directions_below)
    return Volume(
        step=step,
        alphas=axes[0],
        betas=axes[1],
        gammas=axes[2],
        losses=np.array([reading.loss for reading in readings]).reshape(shape),
        stderrs=stderrs(readings, center=center).reshape(shape),
        directions=None if arrays is None else (arrays[0], arrays[1], arrays[2]),
        direction_norms=cast(tuple[float, float, float], tuple(map(length, named.vectors))),
        cosines=cosines,
        name=named.name,
        parameter_norm=length(parameters),
        scalars=tuple(values),
        scalar_values=_stacked(values, shape),
        scalar_stderrs=_stacked(errors, shape),
        cap=cap,
        partial=partial if partial.any() else None,
        cost=named.cost + manner.cost(readings, center, seconds=time.perf_counter() - started),
        seed=seed if named.random else None,
        notes=(*named.notes, *remarks(readings, center), *manner.route.notes, *dropped),
        context=context(problem, name=named.name, center=center) | manner.context(),
    )


def _stacked(values: Mapping[str, np.ndarray], shape: tuple[int, ...]) -> Float[np.ndarray, "s a b c"]:
    return np.array(list(values.values()), dtype=np.float64).reshape(len(values), *shape)


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
    counts = tuple(points) if isinstance(points, tuple | list) else (points,) * 3
    several = isinstance(span, tuple | list) and len(span) > 0 and isinstance(span[0], tuple | list)
    spans: tuple[Any, ...] = tuple(span) if several else (span,) * 3
    if len(counts) != 3 or len(spans) != 3:
        raise ProblemError(
            f"Expected one number of points and one span, or three of each, found {points!r} and {span!r}."
        )
    return [positions(count, each) for count, each in zip(counts, spans, strict=True)]
