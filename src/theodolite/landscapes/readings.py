"""The loss at many points, each read from θ afresh on the same samples, and its error from the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from theodolite.problem import Point, Problem

OnPoint = Callable[[int, int], None]


@dataclass(frozen=True)
class Reading:
    """The loss at one point.

    Args:
        loss: Σ totals / divisor.
        totals: of each chunk of the data.
        weights: of each chunk.
        divisor: Σ weights, 1 for a criterion that sums.
    """

    loss: float
    totals: Float[np.ndarray, " c"]
    weights: Float[np.ndarray, " c"]
    divisor: float

    @property
    def deviations(self) -> Float[np.ndarray, " c"]:
        """The loss that each chunk alone stands for, less the loss of all; NaN for a chunk without weight."""
        scale = self.weights.sum() / self.divisor
        return np.asarray(self.totals / self.weights * scale - self.loss)


def read(problem: Problem, point: Point) -> Reading:
    """The loss at a point.

    Cost: one forward pass.
    """
    totals, weights = problem.totals(point)
    divisor = problem.total_weight(weights)
    return Reading(float(totals.sum()) / divisor, totals.numpy(), weights.numpy(), divisor)


def read_grid(
    problem: Problem,
    coordinates: Float[np.ndarray, "g k"],
    directions: Sequence[Float[Tensor, " n"]],
    *,
    center: Reading,
    on_point: OnPoint | None = None,
) -> list[Reading]:
    """The loss at θ + Σ coordinates · directions, one reading a row of coordinates, in their order.

    Cost: one forward pass a row; none for a row of zeros, which is the centre itself, bit for bit.

    Args:
        problem: what is evaluated; its model is not written to.
        coordinates: a list of points rather than a grid, so that they can be cut, divided and resumed.
        directions: k of them.
        center: reading at θ.
        on_point: called after every point with the number done and the number of all.
    """
    axes = [problem.layout.unflatten(direction) for direction in directions]
    readings = []
    for done, position in enumerate(coordinates, start=1):
        at_center = not position.any()
        readings.append(center if at_center else read(problem, _displaced(problem, axes, position.tolist())))
        if on_point is not None:
            on_point(done, len(coordinates))
    return readings


def at_parameters(problem: Problem, flat: Float[Tensor, " n"]) -> Point:
    """The point with other values of the selected parameters."""
    leaves = problem.point().leaves
    parts = problem.layout.unflatten(flat)
    return problem.displaced(tuple(part.to(leaf.dtype) for part, leaf in zip(parts, leaves, strict=True)))


def stderrs(readings: Sequence[Reading], *, center: Reading) -> Float[np.ndarray, " g"]:
    """Standard errors of loss − loss at the centre as estimates for what the data are a sample of.

    The jackknife that leaves out one chunk at a time, for chunks of unequal weight: with θ₍c₎ the loss without chunk c
    and h = W/w_c, the pseudo-value hθ − (h−1)θ₍c₎ of the ratio θ = Σt/Σw is t_c/w_c, the mean of the chunk, and
    var θ = 1/C Σ (t_c/w_c − θ)²/(h_c − 1). For equal weights this is the usual (C−1)/C Σ (θ₍c₎ − mean)². That form is
    wrong where the last batch is small: weights 1000 and 1 make it five hundred times too large.

    Args:
        readings: at the points.
        center: at θ, on the same chunks.

    Returns:
        One for each reading: 0 at the centre, NaN where a loss is not finite or the data are a single chunk.

    References:
        Busing, Meijer & van der Leeden, "Delete-m jackknife for unequal m" (1999).
    """
    counted = center.weights > 0
    weights = center.weights[counted]
    if weights.size < 2:
        return np.full(len(readings), np.nan)
    factors = weights / (weights.sum() - weights) / weights.size
    with np.errstate(all="ignore"):  # NaN and infinity are readings
        rises = np.stack([(reading.deviations - center.deviations)[counted] for reading in readings])
        return np.asarray(np.sqrt(np.square(rises) @ factors))


@torch.no_grad()
def _displaced(problem: Problem, axes: Sequence[tuple[Tensor, ...]], position: Sequence[float]) -> Point:
    """θ + Σ position · axes. Every parameter gets memory of its own: kernels are slower on views that are not aligned."""
    leaves = tuple(leaf.detach().clone() for leaf in problem.point().leaves)
    for axis, scale in zip(axes, position, strict=True):
        for leaf, part in zip(leaves, axis, strict=True):
            leaf.add_(part, alpha=scale)
    return problem.displaced(leaves)
