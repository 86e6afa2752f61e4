"""Loss and gradient at points displaced from θ, on the same samples, and the error of what changes from the data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from theodolite.problem import Point, Problem
from theodolite.records.jackknife import jackknife_stderr, means_without


@final
@dataclass(frozen=True, eq=False)
class ChunkMeans:
    """Quantities that add up over the chunks of the data, and the means over the data that they make.

    Args:
        totals: the sum of each chunk, along the first axis.
        weights: of each chunk.
        divisor: what the sum of all is divided by: the summed weights, 1 for a criterion that sums.
    """

    totals: Float[np.ndarray, "c *shape"]
    weights: Float[np.ndarray, " c"]
    divisor: float

    @property
    def value(self) -> Float[np.ndarray, "*shape"]:
        """The mean over the data."""
        with np.errstate(all="ignore"):  # NaN and infinity are readings
            return np.asarray(self.totals.sum(axis=0) / self.divisor)

    @property
    def left_out(self) -> Float[np.ndarray, "c *shape"]:
        """The mean without each chunk."""
        return means_without(self.totals, weights=self.weights, divisor=self.divisor)

    @property
    def stderr(self) -> Float[np.ndarray, "*shape"]:
        """Standard error of the mean (jackknife over chunks), NaN with a single chunk."""
        return self.error_of(lambda values: values)

    def error_of(self, function: Callable[[np.ndarray], np.ndarray]) -> Float[np.ndarray, "*any"]:
        """Standard error of a function of the mean, taken along the last axes of its argument."""
        with np.errstate(all="ignore"):
            return jackknife_stderr(
                function(self.left_out), whole=np.asarray(function(self.value)), weights=self.weights
            )

    def __sub__(self, other: ChunkMeans) -> ChunkMeans:
        """The change from another point, chunk by chunk, which has a smaller error than either."""
        with np.errstate(all="ignore"):
            return ChunkMeans(self.totals - other.totals, self.weights, self.divisor)


def displaced(problem: Problem, displacement: Float[Tensor, " n"] | None) -> Point:
    """The point θ + displacement; θ itself for None."""
    if displacement is None:
        return problem.point()
    parts = problem.layout.unflatten(displacement)
    leaves = problem.point().leaves
    with torch.no_grad():
        moved = tuple(leaf.detach() + part.to(leaf) for leaf, part in zip(leaves, parts, strict=True))
    return problem.displaced(tuple(leaf.requires_grad_() for leaf in moved))


def loss_at(problem: Problem, displacement: Float[Tensor, " n"] | None = None) -> ChunkMeans:
    """The loss at θ + displacement.

    Cost: one forward pass.
    """
    totals, weights = problem.totals(displaced(problem, displacement))
    return ChunkMeans(totals.numpy(), weights.numpy(), problem.total_weight(weights))


def gradient_at(
    problem: Problem,
    displacement: Float[Tensor, " n"] | None = None,
    *,
    along: Float[Tensor, "k n"] | None = None,
) -> tuple[ChunkMeans, Float[Tensor, " n"], ChunkMeans]:
    """The loss at θ + displacement, its gradient, and its slopes along given directions.

    Cost: one gradient.

    Args:
        problem: what to differentiate.
        displacement: from θ; None for θ itself.
        along: directions, one a row.

    Returns:
        Loss; gradient, not finite where the loss is not; the k slopes, none without directions.
    """
    point = displaced(problem, displacement)
    wide = torch.promote_types(problem.dtype, torch.float32)
    summed = torch.zeros(problem.n, dtype=wide, device=problem.device)
    rows = torch.zeros(0, problem.n, dtype=torch.float64, device=problem.device) if along is None else along.double()
    readings = []
    with problem.together("a gradient", at=point, vectors=along):
        for _, total, weight, part in problem.chunk_gradients(point):
            summed += part
            readings.append([float(total), weight, *(rows @ part.double()).tolist()])
    joined = problem.ranks.join(torch.tensor(readings, dtype=torch.float64))
    totals, weights, slopes = joined[:, 0].numpy(), joined[:, 1].numpy(), joined[:, 2:].numpy()
    divisor = problem.total_weight(joined[:, 1])
    gradient = (problem.ranks.sum(summed) / divisor).to(problem.dtype)
    return ChunkMeans(totals, weights, divisor), gradient, ChunkMeans(slopes, weights, divisor)


def context_with_chunks(problem: Problem, means: ChunkMeans) -> dict[str, Any]:
    """What a record says of its problem, with the chunks that its errors are taken over."""
    return problem.context() | {"chunks": int((means.weights > 0).sum())}
