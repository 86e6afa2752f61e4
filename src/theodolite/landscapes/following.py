"""Follow a training through its checkpoints: where each lies on a plane, what it really loses, and the plane that moves along."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from typing import Any, final

import numpy as np
from jaxtyping import Float
from torch import Tensor

from theodolite.errors import ProblemError
from theodolite.landscapes import trajectories
from theodolite.landscapes.checkpoints import Checkpoint, Checkpoints, flat_of, put, stepped
from theodolite.landscapes.directions import as_direction, cosine, flat_parameters, length
from theodolite.landscapes.directions.names import Vector
from theodolite.landscapes.grids import Span
from theodolite.landscapes.lines import KEEP
from theodolite.landscapes.planes import plane
from theodolite.landscapes.reading import Reading, additive
from theodolite.landscapes.readings import read, read_grid, stderrs
from theodolite.landscapes.remarks import context, cost, kept
from theodolite.landscapes.trajectories import Projection
from theodolite.problem import Problem
from theodolite.problem.arrays import to_numpy
from theodolite.records import Plane, Snapshot, Trajectory

Vectors = tuple[Vector, Vector]


def follow(
    problem: Problem,
    checkpoints: Checkpoints,
    *,
    directions: Vectors | None = None,
    keep_directions_below: int = KEEP,
    step: int | None = None,
) -> Trajectory:
    """Where checkpoints lie on a plane through θ, their true losses, and those that the plane shows in their place.

    Unlike the path of a ``Plane``, whose snapshots hold parameters alone, checkpoints from files and state dicts are read with
    everything that they hold, such as the statistics of BatchNorm.

    Cost: two forward passes a checkpoint; memory for the selected parameters of all, and for one copy of the model.

    Args:
        problem: at the centre θ of the plane, by custom the end of the training.
        checkpoints: in any form that ``snapshots`` takes, in the order of training.
        directions: of the plane; by default the principal directions of the trajectory, which take three checkpoints.
        keep_directions_below: bytes up to which the record keeps both directions; 256 MiB by default.
        step: optimiser step of θ, kept in the record.

    Raises:
        CheckpointError: a checkpoint does not fit the model.
        ProblemError: there are too few checkpoints, all lie on one line, or the directions are parallel.
        NonFiniteError: parameters are not finite. Losses that are not finite are readings.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(3, 1)
        >>> problem = Problem(model, torch.nn.MSELoss(), [(torch.randn(8, 3), torch.randn(8, 1))])
        >>> checkpoints = {10 * t: torch.randn(4) for t in range(5)}
        >>> follow(problem, checkpoints).steps.tolist()
        [0, 10, 20, 30, 40]

    References:
        Li, Xu, Taylor, Studer & Goldstein, "Visualizing the loss landscape of neural nets" (2018), section 7.
        Antognini & Sohl-Dickstein, "PCA of high dimensional random walks with comparison to neural network training" (2018).
    """
    started = time.perf_counter()
    path = _Path(problem, checkpoints, directions)
    center = read(problem, problem.point())
    readings = [_at(path.walker, checkpoint) for _, checkpoint in path.checkpoints]
    shown = read_grid(problem, path.projection.coordinates, path.directions, center=center)
    stored, dropped = kept(path.directions, below=keep_directions_below)
    return Trajectory(
        step=step,
        coordinates=path.projection.coordinates,
        distances=path.projection.distances,
        displacements=path.displacements,
        losses=np.array([reading.loss for reading in readings]),
        stderrs=stderrs(readings, center=center),
        plane_losses=np.array([reading.loss for reading in shown]),
        center=center.loss,
        steps=path.steps,
        explained=path.projection.explained,
        shares=trajectories.shares(path.snapshots, center=path.center),
        directions=None if stored is None else (stored[0], stored[1]),
        direction_norms=(length(path.directions[0]), length(path.directions[1])),
        cosine=cosine(*path.directions),
        name=path.name,
        parameter_norm=length(flat_parameters(problem)),
        cost=cost([*readings, *shown, center], started=started),
        notes=(*path.notes, *dropped),
        context=context(problem, name=path.name, center=center),
    )


def frames(
    problem: Problem,
    checkpoints: Checkpoints,
    *,
    directions: Vectors | None = None,
    points: int | tuple[int, int] = 31,
    span: tuple[Span, Span] | None = None,
    keep_directions_below: int = 0,
    **options: Any,
) -> Iterator[Plane]:
    """The plane through each checkpoint in turn, for a film: directions, axes and their ends are the same in all frames.

    Frame t is the plane through θ_t along d₁ and d₂, on the coordinates of the plane through θ: shifted off it by the part of
    θ_t − θ that lies outside, so that in its own frame a checkpoint stands on the surface at its true loss. The plane through θ
    alone, with a marker that moves over it, shows losses that the training never saw.

    Cost: one forward pass a point of each frame. Frames are made one at a time.

    Args:
        problem: at the centre θ, by custom the end of the training.
        checkpoints: as for ``follow``.
        directions: of all planes; by default the principal directions of the trajectory.
        points: number of positions on each axis, or on both; the checkpoint's own are among them where the span contains them.
        span: first and last position on both axes; by default what holds the path with a margin of 15 % of its extent.
        keep_directions_below: bytes up to which each frame keeps both directions; none by default.
        **options: of ``plane``, such as ``interpolate``.

    Returns:
        Planes named ``"frame"`` with the step and the path so far; standard errors are of the rise above the checkpoint. The
        losses of the path are those of the checkpoints themselves.

    Raises:
        CheckpointError: a checkpoint does not fit the model.
        ProblemError: there are too few checkpoints, all lie on one line, or the directions are parallel.
        NonFiniteError: the parameters at θ are not finite.

    References:
        Li, Xu, Taylor, Studer & Goldstein, "Visualizing the loss landscape of neural nets" (2018), section 7.
    """
    path = _Path(problem, checkpoints, directions)
    spans = path.projection.spans() if span is None else span
    return _framed(path, spans, points=points, keep_directions_below=keep_directions_below, **options)


def _framed(path: _Path, spans: tuple[Span, Span], **options: Any) -> Iterator[Plane]:
    losses: list[float] = []
    for index, (step, checkpoint) in enumerate(path.checkpoints):
        put(path.walker, checkpoint)
        place = path.projection.coordinates[index]
        relative = tuple((low - at, high - at) for (low, high), at in zip(spans, place.tolist(), strict=True))
        found = plane(
            path.walker,
            directions=path.directions,
            span=(relative[0], relative[1]),
            step=step,
            **options,
        )
        shown = 0 in found.alphas and 0 in found.betas
        losses.append(found.center if shown else _at(path.walker, None).loss)
        off = float(path.projection.distances[index])
        yield found.replace(
            name="frame",
            alphas=found.alphas + place[0],
            betas=found.betas + place[1],
            path=path.projection.coordinates[: index + 1],
            path_steps=None if path.steps is None else path.steps[: index + 1],
            path_losses=np.array(losses),
            path_distances=path.from_plane_of(index)[: index + 1],
            explained=path.projection.explained,
            notes=(
                *found.notes,
                f"the plane through checkpoint {index + 1} of {len(path.checkpoints)}, {off:.4g} off that of θ",
            ),
        )


@final
class _Path:
    """Checkpoints with their projections to a plane, and a copy of the model to visit them with."""

    def __init__(self, problem: Problem, checkpoints: Checkpoints, directions: Vectors | None) -> None:
        given: Sequence[tuple[int | None, Checkpoint]] = tuple(stepped(checkpoints))
        flat = [Snapshot(step=step, parameters=flat_of(problem, checkpoint)) for step, checkpoint in given]
        finite = [bool(np.isfinite(snapshot.parameters).all()) for snapshot in flat]
        self.checkpoints = [each for each, keep in zip(given, finite, strict=True) if keep]
        self.snapshots = [each for each, keep in zip(flat, finite, strict=True) if keep]
        lost = len(finite) - sum(finite)
        self.notes = (f"{lost} of {len(finite)} checkpoints are not finite and not on the path",) if lost else ()
        if not self.snapshots:
            raise ProblemError(
                f"Expected checkpoints with finite parameters to follow, found {len(finite)} and none finite."
            )
        self.center = to_numpy(flat_parameters(problem))
        self.name = "principal" if directions is None else "given"
        if directions is None:
            directions = trajectories.trajectory(self.snapshots, center=self.center).directions
        self.directions: tuple[Tensor, Tensor] = (
            as_direction(directions[0], problem),
            as_direction(directions[1], problem),
        )
        cosine(*self.directions)
        self.projection = self._projected(self.center)
        self.walker = problem.on(copy.deepcopy(problem.model))

    @property
    def steps(self) -> np.ndarray | None:
        """Optimiser steps, where all are known."""
        steps = [step for step, _ in self.checkpoints if step is not None]
        return np.array(steps, dtype=np.int64) if len(steps) == len(self.checkpoints) else None

    @property
    def displacements(self) -> Float[np.ndarray, " t"]:
        """‖θ_t − θ‖."""
        center = self.center.astype(np.float64)
        return np.array([np.linalg.norm(snapshot.parameters - center) for snapshot in self.snapshots])

    def from_plane_of(self, index: int) -> Float[np.ndarray, " t"]:
        """Distances of all checkpoints from the plane through one of them."""
        return self._projected(self.snapshots[index].parameters).distances

    def _projected(self, center: Float[np.ndarray, " n"]) -> Projection:
        pair = (to_numpy(self.directions[0]), to_numpy(self.directions[1]))
        return trajectories.project(self.snapshots, center=center, directions=pair)


def _at(walker: Problem, checkpoint: Checkpoint | None) -> Reading:
    """The loss of a checkpoint with everything that it holds; None for where the walker stands."""
    if checkpoint is not None:
        put(walker, checkpoint)
    totals, weights = walker.totals()
    return additive(totals.numpy(), weights.numpy(), divisor=walker.total_weight(weights))
