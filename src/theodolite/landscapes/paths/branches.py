"""Runs that part after common steps, and runs that start beside a model: do they end in one basin?"""

from __future__ import annotations

import copy
import inspect
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from theodolite.errors import ProblemError
from theodolite.landscapes.paths.curve import straight
from theodolite.landscapes.paths.path import named, remarks
from theodolite.landscapes.paths.profiles import Profile, Statistics, policy_notes, read_profile
from theodolite.landscapes.paths.traveller import Checkpoint, State, Traveller
from theodolite.problem import Problem, undisturbed
from theodolite.problem.guard import seed_everything
from theodolite.records import Basin, Branching, Cost

Train = Callable[[nn.Module, Any, range, int], Any]


def branching(
    problem: Problem,
    train: Train,
    *,
    branches: Sequence[int],
    steps: int,
    seeds: tuple[int, int] = (0, 1),
    points: int = 11,
    step: int | None = None,
) -> Branching:
    """Barriers between two runs that share their first steps, by the step after which they part.

    Runs start from a copy of the model of the problem, which is not written to, nor is random state. Where the barrier is
    small from a step on, what training finds after it no longer depends on the order of its data.

    Cost: for each branch two runs from there to the end, one run up to the last branch, points + 1 forward passes and twice
    as many with recalibration; the memory of three models with their optimisers.

    Args:
        problem: its model is where runs start, its loss and data are what barriers are read on.
        train: function of (model, memory, steps, seed) that trains the model in place over a ``range`` of steps with data in
            the order of a seed, and returns what the next steps need, as an optimiser. ``memory`` is what it returned for the
            steps before, None at the first; model and memory are copied together where runs part. Random numbers are seeded
            before every call.
        branches: steps after which two runs part, each at most ``steps``.
        steps: of every run.
        seeds: of the two runs of a pair, which differ; their common steps are those of the first.
        points: positions on each path.
        step: optimiser step, kept in the record.

    Returns:
        Barriers, losses and the geometry of each pair.

    Raises:
        ProblemError: branches that are not between 0 and ``steps``, equal seeds, or too few points.

    Example:
        >>> from torch.nn.functional import mse_loss
        >>> x, y = torch.randn(32, 3), torch.randn(32, 1)
        >>> def train(model, optimizer, steps, seed):
        ...     optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
        ...     for step in steps:
        ...         rows = torch.randint(32, (4,), generator=torch.Generator().manual_seed(1000 * seed + step))
        ...         optimizer.zero_grad()
        ...         mse_loss(model(x[rows]), y[rows]).backward()
        ...         optimizer.step()
        ...     return optimizer
        >>> problem = Problem(nn.Linear(3, 1), nn.MSELoss(), [(x, y)])
        >>> branching(problem, train, branches=[0, 5], steps=10).stable_after(below=0.0)
        0

    References:
        Frankle, Dziugaite, Roy & Carbin, "Linear mode connectivity and the lottery ticket hypothesis" (2020).
    """
    started = time.perf_counter()
    _refuse(train, points, steps)
    if not branches or any(not 0 <= branch <= steps for branch in branches):
        raise ProblemError(f"Expected branches between 0 and steps={steps}, found {list(branches)}.")
    if seeds[0] == seeds[1]:
        raise ProblemError(
            f"Expected two different seeds, found {seeds}. Runs of one seed never part, and every barrier would be 0."
        )
    runs, reader = _Runs(problem, train), _Reader(problem, points)
    trunk, done, rows = (copy.deepcopy(problem.model), None), 0, {}
    for branch in sorted(set(branches)):
        trunk, done = runs.go(trunk, range(done, branch), seeds[0]), branch
        parted = reader.traveller.state_of(trunk[0])
        ends = [runs.go(copy.deepcopy(trunk), range(branch, steps), seed)[0] for seed in seeds]
        states = [reader.traveller.state_of(end) for end in ends]
        ways = [reader.way(parted, state) for state in states]
        rows[branch] = (reader.profile(*states), [float(way.norm()) for way in ways], _cosine(*ways))
    profiles = [rows[branch][0] for branch in branches]
    return Branching(
        step=step,
        branches=np.array(branches, dtype=np.int64),
        steps=steps,
        heights=np.stack([profile.heights(reader.ts) for profile in profiles]),
        height_stderrs=np.stack([profile.height_stderrs(reader.ts) for profile in profiles]),
        losses=np.array([[reading.loss for reading in profile.own] for profile in profiles]),
        distances=np.array([rows[branch][1] for branch in branches]),
        gaps=np.array([profile.distance for profile in profiles]),
        cosines=np.array([rows[branch][2] for branch in branches]),
        profile=named("linear", reader.policy),
        cost=reader.cost(started),
        notes=(*reader.notes, *remarks(profiles[0].readings)),
        context=problem.context() | {"chunks": int((profiles[0].readings[0].weights > 0).sum())},
    )


def basin(
    problem: Problem,
    train: Train,
    fresh: Checkpoint,
    *,
    alphas: Sequence[float],
    steps: int,
    seed: int = 0,
    points: int = 11,
    step: int | None = None,
) -> Basin:
    """Whether runs that start between a model and a fresh initialisation end in the model's basin.

    A run starts from ((1−α)·θ + α·θ̃)/√(α² + (1−α)²) in all weights, which keeps the variance of independent ones; biases,
    norm weights and statistics start from the model's.

    Cost: a run for each α, points + 1 forward passes and twice as many with recalibration.

    Args:
        problem: its model is θ, its loss and data are what barriers are read on.
        train: as for ``branching``; called once for each run with memory None.
        fresh: θ̃, a checkpoint of a fresh initialisation.
        alphas: shares of θ̃, between 0 and 1.
        steps: of every run.
        seed: of the runs.
        points: positions on each path.
        step: optimiser step, kept in the record.

    Returns:
        Barriers from θ to the end of each run, with losses and distances.

    Raises:
        ProblemError: shares outside 0 and 1, too few points, or ``train`` with other arguments.
        CheckpointError: the fresh initialisation does not fit the model.

    References:
        Sarnthein, Bachmann, Anagnostidis & Hofmann, "Random teachers are good teachers" (2023).
    """
    started = time.perf_counter()
    _refuse(train, points, steps)
    if not alphas or any(not 0 <= alpha <= 1 for alpha in alphas):
        raise ProblemError(f"Expected alphas between 0 and 1, found {list(alphas)}.")
    runs, reader = _Runs(problem, train), _Reader(problem, points)
    home, away = reader.traveller.state(), reader.traveller.state_of(fresh)
    profiles, starts, distances = [], [], []
    for alpha in alphas:
        begin = blended(home, away, alpha, weights=set(problem.layout.names))
        model = copy.deepcopy(problem.model)
        _load(model, begin)
        starts.append(reader.traveller.read(begin).loss)
        end = reader.traveller.state_of(runs.go((model, None), range(steps), seed)[0])
        profiles.append(reader.profile(home, end))
        distances.append([float(reader.way(home, state).norm()) for state in (begin, end)])
    return Basin(
        step=step,
        alphas=np.array(alphas, dtype=np.float64),
        steps=steps,
        heights=np.stack([profile.heights(reader.ts) for profile in profiles]),
        height_stderrs=np.stack([profile.height_stderrs(reader.ts) for profile in profiles]),
        loss=profiles[0].own[0].loss,
        starts=np.array(starts),
        losses=np.array([profile.own[1].loss for profile in profiles]),
        distances=np.array(distances),
        profile=named("linear", reader.policy),
        cost=reader.cost(started),
        seed=seed,
        notes=(*reader.notes, *remarks(profiles[0].readings)),
        context=problem.context() | {"chunks": int((profiles[0].readings[0].weights > 0).sum())},
    )


def blended(home: State, away: State, alpha: float, *, weights: set[str]) -> State:
    """((1−α)·home + α·away)/√(α² + (1−α)²) in tensors of two or more dimensions, home in all others."""
    scale = (alpha**2 + (1 - alpha) ** 2) ** 0.5
    return {
        name: ((1 - alpha) * value + alpha * away[name]) / scale if name in weights and value.dim() > 1 else value
        for name, value in home.items()
    }


@dataclass(frozen=True)
class _Runs:
    """Training that leaves random state as it was."""

    problem: Problem
    train: Train

    def go(self, run: tuple[nn.Module, Any], steps: range, seed: int) -> tuple[nn.Module, Any]:
        model, memory = run
        if not steps:
            return run
        with undisturbed(self.problem.model, copy=False):
            seed_everything(1_000_003 * seed + steps.start)
            model.train()
            return model, self.train(model, memory, steps, seed)


class _Reader:
    """Straight paths with the statistics that they are read with."""

    def __init__(self, problem: Problem, points: int) -> None:
        self.traveller, self.ts, self.passes = Traveller(problem), np.linspace(0.0, 1.0, points), 0
        self.policy: Statistics = "recalibrated" if self.traveller.statistics else "interpolated"

    def profile(self, start: State, end: State) -> Profile:
        own = [self.traveller.read(state) for state in (start, end)]
        line = straight(start, end)
        found = read_profile(self.traveller, line, self.ts, name="run", statistics=self.policy, own=own)
        self.passes += 2 + found.passes
        return found

    @property
    def notes(self) -> tuple[str, ...]:
        """With which statistics barriers and losses were read."""
        return policy_notes(self.policy)

    def way(self, start: State, end: State) -> Tensor:
        """From one state to another in the selected parameters, flattened, in double precision."""
        names = self.traveller.problem.layout.names
        return torch.cat([(end[name].double() - start[name].double()).flatten() for name in names])

    def cost(self, started: float) -> Cost:
        return Cost(forwards=float(self.passes), seconds=time.perf_counter() - started)


def _refuse(train: object, points: int, steps: int) -> None:
    if not callable(train) or not _takes_four(train):
        raise ProblemError(
            "Expected train to be a function of (model, memory, steps, seed) that trains the model in place over a range of steps, "
            f"found {getattr(train, '__name__', train)!s}{_signature(train)}."
        )
    if points < 3 or steps < 1:
        raise ProblemError(f"Expected at least 3 points and 1 step, found points={points} and steps={steps}.")


def _takes_four(train: Callable[..., Any]) -> bool:
    try:
        inspect.signature(train).bind(None, None, range(1), 0)
    except TypeError:
        return False
    except ValueError:  # built-in functions may have no signature to read
        return True
    return True


def _signature(train: object) -> str:
    return str(inspect.signature(train)) if inspect.isroutine(train) else f", a {type(train).__name__}"


@torch.no_grad()
def _load(model: nn.Module, state: State) -> None:
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        tensor.copy_(state[name])


def _cosine(first: Tensor, second: Tensor) -> float:
    norms = float(first.norm() * second.norm())
    return float(first @ second) / norms if norms else float("nan")
