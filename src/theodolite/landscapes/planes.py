"""Losses over a plane through the parameters."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from theodolite.errors import ProblemError
from theodolite.landscapes import checkpoints, trajectories
from theodolite.landscapes.asked import Asked, asked
from theodolite.landscapes.batchnorm import BatchNorm
from theodolite.landscapes.checkpoints import Checkpoints
from theodolite.landscapes.directions import Named, Pair, as_direction, cosine, flat_parameters, length, named_pair
from theodolite.landscapes.engines import settled
from theodolite.landscapes.extremes import coarse, extremes
from theodolite.landscapes.grids import Spans, both
from theodolite.landscapes.lines import KEEP, eigenvalue_note, of_scalars
from theodolite.landscapes.points import read_points, sharing
from theodolite.landscapes.quadratics import quadratic_model, refuse_other_statistics
from theodolite.landscapes.reading import Reading
from theodolite.landscapes.readings import OnPoint, at_parameters, read, stderrs
from theodolite.landscapes.rechecks import rechecked
from theodolite.landscapes.remarks import context, kept, remarks
from theodolite.landscapes.routes import Engine
from theodolite.landscapes.scalars import Scalars
from theodolite.landscapes.store import PointStore
from theodolite.landscapes.surfaces import Axes, Cells, Surface, surface
from theodolite.landscapes.trajectories import Projection
from theodolite.operators.grouped import By
from theodolite.problem import Problem
from theodolite.problem.arguments import optional, real, whole
from theodolite.problem.arrays import to_numpy
from theodolite.problem.ranks import Ranks
from theodolite.records import Cost, Plane, Snapshot


def plane(
    problem: Problem,
    *,
    directions: Literal["trajectory"] | Pair = "filter",
    points: int | tuple[int, int] = 51,
    span: Spans | None = None,
    seed: int = 0,
    trajectory: Checkpoints = (),
    interpolate: float | None = None,
    scalars: Scalars = (),
    groups: By | None = None,
    also: Mapping[str, Problem] | None = None,
    batchnorm: BatchNorm | None = None,
    cap: float = float("inf"),
    autocast: torch.dtype | None = None,
    engine: Engine = "loop",
    quadratic: bool = False,
    eigenvalues: int = 0,
    divide: Any = None,
    store: str | os.PathLike[str] | None = None,
    keep_directions_below: int = KEEP,
    on_point: OnPoint | None = None,
    step: int | None = None,
) -> Plane:
    """Losses L(θ + α·d₁ + β·d₂) on the same samples at every point.

    The model is not written to: every point starts from θ, in place of the parameters. 0 is among the positions of an
    axis where its span contains it, and the loss of the centre is that of θ, bit for bit.

    Cost: one forward pass a point and one a checkpoint, one more where the grid does not contain the centre. With
    ``interpolate``, a thirteenth of 51 × 51 points on a smooth surface, up to all on a rugged one.

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
        trajectory: checkpoints whose path is laid over the plane, whatever its directions, in any form that ``snapshots`` takes,
            of which the surveyed parameters alone are read (``follow`` reads all); ``"trajectory"`` needs three.
        interpolate: the largest error on held-out cells, as a share of the range of the losses, at which the cells between
            evaluated ones are taken from a spline; 0.001 cannot be seen in a picture. None evaluates every cell.
        scalars: what else to count on the same forward pass: ``"accuracy"``, ``"gradient norm"`` (a backward pass more), or a
            mapping of names to functions of (outputs, targets) that return a number for each sample or a pair (total, weight).
        groups: also the mean loss of each class (``"targets"``) or domain (labels, or a function of a batch): ``"loss of …"``.
        also: problems of the same model on other data, as ``{"test": problem}``, read at the same points: ``"test loss"``, ….
        batchnorm: ``"stored"`` statistics, those of each ``"batch"``, or ``"recalibrated"`` on the data at every point, which takes
            a second pass; also at the checkpoints of a trajectory. None for what the mode of the problem says, stored ones by
            default.
        cap: a point whose first chunk has a larger loss is read no further, and counts as exploded.
        autocast: ``torch.bfloat16`` to read points in reduced precision where that is faster; the centre, its neighbours and nine
            other points are read without, which gives the error.
        engine: ``"loop"``, ``"vmap"``, ``"linear"`` or ``"auto"``, as for ``line``; with ``store`` or ``divide`` the loop, so
            that readings are the same bytes whatever shares a call, and ``"vmap"`` and ``"linear"`` are refused.
        quadratic: also the quadratic model at the centre, and the distance up to which it holds.
        eigenvalues: positions on each axis at which λ_max and λ_min of the Hessian are found, 20 to 40 products each.
        divide: a process group among whose ranks the points are divided, ``"auto"`` for the default one; the problem holds all
            its data on every rank (``group=None``), and all get the whole plane, to the bits of one process.
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
    whole(seed=seed, eigenvalues=eigenvalues)
    _refuse_tolerance(interpolate)
    parameters = flat_parameters(problem)
    snapshots, lost = _finite(_given(problem, trajectory), parameters)
    named = _named(problem, directions, seed, snapshots, parameters)
    (first, second), name = named.vectors, named.name
    angle = cosine(first, second)
    path = _path(snapshots, parameters, first, second)
    alphas, betas = both(points, _spans(span, name, path))
    manner = asked(problem, scalars=scalars, groups=groups, also=also, batchnorm=batchnorm, cap=cap, autocast=autocast)
    if eigenvalues:
        refuse_other_statistics(problem, manner, option=f"eigenvalues={eigenvalues}")
    among, pair = sharing(problem, divide), (first, second)
    apart = store is not None or among is not None
    manner = settled(problem, manner, pair, (alphas, betas), engine=engine, apart=apart)
    center = manner.center(problem)
    kept_points = None
    if store is not None:
        rank = 0 if among is None else among.rank
        kept_points = PointStore(store, problem, pair, key=manner.key, rank=rank)
    evaluate = partial(_at_cells, problem, (alphas, betas), pair, center, manner, kept_points, among, on_point)
    found = surface(evaluate, alphas, betas, tol=interpolate, seed=seed)
    found, missed = _rechecked(problem, found, (alphas, betas), pair, center, manner)
    readings = list(found.readings.values())
    fields = _of_scalars(found, center)
    extra, of_extra, said = _beside(problem, (alphas, betas), pair, center, manner, quadratic, eigenvalues, seed)
    for each in ("scalars", "scalar_stderrs"):
        fields[each] |= extra.pop(each)
    along = [_read_snapshot(problem, snapshot, manner) for snapshot in snapshots]
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
        path_losses=None if path is None else np.array([reading.loss for reading in along]),
        path_distances=None if path is None else path.distances,
        explained=None if path is None else path.explained,
        cap=cap,
        partial=_partial(found),
        precision_error=missed,
        cost=named.cost + of_extra + manner.cost([*readings, *along], center, seconds=time.perf_counter() - started),
        seed=seed if named.random else None,
        notes=(
            *named.notes,
            *remarks(readings, center),
            *manner.route.notes,
            *lost,
            *_statistics(problem, path, manner),
            *said,
            *dropped,
        ),
        context=context(problem, name=name, center=center) | manner.context(),
        **fields,
        **extra,
    )


def _at_cells(
    problem: Problem,
    axes: Axes,
    directions: tuple[Tensor, Tensor],
    center: Reading,
    manner: Asked,
    store: PointStore | None,
    among: Ranks | None,
    on_point: OnPoint | None,
    cells: Cells,
) -> list[Reading]:
    """Readings at rows and columns of a grid."""
    return read_points(
        problem,
        _coordinates(axes, cells),
        directions,
        center=center,
        asked=manner,
        store=store,
        among=among,
        on_point=on_point,
    )


def _coordinates(axes: Axes, cells: Cells) -> Float[np.ndarray, "cells 2"]:
    return np.stack([axis[index] for axis, index in zip(axes, cells.T, strict=True)], axis=-1)


def _rechecked(
    problem: Problem,
    found: Surface,
    axes: Axes,
    directions: tuple[Tensor, Tensor],
    center: Reading,
    manner: Asked,
) -> tuple[Surface, float]:
    """The surface with some cells in full precision, and the error of the others."""
    cells = np.array(list(found.readings))
    readings, missed = rechecked(
        problem,
        _coordinates(axes, cells),
        list(found.readings.values()),
        directions,
        center=center,
        asked=manner,
    )
    return found.with_readings(readings), missed


def _of_scalars(found: Surface, center: Reading) -> dict[str, Any]:
    """Every quantity over the grid, its standard error, and the error of the spline between the cells that were read."""
    _, errors = of_scalars(list(found.readings.values()), center)
    filled = {name: found.filled(name) for name in center.scalars}
    return {
        "scalars": {name: values for name, (values, _) in filled.items()},
        "scalar_stderrs": {name: found.spread(of_name) for name, of_name in errors.items()},
        "scalar_errors": {name: error for name, (_, error) in filled.items()},
    }


def _beside(
    problem: Problem,
    axes: Axes,
    directions: tuple[Tensor, Tensor],
    center: Reading,
    manner: Asked,
    quadratic: bool,
    eigenvalues: int,
    seed: int,
) -> tuple[dict[str, Any], Cost, tuple[str, ...]]:
    """What is measured with derivatives: the quadratic model, extreme eigenvalues on a coarse grid."""
    fields: dict[str, Any] = {"scalars": {}, "scalar_stderrs": {}}
    spent, notes = Cost(), tuple[str, ...]()
    if quadratic:
        reach = float(max(np.abs(axis).max() for axis in axes))
        model = quadratic_model(problem, directions, center=center, asked=manner, reach=reach)
        fields |= {"slopes": (float(model.slopes[0]), float(model.slopes[1])), "bends": model.bends}
        fields |= {"quadratic_radii": model.radii, "quadratic_errors": model.errors}
        spent, notes = model.cost, model.notes
    if eigenvalues:
        rows, columns = (coarse(axis.size, eigenvalues) for axis in axes)
        # There and back, so that each search starts next to the one before.
        cells = np.array([(i, j) for k, i in enumerate(rows) for j in (columns[::-1] if k % 2 else columns)])
        found = extremes(problem, _coordinates(axes, cells), directions, seed=seed)
        for name, values in (("lambda_max", found.largest), ("lambda_min", found.smallest)):
            grid = np.full((axes[0].size, axes[1].size), np.nan)
            grid[tuple(cells.T)] = values
            fields["scalars"][name] = grid
            fields["scalar_stderrs"][name] = np.full_like(grid, np.nan)
        spent, notes = spent + found.cost, (*notes, eigenvalue_note(len(cells), found.residual))
    return fields, spent, notes


def _partial(found: Surface) -> np.ndarray | None:
    mask = np.zeros(found.losses.shape, dtype=bool)
    for cell, reading in found.readings.items():
        mask[cell] = reading.partial
    return mask if mask.any() else None


def _refuse_tolerance(interpolate: float | None) -> None:
    optional(real, interpolate=interpolate)
    if interpolate is not None and not 0 <= interpolate < 1:
        raise ProblemError(
            f"Expected interpolate to be a share of the range of the losses between 0 and 1, such as 0.001, found {interpolate!r}."
        )


def _given(problem: Problem, trajectory: Checkpoints) -> tuple[Snapshot, ...]:
    if isinstance(trajectory, Snapshot | nn.Module) or not isinstance(trajectory, Iterable):
        raise ProblemError(
            f"Expected a trajectory of several checkpoints, found a {type(trajectory).__name__}. Give a list of snapshots, state "
            "dicts or models, {step: checkpoint}, or the folder of a run log."
        )
    if isinstance(trajectory, str | os.PathLike | Mapping):
        return checkpoints.snapshots(problem, trajectory)
    found = tuple(trajectory)
    snapshots = tuple(each for each in found if isinstance(each, Snapshot))
    return snapshots if len(snapshots) == len(found) else checkpoints.snapshots(problem, found)


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


def _read_snapshot(problem: Problem, snapshot: Snapshot, manner: Asked) -> Reading:
    flat = torch.from_numpy(np.array(snapshot.parameters)).to(problem.device, problem.dtype)
    return read(problem, at_parameters(problem, flat), manner=manner.exactly.manner)


def _steps(snapshots: Sequence[Snapshot]) -> np.ndarray | None:
    steps = [snapshot.step for snapshot in snapshots if snapshot.step is not None]
    return np.array(steps, dtype=np.int64) if steps and len(steps) == len(snapshots) else None


def _statistics(problem: Problem, path: Projection | None, manner: Asked) -> tuple[str, ...]:
    stored = manner.manner.batchnorm == "stored" or (
        manner.manner.batchnorm is None and problem.batchnorm not in (None, "batch statistics")
    )
    if path is None or not stored:
        return ()
    return ("the path's losses use the BatchNorm statistics of the centre: a snapshot holds parameters alone",)
