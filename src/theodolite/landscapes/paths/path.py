"""Losses along curves between two checkpoints."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
import torch

from theodolite.errors import ProblemError
from theodolite.landscapes.paths.curve import Curve, straight
from theodolite.landscapes.paths.derivatives import predicted_deviations
from theodolite.landscapes.paths.matching import Matching, match
from theodolite.landscapes.paths.profiles import Profile, Statistics, read_profile, unused_notes
from theodolite.landscapes.paths.traveller import Checkpoint, State, Traveller
from theodolite.landscapes.reading import Reading
from theodolite.problem import Problem
from theodolite.records import Cost, Path


def path(
    problem: Problem,
    start: Checkpoint,
    end: Checkpoint,
    *,
    points: int = 21,
    batchnorm: Statistics | tuple[Statistics, ...] | None = None,
    aligned: bool | Matching = False,
    curves: Mapping[str, Curve] | None = None,
    predict: bool = True,
    step: int | None = None,
) -> Path:
    """Losses on the way from one checkpoint to another, in a straight line and along given curves.

    The model of the problem is not written to. The losses at t = 0 and t = 1 are those of the checkpoints, bit for bit, but on
    recalibrated profiles, whose ends are recalibrated as well: a barrier is between losses that were read in one way. A note has
    the losses of such ends with their stored statistics.

    Cost: one forward pass a position and profile, two with recalibration; 2 gradients and 2 products with ``predict``; the
    memory of one more model and of the checkpoints.

    Args:
        problem: whose loss and data are read; give one on test data for the losses of those.
        start: at t = 0: a state dict, a module, a checkpoint file, a ``Snapshot``, or a flat vector of the selected
            parameters in the order of ``named_parameters()``, which has the statistics of BatchNorm of the model.
        end: at t = 1.
        points: number of positions, evenly spaced; an odd number has the middle among them.
        batchnorm: statistics of BatchNorm along the way: ``"interpolated"`` between those of the ends, as parameters are;
            ``"stored"``, those of the nearer end; ``"recalibrated"`` on the data at every position, the ends included. Several
            give a profile each; by default interpolated and recalibrated where the model has stored statistics. The option of
            ``line`` and ``plane`` differs: a displaced model has one set of stored statistics, a path has two and can go
            between them, and it has no ``"batch"``: a problem with ``mode="train"`` normalises by each batch, and has one
            profile for all.
        aligned: also the straight line to ``end`` with its hidden units in the order of those of ``start``, which is found by
            ``match`` or given as what it found.
        curves: by name, as made by ``bezier`` and ``chain``. They are read with recalibrated statistics alone where the model
            has stored ones, as none are stored for what lies between.
        predict: whether the barrier of the line is predicted from both ends.
        step: optimiser step, kept in the record.

    Returns:
        The profiles with their barriers by each definition in use, with errors from the data.

    Raises:
        ProblemError: too few points, checkpoints that differ in what the problem does not select, units that cannot be matched
            or were matched for other checkpoints, or a curve named as a line.
        CheckpointError: a checkpoint does not fit the model.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> first, second = nn.Linear(3, 1), nn.Linear(3, 1)
        >>> problem = Problem(first, nn.MSELoss(), [(torch.randn(8, 3), torch.randn(8, 1)) for _ in range(4)])
        >>> found = path(problem, first, second)
        >>> found.barrier().value  # a convex loss has none
        0.0

    References:
        Goodfellow, Vinyals & Saxe, "Qualitatively characterizing neural network optimization problems" (2015); Frankle,
        Dziugaite, Roy & Carbin, "Linear mode connectivity and the lottery ticket hypothesis" (2020); Draxler, Veschgini,
        Salmhofer & Hamprecht, "Essentially no barriers in neural network energy landscape" (2018).
    """
    started = time.perf_counter()
    _refuse_kinds(curves, aligned)
    if points < 3:
        raise ProblemError(f"Expected at least 3 points, both ends and one between them, found {points}.")
    traveller = Traveller(problem)
    first, last = traveller.state_of(start), traveller.state_of(end)
    refuse_unselected(traveller, first, last)
    ts = np.linspace(0.0, 1.0, points)
    matching = match(problem, first, last) if aligned is True else aligned or None
    lines = {"linear": straight(first, last)} | (
        {} if matching is None else {"aligned": straight(first, matching.state)}
    )
    _refuse_foreign(curves or {}, matching, first, last)
    profiles = _profiles(traveller, lines | dict(curves or {}), ts, batchnorm)
    predicted = predicted_deviations(traveller, first, last, ts) if predict else (None, None)
    readings = [reading for profile in profiles for reading in profile.readings]
    return Path(
        step=step,
        ts=ts,
        profiles=tuple(profile.name for profile in profiles),
        losses=np.stack([profile.losses for profile in profiles]),
        stderrs=np.stack([profile.stderrs(ts) for profile in profiles]),
        height_stderrs=np.stack([profile.height_stderrs(ts) for profile in profiles]),
        distances=np.array([profile.distance for profile in profiles]),
        predicted=predicted[0],
        predicted_stderrs=predicted[1],
        cost=_cost(profiles, predict=predict, started=started),
        notes=(
            *(note for profile in profiles for note in profile.notes),
            *unused_notes(traveller, batchnorm),
            *(() if matching is None else matching.summary()),
            *_elsewhere(traveller, curves or {}, first, last),
            *remarks(readings),
        ),
        context=problem.context() | {"chunks": int((readings[0].weights > 0).sum())},
    )


def refuse_unselected(traveller: Traveller, first: State, last: State) -> None:
    """Refuse two states between which more changes than the selected parameters.

    Raises:
        ProblemError: they differ in another parameter.
    """
    constants = traveller.problem.point().constants
    differing = [name for name in constants if not bool((first[name] == last[name]).all())]
    if differing:
        raise ProblemError(
            f"Expected checkpoints that differ in the {len(traveller.problem.layout.names)} selected parameters alone, found "
            f"{len(differing)} others that differ ({', '.join(differing[:4])}{', …' if len(differing) > 4 else ''}). Select "
            "them too, with requires_grad_(True) where they are frozen."
        )


def _refuse_kinds(curves: object, aligned: object) -> None:
    known = curves is None or (isinstance(curves, Mapping) and all(isinstance(each, Curve) for each in curves.values()))
    if not known:
        found = (
            {name: type(each).__name__ for name, each in curves.items()}
            if isinstance(curves, Mapping)
            else type(curves).__name__
        )
        raise ProblemError(
            f"Expected curves by name, as curves={{'bezier': bezier(problem, start, end)}}, found {found}."
        )
    if not isinstance(aligned, bool | Matching):
        raise ProblemError(
            f"Expected aligned to be True, False or what match(problem, start, end) found, found {type(aligned).__name__}."
        )


def _refuse_foreign(curves: Mapping[str, Curve], matching: Matching | None, first: State, last: State) -> None:
    taken = [name for name in ("linear", "aligned") if name in curves]
    if taken:
        raise ProblemError(f"Expected curves with names of their own, found {taken[0]!r}, which is that of a line.")
    if matching is None:
        return
    # A permuted state has the same numbers: sorted, they are equal.
    own = first.keys() == matching.start.keys() and all(
        torch.equal(first[name], matching.start[name].to(first[name]))
        and torch.equal(*(state[name].to(first[name]).flatten().sort()[0] for state in (last, matching.state)))
        for name in first
    )
    if not own:
        raise ProblemError(
            "Expected aligned= to be what match(problem, start, end) found, found it of other checkpoints. Match these, or pass "
            "aligned=True."
        )


def remarks(readings: list[Reading]) -> tuple[str, ...]:
    """What errors lack, if they lack something."""
    if (readings[0].weights > 0).sum() < 2:
        return ("the data are a single chunk, so the error from the data is not known; cut them into batches",)
    return ()


def _profiles(
    traveller: Traveller,
    curves: Mapping[str, Curve],
    ts: np.ndarray,
    batchnorm: Statistics | tuple[Statistics, ...] | None,
) -> list[Profile]:
    policies, found = _policies(traveller, batchnorm), []
    for name, curve in curves.items():
        bent = len(curve.controls) > 2
        own = [traveller.read(curve.at(t)) for t in (0.0, 1.0)]
        ways: tuple[Statistics, ...] = ("recalibrated",) if bent and traveller.statistics else policies
        found += [
            read_profile(traveller, curve, ts, name=named(name, policy), statistics=policy, own=own) for policy in ways
        ]
    return found


def _elsewhere(traveller: Traveller, curves: Mapping[str, Curve], first: State, last: State) -> tuple[str, ...]:
    """Curves between other checkpoints: they are compared with a line that they do not belong to."""
    names = traveller.problem.layout.names
    return tuple(
        f"{name}: its ends are not the given checkpoints, as of a curve to a matched end"
        for name, curve in curves.items()
        if not all(
            torch.equal(control[part].to(state[part]), state[part])
            for control, state in ((curve.controls[0], first), (curve.controls[-1], last))
            for part in names
        )
    )


def _policies(traveller: Traveller, batchnorm: Statistics | tuple[Statistics, ...] | None) -> tuple[Statistics, ...]:
    known: tuple[Statistics, ...] = ("interpolated", "stored", "recalibrated")
    asked = known[::2] if batchnorm is None else (batchnorm,) if isinstance(batchnorm, str) else batchnorm
    if not asked or any(policy not in known for policy in asked):
        raise ProblemError(f"Expected batchnorm to be among {', '.join(map(repr, known))}, found {batchnorm!r}.")
    return asked if traveller.statistics else ("interpolated",)


def named(name: str, policy: Statistics) -> str:
    """The name of a profile: interpolated statistics are not mentioned."""
    return name if policy == "interpolated" else f"{name}, {policy}"


def _cost(profiles: list[Profile], *, predict: bool, started: float) -> Cost:
    ends = {id(reading) for profile in profiles for reading in profile.own}
    return Cost(
        forwards=float(len(ends) + sum(profile.passes for profile in profiles)),
        gradients=2.0 * predict,
        products=2.0 * predict,
        seconds=time.perf_counter() - started,
    )
