"""Directions between checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from theodolite.landscapes.checkpoints import Checkpoint, flat_of
from theodolite.landscapes.directions.drawn import filter_normalised
from theodolite.landscapes.directions.vectors import as_direction, cosine, flat_parameters, length
from theodolite.problem import Problem


@final
@dataclass(frozen=True, eq=False)
class Spanned:
    """A plane through θ and other checkpoints.

    Args:
        directions: orthogonal, of equal length: what looks round in the plane is round in parameter space.
        coordinates: (α, β) of each checkpoint; θ itself is at (0, 0).
    """

    directions: tuple[Float[Tensor, " n"], Float[Tensor, " n"]]
    coordinates: Float[np.ndarray, "k 2"]


def difference(problem: Problem, checkpoint: Checkpoint) -> Float[Tensor, " n"]:
    """θ' − θ: the line along it has the problem's own θ at α = 0 and the checkpoint at α = 1.

    Args:
        problem: at θ.
        checkpoint: in any form that ``at_checkpoint`` takes; its buffers and parameters that are not surveyed play no part.

    Raises:
        CheckpointError: it does not fit the model.
        ProblemError: it is where θ is.
    """
    there = torch.from_numpy(np.array(flat_of(problem, checkpoint))).to(problem.device, problem.dtype)
    return as_direction(there - flat_parameters(problem), problem)


def spanning(problem: Problem, first: Checkpoint, second: Checkpoint | None = None, *, seed: int = 0) -> Spanned:
    """The plane through θ and one or two other checkpoints.

    Args:
        problem: at θ.
        first: at (1, 0).
        second: on the side of positive β; without it a filter-normalised random direction, orthogonal to the first, is the other
            axis.
        seed: of that direction.

    Returns:
        Directions, and where the checkpoints lie in them.

    Raises:
        CheckpointError: a checkpoint does not fit the model.
        ProblemError: all lie on one line.

    Example:
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> problem = Problem(model, torch.nn.MSELoss(), [(torch.randn(8, 2), torch.randn(8, 1))])
        >>> theta = model.weight.detach().reshape(-1)
        >>> found = spanning(problem, theta + torch.tensor([2.0, 0.0]), theta + torch.tensor([1.0, 1.0]))
        >>> found.coordinates.round(6).tolist()
        [[1.0, 0.0], [0.5, 0.5]]

    References:
        Garipov, Izmailov, Podoprikhin, Vetrov & Wilson, "Loss surfaces, mode connectivity, and fast ensembling of DNNs" (2018).
    """
    along = difference(problem, first)
    other = (
        filter_normalised(problem, seed=seed, one_dimensional="whole")
        if second is None
        else difference(problem, second)
    )
    size, unit = length(along), along.double() / length(along)
    cosine(along, other)
    share = float(torch.dot(unit, other.double()))
    across = other.double() - share * unit
    height = float(torch.linalg.vector_norm(across))
    across = across - torch.dot(unit, across) * unit
    coordinates = [(1.0, 0.0)] if second is None else [(1.0, 0.0), (share / size, height / size)]
    direction = as_direction(across * (size / float(torch.linalg.vector_norm(across))), problem)
    return Spanned((along, direction), np.array(coordinates))
