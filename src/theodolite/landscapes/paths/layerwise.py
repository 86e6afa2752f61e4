"""Paths on which one layer alone goes from one checkpoint to the other."""

from __future__ import annotations

import time

import numpy as np
import torch

from theodolite.errors import ProblemError
from theodolite.landscapes.paths.curve import straight
from theodolite.landscapes.paths.derivatives import predicted_deviations
from theodolite.landscapes.paths.path import refuse_unselected, remarks
from theodolite.landscapes.paths.profiles import Profile, read_profile
from theodolite.landscapes.paths.traveller import Checkpoint, State, Traveller
from theodolite.landscapes.readings import stderrs
from theodolite.problem import Problem
from theodolite.records import Cost, LayerBarriers


def layer_barriers(
    problem: Problem, start: Checkpoint, end: Checkpoint, *, points: int = 5, step: int | None = None
) -> LayerBarriers:
    """For each layer, the barrier of the path on which it alone goes from one checkpoint to the other.

    Twice: with all other layers of ``start``, and with all others of ``end``. Statistics of BatchNorm go with their layer.

    Cost: for each layer 2 × points forward passes, 4 gradients and 4 products.

    Args:
        problem: whose loss and data are read; its layers are the modules that own selected parameters.
        start: as for ``path``.
        end: as for ``path``.
        points: positions on each path, evenly spaced; an odd number has the middle among them.
        step: optimiser step, kept in the record.

    Returns:
        Barriers, measured and predicted, and what the exchange of each layer costs.

    Raises:
        ProblemError: too few points, or checkpoints that differ in what the problem does not select.
        CheckpointError: a checkpoint does not fit the model.

    Example:
        >>> from torch import nn
        >>> first, second = (nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)) for _ in range(2))
        >>> problem = Problem(first, nn.MSELoss(), [(torch.randn(8, 3), torch.randn(8, 1))])
        >>> layer_barriers(problem, first, second).layers
        ('0', '2')

    References:
        Adilova, Andriushchenko, Kamp, Fischer & Jaggi, "Layer-wise linear mode connectivity" (2024).
    """
    started = time.perf_counter()
    if points < 3:
        raise ProblemError(f"Expected at least 3 points, both ends and one between them, found {points}.")
    traveller = Traveller(problem)
    first, last = traveller.state_of(start), traveller.state_of(end)
    refuse_unselected(traveller, first, last)
    ts, layers = np.linspace(0.0, 1.0, points), tuple(problem.layout.layers)
    base = traveller.read(first)
    table = np.array([[_read(traveller, *pair, ts) for pair in _pairs(first, last, layer)] for layer in layers])
    barriers, errors, predicted, predicted_errors, rises, rise_errors = np.moveaxis(table, -1, 0)
    return LayerBarriers(
        step=step,
        layers=layers,
        barriers=barriers,
        stderrs=errors,
        predicted=predicted,
        predicted_stderrs=predicted_errors,
        rises=rises * [1, -1],  # what replaces the layer of the second checkpoint stands at t = 0
        rise_stderrs=rise_errors,
        distances=np.array([_distance(first, last, problem.layout.layers[layer]) for layer in layers]),
        points=points,
        cost=Cost(
            forwards=2.0 * len(layers) * points + 1,
            gradients=4.0 * len(layers),
            products=4.0 * len(layers),
            seconds=time.perf_counter() - started,
        ),
        notes=remarks([base]),
        context=problem.context() | {"chunks": int((base.weights > 0).sum())},
    )


def _pairs(first: State, last: State, layer: str) -> tuple[tuple[State, State], tuple[State, State]]:
    """The ends of both paths of a layer, with the rest of the first and of the last checkpoint."""
    own = {name for name in first if name == layer or name.rpartition(".")[0] == layer}
    return (
        (first, {name: last[name] if name in own else value for name, value in first.items()}),
        ({name: first[name] if name in own else value for name, value in last.items()}, last),
    )


def _read(traveller: Traveller, start: State, end: State, ts: np.ndarray) -> tuple[float, ...]:
    line = straight(start, end)
    ends = [traveller.read(state) for state in (start, end)]
    profile: Profile = read_profile(traveller, line, ts, name="layer", statistics="interpolated", own=ends)
    predicted, predicted_errors = predicted_deviations(traveller, start, end, ts)
    top = int(np.argmax(predicted))
    return (
        float(profile.heights(ts)[0]),
        float(profile.height_stderrs(ts)[0]),
        float(predicted[top]),
        float(predicted_errors[top]),
        ends[1].loss - ends[0].loss,
        float(stderrs([ends[1]], center=ends[0])[0]),
    )


def _distance(first: State, last: State, names: tuple[str, ...]) -> float:
    norms = [torch.linalg.vector_norm(last[name] - first[name], dtype=torch.float64) for name in names]
    return float(torch.stack(norms).norm())
