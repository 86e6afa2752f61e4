"""The loss at many points, each read from θ afresh on the same samples, and its error from the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from theodolite.problem import Point, Problem
from theodolite.records.jackknife import jackknife_stderr

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
    def left_out(self) -> Float[np.ndarray, " c"]:
        """The loss without each chunk, whose share of the weight its divisor lacks; NaN where nothing else weighs."""
        whole = self.weights.sum()
        with np.errstate(all="ignore"):  # NaN and infinity are readings
            return np.asarray((self.totals.sum() - self.totals) / ((whole - self.weights) / whole * self.divisor))


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

    The jackknife over chunks of unequal weight, of the rise: the same chunk is left out at both places.

    Args:
        readings: at the points.
        center: at θ, on the same chunks.

    Returns:
        One for each reading: 0 at the centre, NaN where a loss is not finite or the data are a single chunk.

    References:
        Busing, Meijer & van der Leeden, "Delete-m jackknife for unequal m" (1999).
    """
    with np.errstate(invalid="ignore"):  # infinity − infinity is a reading, NaN
        left_out = np.stack([reading.left_out - center.left_out for reading in readings], axis=1)
        whole = np.array([reading.loss - center.loss for reading in readings])
    return jackknife_stderr(left_out, whole=whole, weights=center.weights)


@torch.no_grad()
def _displaced(problem: Problem, axes: Sequence[tuple[Tensor, ...]], position: Sequence[float]) -> Point:
    """θ + Σ position · axes. Every parameter gets memory of its own: kernels are slower on views that are not aligned."""
    leaves = tuple(leaf.detach().clone() for leaf in problem.point().leaves)
    for axis, scale in zip(axes, position, strict=True):
        for leaf, part in zip(leaves, axis, strict=True):
            leaf.add_(part, alpha=scale)
    return problem.displaced(leaves)
