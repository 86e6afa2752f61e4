"""Loss, mode connectivity, similarity and sharpness of several runs, from which their phase follows."""

from __future__ import annotations

import time
from collections.abc import Mapping
from itertools import combinations
from typing import Literal

import numpy as np

from theodolite.errors import NonFiniteError, ProblemError
from theodolite.landscapes.hypotheses import hypotheses
from theodolite.landscapes.paths import bezier, path
from theodolite.landscapes.paths.path import remarks
from theodolite.landscapes.paths.traveller import Checkpoint, State, Traveller
from theodolite.landscapes.similarity import similarity
from theodolite.linalg import lanczos
from theodolite.operators import Hessian
from theodolite.problem import Problem
from theodolite.records import Cost, Path, PhaseMetrics
from theodolite.records.jackknife import jackknife_stderr

FRESH, TOL = 8, 1e-2


def phase_metrics(
    problem: Problem,
    checkpoints: Mapping[str, Checkpoint],
    *,
    curve: Literal["bezier", "linear"] = "bezier",
    steps: int = 500,
    points: int = 11,
    module: str | None = None,
    initial: float | None = None,
    test: Problem | None = None,
    sharpness: bool = True,
    seed: int = 0,
    step: int | None = None,
) -> PhaseMetrics:
    """What tells the phase of runs of one setting with different seeds: ``record.phase()``.

    Cost: for each pair the training of a curve and its path; for each run some 20 Hessian products; 8 forward passes for the
    loss before training.

    Args:
        problem: whose loss and data are read.
        checkpoints: by name, two or more, each as for ``path``.
        curve: ``"bezier"`` trains the bend of a quadratic Bézier curve between each pair, ``"linear"`` reads the straight line.
        steps: of training a bend.
        points: positions on each curve.
        module: whose outputs are compared, as for ``similarity``; the model's by default.
        initial: loss before training, the scale of the others; by default the median of 8 fresh initialisations.
        test: a problem of the same model on other data.
        sharpness: whether λ_max is found.
        seed: of bends, initialisations and Lanczos.
        step: optimiser step, kept in the record.

    Returns:
        The metrics of all runs and pairs with errors.

    Raises:
        ProblemError: fewer than two checkpoints or an unknown curve, and what ``path``, ``similarity`` and ``hypotheses`` raise.
        CheckpointError: a checkpoint does not fit the model.

    References:
        Yang et al., "Taxonomizing local versus global structure in neural network loss landscapes" (2021).
    """
    started = time.perf_counter()
    if len(checkpoints) < 2 or curve not in ("bezier", "linear"):
        raise ProblemError(
            f"Expected at least 2 checkpoints and curve='bezier' or 'linear', found {len(checkpoints)} and {curve!r}."
        )
    traveller = Traveller(problem)
    states = {name: traveller.state_of(checkpoint) for name, checkpoint in checkpoints.items()}
    readings = [traveller.read(state) for state in states.values()]
    fresh = None if initial is not None else hypotheses(problem, count=FRESH, seed=seed)
    alike = similarity(problem, states, module=module)
    pairs = list(combinations(states, 2))
    paths = [_between(problem, states, pair, curve=curve, steps=steps, points=points, seed=seed) for pair in pairs]
    found = [each.connectivity(each.profiles[-1]) for each in paths]
    cka = [alike.between(*pair) for pair in pairs]
    other = None if test is None else Traveller(test)
    curved = [_sharpest(traveller, state, seed=seed) if sharpness else (np.nan, Cost()) for state in states.values()]
    parts = [alike.cost, *(each.cost for each in paths), *(cost for _, cost in curved)]
    spent = sum([*parts, *([] if fresh is None else [fresh.cost])], Cost(forwards=float(len(states))))
    bends = float(steps * len(pairs)) if curve == "bezier" else 0.0
    return PhaseMetrics(
        step=step,
        names=tuple(states),
        losses=np.array([reading.loss for reading in readings]),
        loss_stderrs=np.array(
            [float(jackknife_stderr(one.left_out, whole=np.array(one.loss), weights=one.weights)) for one in readings]
        ),
        test_losses=np.array([np.nan if other is None else other.read(state).loss for state in states.values()]),
        sharpness=np.array([value for value, _ in curved]),
        first=tuple(first for first, _ in pairs),
        second=tuple(second for _, second in pairs),
        connectivities=np.array([one.value for one in found]),
        connectivity_stderrs=np.array([one.stderr for one in found]),
        similarities=np.array([one.value for one in cka]),
        similarity_stderrs=np.array([one.stderr for one in cka]),
        distances=np.array([float(each.distances[0]) for each in paths]),
        initial=float(np.median(fresh.losses)) if fresh is not None else float(initial or 0.0),
        curve=paths[0].profiles[-1],
        cost=Cost(
            forwards=spent.forwards,
            gradients=spent.gradients,
            products=spent.products,
            seconds=time.perf_counter() - started,
        ),
        seed=seed,
        notes=(
            *((f"λ_max to a relative residual of {TOL:g}",) if sharpness else ()),
            *((f"{bends:,.0f} gradients of single batches trained the bends",) if bends else ()),
            *((f"loss before training: median of {FRESH} fresh initialisations",) if fresh is not None else ()),
            *remarks(readings),
        ),
        context=problem.context() | {"chunks": int((readings[0].weights > 0).sum())},
    )


def _between(
    problem: Problem,
    states: Mapping[str, State],
    pair: tuple[str, str],
    *,
    curve: str,
    steps: int,
    points: int,
    seed: int,
) -> Path:
    first, last = (states[name] for name in pair)
    curves = {"bezier": bezier(problem, first, last, steps=steps, seed=seed)} if curve == "bezier" else {}
    return path(problem, first, last, points=points, curves=curves, predict=False)


def _sharpest(traveller: Traveller, state: State, *, seed: int) -> tuple[float, Cost]:
    """λ_max of the Hessian at a state; NaN where the loss has no derivatives."""
    traveller.go(state)
    H = Hessian(traveller.problem)
    try:
        return float(lanczos(H, k=1, which="largest", tol=TOL, seed=seed).values[0]), H.cost
    except NonFiniteError:
        return float("nan"), H.cost
