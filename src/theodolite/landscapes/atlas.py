"""Slices through one point along many directions on one unit, beside the parabolas that derivatives predict."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer

from theodolite.errors import ProblemError
from theodolite.landscapes.directions import Direction, Named, ascent, flat_parameters, length, named_direction, update
from theodolite.landscapes.grids import positions
from theodolite.landscapes.paths.derivatives import slopes_at
from theodolite.landscapes.paths.traveller import Traveller
from theodolite.landscapes.reading import Reading
from theodolite.landscapes.readings import OnPoint, read, read_grid, stderrs
from theodolite.landscapes.remarks import context, remarks
from theodolite.problem import Problem
from theodolite.records import Atlas, Cost
from theodolite.records.jackknife import jackknife_stderr

RANDOM = "random"


def atlas(
    problem: Problem,
    *,
    directions: Mapping[str, Direction] | None = None,
    optimizer: Optimizer | None = None,
    draws: int = 5,
    points: int = 41,
    reach: float = 0.1,
    seed: int = 0,
    on_point: OnPoint | None = None,
    step: int | None = None,
) -> Atlas:
    """Losses along many directions through θ at the same distances, with slope and curvature of each.

    One slice says little: the same point is steep along one direction and flat along nearly all others. The directions are
    brought to one length and turned downhill, so that slices can be compared.

    Cost: ``points`` − 1 forward passes, one gradient and one product a direction and a draw; what measured directions cost.

    Args:
        problem: what is surveyed.
        directions: by name, each as for ``line``. By default ``"gradient"``, ``"ASAM"`` (the ascent of adaptive sharpness-aware
            minimisation; that of plain SAM is along the gradient), the eigenvectors of the Hessian ``"λ max"`` and ``"λ min"``, and
            ``"update"`` where there is an optimiser.
        optimizer: whose next step is a direction; read, never written.
        draws: filter-normalised random directions beside them, the rows named ``"random"``.
        points: positions on each slice, evenly spaced on each side of 0; an odd number is symmetric.
        reach: the farthest, as a share of ‖θ‖.
        seed: of random directions and of Lanczos.
        on_point: called after every slice with the number of points done and of all.
        step: optimiser step, kept in the record.

    Returns:
        Losses with their errors, slopes and curvatures.

    Raises:
        ProblemError: nothing to draw, a reach that is not positive, a direction of zeros, such as the gradient where it vanishes.
        NonFiniteError: parameters or a direction are not finite. Losses that are not finite are readings.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(3, 1)
        >>> problem = Problem(model, torch.nn.MSELoss(), [(torch.randn(8, 3), torch.randn(8, 1)) for _ in range(4)])
        >>> found = atlas(problem, points=5, draws=2)
        >>> bool(abs(found.losses - found.predicted).max() < 1e-4)  # the loss is quadratic
        True

    References:
        Foret, Kleiner, Mobahi & Neyshabur, "Sharpness-aware minimization for efficiently improving generalization" (2021).
        Kwon, Kim, Park & Choi, "ASAM: adaptive sharpness-aware minimization" (2021).
    """
    started = time.perf_counter()
    if not 0 < reach < float("inf") or draws < 0:
        raise ProblemError(f"Expected a positive reach and draws of at least 0, found reach={reach} and draws={draws}.")
    flat = flat_parameters(problem)
    size = length(flat)
    if not size > 0:
        raise ProblemError("Expected parameters that are not all zero, as distances are shares of ‖θ‖, found zeros.")
    found = _found(problem, directions, optimizer, draws, seed)
    vectors = [named.vectors[0] for _, named in found]
    center, ts = read(problem, problem.point()), positions(points, (-reach, reach))
    traveller = Traveller(problem)
    slopes = [_derivatives(traveller, flat, size * vector / length(vector)) for vector in vectors]
    signs = [-1.0 if first.loss > 0 else 1.0 for first, _ in slopes]
    readings: list[list[Reading]] = []
    for vector, sign in zip(vectors, signs, strict=True):
        towards = sign * size * vector / length(vector)
        readings.append(read_grid(problem, ts[:, None], [towards], center=center))
        if on_point is not None:
            on_point(len(readings) * points, len(vectors) * points)
    every = [reading for row in readings for reading in row]
    return Atlas(
        step=step,
        names=tuple(name for name, _ in found),
        positions=ts,
        losses=np.array([[reading.loss for reading in row] for row in readings]),
        stderrs=np.stack([stderrs(row, center=center) for row in readings]),
        slopes=np.array([-abs(first.loss) for first, _ in slopes]) / size,
        slope_stderrs=np.array([_error(first) for first, _ in slopes]) / size,
        curvatures=np.array([second.loss for _, second in slopes]) / size**2,
        curvature_stderrs=np.array([_error(second) for _, second in slopes]) / size**2,
        norms=np.array([length(vector) for vector in vectors]),
        center=center.loss,
        parameter_norm=size,
        cost=sum((named.cost for _, named in found), Cost())
        + Cost(
            gradients=float(len(found)) + (directions is None) * (1 + (optimizer is not None)),
            products=float(len(found)),
            forwards=float(len({id(reading) for reading in [*every, center]})),
            seconds=time.perf_counter() - started,
        ),
        seed=seed if any(named.random for _, named in found) else None,
        notes=(
            *(note.replace("d₁", name) for name, named in found for note in named.notes),
            *remarks(every, center),
        ),
        context=context(problem, name="filter" if draws else "given", center=center),
    )


def _found(
    problem: Problem, directions: Mapping[str, Direction] | None, optimizer: Optimizer | None, draws: int, seed: int
) -> list[tuple[str, Named]]:
    """Directions by name, then the draws."""
    asked = _usual(problem, optimizer) if directions is None else directions
    if RANDOM in asked and draws:
        raise ProblemError(f"Expected directions of other names than {RANDOM!r}, which draws={draws} has taken.")
    found = [(name, named_direction(problem, direction, seed=seed)) for name, direction in asked.items()]
    found += [(RANDOM, named_direction(problem, "filter", seed=seed + draw)) for draw in range(draws)]
    if not found:
        raise ProblemError("Expected a direction or a draw at least, found none.")
    return found


def _usual(problem: Problem, optimizer: Optimizer | None) -> dict[str, Direction]:
    found: dict[str, Direction] = {"gradient": "gradient"}
    if optimizer is not None:
        found["update"] = update(problem, optimizer)
    return found | {"ASAM": ascent(problem, adaptive=True), "λ max": "hessian", "λ min": "hessian-smallest"}


def _derivatives(
    traveller: Traveller, flat: Float[Tensor, " n"], displacement: Float[Tensor, " n"]
) -> tuple[Reading, Reading]:
    """First and second derivative at θ towards θ + displacement, in its units."""
    ends = [traveller.state_of(each) for each in (flat, flat + displacement)]
    found = slopes_at(traveller, *ends, at=0.0)
    return found.first, found.second


def _error(reading: Reading) -> float:
    return float(jackknife_stderr(reading.left_out, whole=np.asarray(reading.loss), weights=reading.weights))
