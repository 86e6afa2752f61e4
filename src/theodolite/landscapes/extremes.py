"""The largest and smallest eigenvalue of the Hessian at points of a line or plane."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from theodolite.errors import NonFiniteError
from theodolite.landscapes.sweep import Move, assign
from theodolite.linalg import lanczos
from theodolite.operators import Hessian
from theodolite.problem import Problem
from theodolite.problem.copies import on_copy
from theodolite.records import Cost

TOL = 1e-2


@dataclass(frozen=True)
class Extremes:
    """Extreme eigenvalues over points.

    Args:
        largest: NaN where the loss has no derivatives.
        smallest: the same.
        residual: the largest relative one.
        cost: products.
    """

    largest: Float[np.ndarray, " g"]
    smallest: Float[np.ndarray, " g"]
    residual: float
    cost: Cost


def extremes(
    problem: Problem,
    coordinates: Float[np.ndarray, "g k"],
    directions: Sequence[Float[Tensor, " n"]],
    *,
    seed: int,
) -> Extremes:
    """λ_max and λ_min of the Hessian at θ + Σ coordinates · directions, to a relative residual of 1 %.

    Each search starts from the eigenvectors of the point before, so that neighbours are best given in a row.

    Cost: some 20 to 40 Hessian products a point, and a copy of the model.
    """
    twin = on_copy(problem)
    base = [leaf.detach().clone() for leaf in problem.point().leaves]
    axes = [problem.layout.unflatten(direction) for direction in directions]
    named = dict(twin.model.named_parameters())
    weights = [named[name] for name in twin.layout.names]
    found: list[tuple[float, float]] = []
    residual, cost = 0.0, Cost()
    starts: dict[str, Tensor | None] = {"largest": None, "smallest": None}
    for position in coordinates.tolist():
        with torch.no_grad():
            moved = [torch.empty_like(part) for part in base]
            Move(base, axes, position)(moved)
            assign(weights, moved)
        pair = []
        for which in ("largest", "smallest"):
            H = Hessian(twin)
            try:
                pairs = lanczos(H, k=1, which=which, tol=TOL, seed=seed, start=starts[which])
            except NonFiniteError:
                pair.append(math.nan)
                continue
            starts[which] = pairs.vectors
            residual = max(residual, float(pairs.residuals[0]))
            pair.append(float(pairs.values[0]))
            cost += H.cost
        found.append((pair[0], pair[1]))
    values = np.array(found)
    return Extremes(values[:, 0], values[:, 1], residual, replace(cost, seconds=0.0))


def coarse(size: int, count: int) -> Int[np.ndarray, " c"]:
    """Indices of both ends and of evenly spaced positions between them."""
    return np.unique(np.round(np.linspace(0, size - 1, min(count, size))).astype(int))
