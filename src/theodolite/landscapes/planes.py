"""Losses over a plane through the parameters."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from functools import partial
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from theodolite.landscapes import trajectories
from theodolite.landscapes.directions import Named, Pair, as_direction, cosine, flat_parameters, length, named_pair
from theodolite.landscapes.grids import Spans, both
from theodolite.landscapes.lines import KEEP
from theodolite.landscapes.readings import OnPoint, Reading, at_parameters, read, read_grid, stderrs
from theodolite.landscapes.remarks import context, cost, kept, remarks
from theodolite.landscapes.store import PointStore
from theodolite.landscapes.surfaces import Axes, Cells, surface
from theodolite.landscapes.trajectories import Projection
from theodolite.problem import Problem
from theodolite.problem.arrays import to_numpy
from theodolite.records import Plane, Snapshot


def plane(
    problem: Problem,
    *,
    directions: Literal["trajectory"] | Pair = "filter",
    points: int | tuple[int, int] = 51,
    span: Spans | None = None,
    seed: int = 0,
    trajectory: Sequence[Snapshot] = (),
    interpolate: float | None = None,
    store: str | os.PathLike[str] | None = None,
    keep_directions_below: int = KEEP,
    on_point: OnPoint | None = None,
    step: int | None = None,
) -> Plane:
    """Losses L(θ + α·d₁ + β·d₂) on the same samples at every point.

    The model is not written to: every point starts from θ, in place of the parameters. 0 is among the positions of an
    axis where its span contains it, and the loss of the centre is that of θ, bit for bit. BatchNorm uses the statistics
    that the mode of the problem says, stored ones by default, also at the checkpoints of a trajectory.

    Cost: one forward pass a point and one a checkpoint, one more where the grid does not contain the centre. With
    ``interpolate``, an eighth of 51 × 51 points on a smooth surface, up to all on a rugged one.

    Args:
        problem: what is surveyed.
        directions: ``"filter"`` (Gaussian with the norms of the model's filters; biases and norm weights stay) or
            ``"gaussian"``, the second made orthogonal to the first; ``"trajectory"``, the unit principal directions of
            the trajectory; another name that ``directions.named_pair`` knows (``"hessian"``, …); or two, each a name or a vector of
            n numbers in the order of ``named_parameters()``, used as they are; or ``{name: vector, name: vector}``.
        points: number of positions on each axis, or on both, evenly spaced on each side of 0.
        span: first and last position on both axes, in units of the directions, or a pair of those. By default (−1, 1),
            for ``"trajectory"`` what holds the path with a margin of 15 % of its extent.
        seed: of random directions; the first is that of ``line``.
        trajectory: checkpoints whose path is laid over the plane, whatever its directions; ``"trajectory"`` needs three.
        interpolate: the largest error on held-out cells, as a share of the range of the losses, at which the cells between
            evaluated ones are taken from a spline; 0.001 cannot be seen in a picture. None evaluates every cell.
        store: folder in which every reading is kept as it is taken. The same call on the same problem takes from it what is
            there: an interrupted plane resumes, to the same bytes.
        keep_directions_below: bytes up to which the record keeps both directions; 256 MiB by default.
        on_point: called after every point of the grid with the number done and the number of all.
        step: optimiser step, kept in the record.

    Returns:
        Positions, losses, standard errors of their rise above the centre from the data, and the path.

    Raises:
        ProblemError: directions of another length, of zeros or parallel, a span that does not increase, too few points,
            snapshots that are missing, too few or of another size.
        NonFiniteError: parameters or directions are not finite. Losses that are not finite are readings.

    Example:
        >>> from torch import nn
        >>> model = nn.Linear(3, 2)
        >>> problem = Problem(model, nn.MSELoss(), [(torch.randn(8, 3), torch.randn(8, 2)) for _ in range(4)])
        >>> surveyed = plane(problem, points=(5, 3), span=((-1, 1), (0, 2)))
        >>> surveyed.center == problem.loss()
        True

    References:
        Li, Xu, Taylor, Studer & Goldstein, "Visualizing the loss landscape of neural nets" (2018).
    """
    started = time.perf_counter()
    parameters = flat_parameters(problem)
    snapshots, lost = _finite(trajectory, parameters)
    named = _named(problem, directions, seed, snapshots, parameters)
    (first, second), name = named.vectors, named.name
    angle = cosine(first, second)
    path = _path(snapshots, parameters, first, second)
    alphas, betas = both(points, _spans(span, name, path))
    center = read(problem, problem.point())
    kept_points = None if store is None else PointStore(store, problem, (first, second))
    evaluate = partial(_at_cells, problem, (alphas, betas), (first, second), center, kept_points, on_point)
    found = surface(evaluate, alphas, betas, tol=interpolate, seed=seed)
    readings = list(found.readings.values())
    checkpoints = [_read_snapshot(problem, snapshot) for snapshot in snapshots]
    stored, dropped = kept((first, second), below=keep_directions_below)
    return Plane(
        step=step,
        alphas=alphas,
        betas=betas,
        losses=found.losses,
        stderrs=found.spread(stderrs(readings, center=center)),
        evaluated=None if found.evaluated.all() else found.evaluated,
        interpolation_error=found.error,
        interpolation_log_error=found.log_error,
        directions=None if stored is None else (stored[0], stored[1]),
        direction_norms=(length(first), length(second)),
        cosine=angle,
        name=name,
        parameter_norm=length(parameters),
        path=None if path is None else path.coordinates,
        path_steps=_steps(snapshots),
        path_losses=None if path is None else np.array([reading.loss for reading in checkpoints]),
        path_distances=None if path is None else path.distances,
        explained=None if path is None else path.explained,
        cost=named.cost + cost([*readings, center, *checkpoints], started=started),
        seed=seed if named.random else None,
        notes=(*named.notes, *remarks(readings, center), *lost, *_statistics(problem, path), *dropped),
        context=context(problem, name=name, center=center),
    )


def _at_cells(
    problem: Problem,
    axes: Axes,
    directions: tuple[Tensor, Tensor],
    center: Reading,
    store: PointStore | None,
    on_point: OnPoint | None,
    cells: Cells,
) -> list[Reading]:
    """Readings at rows and columns of a grid, those that the store holds from there."""
    coordinates = np.stack([axis[index] for axis, index in zip(axes, cells.T, strict=True)], axis=-1)
    if store is None:
        return read_grid(problem, coordinates, directions, center=center, on_point=on_point)
    readings = []
    for done, position in enumerate(coordinates, start=1):
        place = tuple(position.tolist())
        held = store.get(place)
        if held is None:
            (held,) = read_grid(problem, position[None], directions, center=center)
            if held is not center:
                store.add(place, held)
        readings.append(held)
        if on_point is not None:
            on_point(done, len(coordinates))
    return readings


def _finite(
    snapshots: Sequence[Snapshot], parameters: Float[Tensor, " n"]
) -> tuple[tuple[Snapshot, ...], tuple[str, ...]]:
    """The checkpoints from before training diverged."""
    trajectories.check(snapshots, size=parameters.numel())
    kept = tuple(snapshot for snapshot in snapshots if np.isfinite(snapshot.parameters).all())
    lost = len(snapshots) - len(kept)
    return kept, (f"{lost} of {len(snapshots)} snapshots are not finite and not on the path",) if lost else ()


def _named(
    problem: Problem,
    directions: Literal["trajectory"] | Pair,
    seed: int,
    snapshots: Sequence[Snapshot],
    parameters: Float[Tensor, " n"],
) -> Named:
    if not (isinstance(directions, str) and directions == "trajectory"):
        return named_pair(problem, directions, seed=seed)
    principal = trajectories.trajectory(snapshots, center=to_numpy(parameters)).directions
    return Named(vectors=tuple(as_direction(direction, problem) for direction in principal), name="trajectory")


def _path(
    snapshots: Sequence[Snapshot], parameters: Float[Tensor, " n"], first: Tensor, second: Tensor
) -> Projection | None:
    if not snapshots:
        return None
    return trajectories.project(snapshots, center=to_numpy(parameters), directions=(to_numpy(first), to_numpy(second)))


def _spans(span: Spans | None, name: str, path: Projection | None) -> Spans:
    if span is not None:
        return span
    return path.spans() if name == "trajectory" and path is not None else (-1.0, 1.0)


def _read_snapshot(problem: Problem, snapshot: Snapshot) -> Reading:
    flat = torch.from_numpy(np.array(snapshot.parameters)).to(problem.device, problem.dtype)
    return read(problem, at_parameters(problem, flat))


def _steps(snapshots: Sequence[Snapshot]) -> np.ndarray | None:
    steps = [snapshot.step for snapshot in snapshots if snapshot.step is not None]
    return np.array(steps, dtype=np.int64) if steps and len(steps) == len(snapshots) else None


def _statistics(problem: Problem, path: Projection | None) -> tuple[str, ...]:
    if path is None or problem.batchnorm is None or problem.batchnorm == "batch statistics":
        return ()
    return ("the path's losses use the BatchNorm statistics of the centre: a snapshot holds parameters alone",)
