"""The quadratic model at the centre of a line or plane, held against losses at growing distances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from theodolite.errors import ProblemError
from theodolite.landscapes.asked import Asked
from theodolite.landscapes.reading import Reading
from theodolite.landscapes.readings import read_grid
from theodolite.operators import Hessian
from theodolite.problem import Problem
from theodolite.records import Cost
from theodolite.records.quadratic import HOLDS

NEAREST, STEPS_A_DECADE = 1e-3, 4
ROUNDING = 1e3  # units of rounding that a range must have before a tenth of it is told from noise
FAR = 3 * HOLDS  # no larger distance is read once the model is this far off


@dataclass(frozen=True)
class Model:
    """Derivatives at the centre, and errors of what they predict.

    Args:
        slopes: gᵀd of each direction.
        bends: dᵀHd between them.
        radii: distances.
        errors: within each, as a share of the range of losses there.
        cost: of derivatives and losses.
        notes: what the self-test found.
    """

    slopes: Float[np.ndarray, " k"]
    bends: Float[np.ndarray, "k k"]
    radii: Float[np.ndarray, " r"]
    errors: Float[np.ndarray, " r"]
    cost: Cost
    notes: tuple[str, ...]


def quadratic_model(
    problem: Problem,
    directions: Sequence[Float[Tensor, " n"]],
    *,
    center: Reading,
    asked: Asked,
    reach: float,
) -> Model:
    """L₀ + gᵀδ + ½δᵀHδ along one direction or in a plane, and where it stops being right.

    Cost: one gradient, a Hessian product for each direction, and two losses (on a line) or eight (on a plane) at each of up to
    thirteen distances.

    Args:
        problem: what is surveyed.
        directions: one or two.
        center: reading at θ.
        asked: how losses are read.
        reach: largest distance, in units of the directions; the smallest is a thousandth of it.

    Raises:
        ProblemError: losses are read with other BatchNorm statistics than derivatives.
        DerivativeError: the loss has no second derivatives.
    """
    refuse_other_statistics(problem, asked, option="quadratic=True")
    H, gradient = Hessian(problem), problem.gradient()
    products = [H @ direction for direction in directions]
    slopes = np.array([_dot(gradient, direction) for direction in directions])
    bends = np.array([[_dot(one, product) for product in products] for one in directions])
    bends = (bends + bends.T) / 2
    rays = _rays(len(directions))
    radii: list[float] = []
    errors: list[float] = []
    losses, misses, passes = [center.loss], [0.0], 0
    floor = ROUNDING * float(torch.finfo(problem.dtype).eps) * abs(center.loss)
    exactly = asked.exactly
    for radius in reach * np.logspace(np.log10(NEAREST), 0, round(-np.log10(NEAREST) * STEPS_A_DECADE) + 1):
        places = radius * rays
        readings = read_grid(problem, places, directions, center=center, manner=exactly.manner)
        passes += len(readings)
        found = np.array([reading.loss for reading in readings])
        with np.errstate(invalid="ignore", over="ignore"):  # an explosion is no match
            model = center.loss + places @ slopes + 0.5 * np.einsum("gi,ij,gj->g", places, bends, places)
            losses += found.tolist()
            misses.append(float(np.abs(found - model).max()))
            width = float(np.ptp(losses))
        if width <= floor:
            continue
        radii.append(float(radius))
        errors.append(float(np.max(misses)) / width if np.isfinite(width) else float("inf"))
        if errors[-1] > FAR:
            break
    spent = Cost(gradients=1.0, forwards=float(passes)) + H.cost
    return Model(slopes, bends, np.array(radii), np.array(errors), spent, _self_test(radii, errors))


def _rays(k: int) -> Float[np.ndarray, "g k"]:
    """Both ways along a line, eight ways in a plane."""
    if k == 1:
        return np.array([[-1.0], [1.0]])
    angles = np.arange(8) * np.pi / 4
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _self_test(radii: Sequence[float], errors: Sequence[float]) -> tuple[str, ...]:
    if not errors:
        return ("self-test of the quadratic model: the losses do not differ by more than rounding at any distance",)
    if errors[0] <= HOLDS:
        return ()
    return (
        f"self-test: the quadratic model misses the losses by {errors[0]:.2g} of their range at the distance {radii[0]:.2g}, where "
        "a smooth loss follows it: kinks that derivatives do not see (ReLU), noise between evaluations, or wrong derivatives",
    )


def refuse_other_statistics(problem: Problem, asked: Asked, *, option: str) -> None:
    """What is read with derivatives must be of the function that losses are read of.

    Args:
        problem: whose derivatives are taken.
        asked: how losses are read.
        option: that asks for derivatives, for the message.

    Raises:
        ProblemError: losses are read with other BatchNorm statistics than derivatives.
    """
    wanted = {None: problem.batchnorm, "stored": "stored statistics", "batch": "batch statistics"}.get(
        asked.manner.batchnorm, asked.manner.batchnorm
    )
    if wanted != problem.batchnorm:
        raise ProblemError(
            f"Expected {option} with the BatchNorm statistics of the problem, {problem.batchnorm}, whose derivatives are "
            f"taken, found batchnorm={asked.manner.batchnorm!r}. Make the problem with mode='train' for batch statistics."
        )


def _dot(one: Float[Tensor, " n"], other: Float[Tensor, " n"]) -> float:
    return float(torch.dot(one.double(), other.double()))
