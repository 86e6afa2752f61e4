"""Paths between every two of several checkpoints."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from theodolite.errors import ProblemError
from theodolite.landscapes.paths.curve import straight
from theodolite.landscapes.paths.matching import match
from theodolite.landscapes.paths.path import named, refuse_unselected, remarks
from theodolite.landscapes.paths.profiles import Statistics, policy_notes, read_profile, read_recalibrated, unused_notes
from theodolite.landscapes.paths.traveller import Checkpoint, Traveller, by_name
from theodolite.problem import Problem
from theodolite.records import Connectivity, Cost
from theodolite.records.barriers import HEIGHTS


def connectivity(
    problem: Problem,
    checkpoints: Mapping[str, Checkpoint] | Sequence[Checkpoint],
    *,
    points: int = 11,
    batchnorm: Statistics | None = None,
    aligned: bool = False,
    step: int | None = None,
) -> Connectivity:
    """Barriers on the straight paths between all pairs of checkpoints.

    Cost: points − 2 forward passes a pair and one a checkpoint, with recalibration twice as many a pair and three a checkpoint;
    with ``aligned`` that of ``match`` and one more pass a pair, or five.

    Args:
        problem: whose loss and data are read.
        checkpoints: by name, each as for ``path``; those of a list are named by their number.
        points: positions on each path, evenly spaced; an odd number has the middle among them.
        batchnorm: statistics of BatchNorm, as for ``path``; by default recalibrated, at the checkpoints too, where the model
            has stored ones.
        aligned: whether the hidden units of the later of each pair are first brought into the order of the earlier.
        step: optimiser step, kept in the record.

    Returns:
        Barriers by each definition in use with errors from the data, distances, and losses with stored statistics.

    Raises:
        ProblemError: fewer than two checkpoints, too few points, checkpoints that differ in what the problem does not select,
            or units that cannot be matched.
        CheckpointError: a checkpoint does not fit the model.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> models = {str(seed): nn.Linear(3, 1) for seed in range(3)}
        >>> problem = Problem(models["0"], nn.MSELoss(), [(torch.randn(8, 3), torch.randn(8, 1))])
        >>> connectivity(problem, models).basins(below=0.0).tolist()  # a convex loss has one basin
        [0, 0, 0]

    References:
        Entezari, Sedghi, Saukh & Neyshabur, "The role of permutation invariance in linear mode connectivity" (2022).
    """
    started = time.perf_counter()
    checkpoints = by_name(checkpoints)
    if len(checkpoints) < 2 or points < 3:
        raise ProblemError(
            f"Expected at least 2 checkpoints and 3 points, found {len(checkpoints)} checkpoints and points={points}."
        )
    traveller = Traveller(problem)
    policy: Statistics = batchnorm or "recalibrated"
    policy = policy if traveller.statistics else "interpolated"
    states = [traveller.state_of(checkpoint) for checkpoint in checkpoints.values()]
    readings = [traveller.read(state) for state in states]
    once = policy == "recalibrated" and not aligned
    moved = [read_recalibrated(traveller, state) for state in states] if once else []
    ts, count = np.linspace(0.0, 1.0, points), len(states)
    heights, errors = np.zeros((count, count, len(HEIGHTS))), np.zeros((count, count, len(HEIGHTS)))
    distances, passes = np.zeros((count, count)), float(count + 2 * len(moved))
    for i, j in combinations(range(count), 2):
        refuse_unselected(traveller, states[i], states[j])
        end = match(problem, states[i], states[j]).state if aligned else states[j]
        own = [readings[i], traveller.read(end) if aligned else readings[j]]
        ends = None if aligned or not moved else [moved[i], moved[j]]
        line = straight(states[i], end)
        found = read_profile(traveller, line, ts, name="pair", statistics=policy, own=own, ends=ends)
        heights[[i, j], [j, i]], errors[[i, j], [j, i]] = found.heights(ts), found.height_stderrs(ts)
        distances[[i, j], [j, i]] = found.distance
        passes += found.passes + aligned
    return Connectivity(
        step=step,
        names=tuple(checkpoints),
        losses=np.array([reading.loss for reading in readings]),
        heights=heights,
        height_stderrs=errors,
        distances=distances,
        profile=named("aligned" if aligned else "linear", policy),
        points=points,
        cost=Cost(forwards=passes, seconds=time.perf_counter() - started),
        notes=(*policy_notes(policy), *unused_notes(traveller, batchnorm), *remarks(readings)),
        context=problem.context() | {"chunks": int((readings[0].weights > 0).sum())},
    )
