"""What a direction must be, and what is known of one or two."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from theodolite.errors import NonFiniteError, ProblemError
from theodolite.problem import Problem

PARALLEL = 1e-6  # sine of the angle below which two directions in single precision are one


def as_direction(direction: Tensor | np.ndarray, problem: Problem, *, allow_zero: bool = False) -> Float[Tensor, " n"]:
    """Check a vector and bring it to the dtype and device of the problem.

    Args:
        direction: n numbers, in the order of ``named_parameters()``.
        problem: whose parameters they displace.
        allow_zero: let zeros pass.

    Raises:
        ProblemError: it has another length, or is zero.
        NonFiniteError: it has entries that are not finite.
    """
    # A read-only array, as records hold them, cannot be shared with torch: copy it.
    given = torch.from_numpy(np.array(direction)) if isinstance(direction, np.ndarray) else direction.detach()
    if tuple(given.shape) != (problem.n,):
        raise ProblemError(
            f"Expected a direction of shape ({problem.n},), one number for each selected parameter in the order of "
            f"named_parameters(), found {tuple(given.shape)}. Flatten it with problem.layout.flatten."
        )
    vector = given.to(problem.device, problem.dtype)
    lost = int((~torch.isfinite(vector)).sum())
    if lost:
        raise NonFiniteError(f"Expected a finite direction, found {lost} of {problem.n} entries NaN or infinite.")
    if not allow_zero and not bool(vector.any()):
        raise ProblemError(
            "Expected a direction that is not zero, found zeros. A filter-normalised direction is zero where all selected "
            "parameters are one-dimensional (biases, norm weights) or zero themselves; use filter_normalised(..., "
            "one_dimensional='whole') or directions='gaussian'."
        )
    return vector


def flat_parameters(problem: Problem) -> Float[Tensor, " n"]:
    """θ, flattened.

    Raises:
        NonFiniteError: training has diverged.
    """
    flat = problem.layout.flatten([leaf.detach() for leaf in problem.point().leaves])
    lost = int((~torch.isfinite(flat)).sum())
    if lost:
        raise NonFiniteError(
            f"Expected finite parameters at the centre, found {lost} of {problem.n} NaN or infinite. Training has "
            "diverged; survey an earlier checkpoint."
        )
    return flat


def cosine(first: Float[Tensor, " n"], second: Float[Tensor, " n"]) -> float:
    """Cosine between two directions, in double precision.

    Raises:
        ProblemError: they are parallel.
    """
    units = [direction.double() / length(direction) for direction in (first, second)]
    found = float(torch.dot(*units))
    if float(torch.linalg.vector_norm(units[1] - found * units[0])) < PARALLEL:
        raise ProblemError(
            f"Expected two directions that span a plane, found them parallel (cosine {found:.9g}). Use line(), or give "
            "another second direction."
        )
    return found


def length(direction: Float[Tensor, " n"]) -> float:
    """‖d‖ in double precision."""
    return float(torch.linalg.vector_norm(direction, dtype=torch.float64))


def one_of(name: str, value: object, allowed: Sequence[object]) -> None:
    """Refuse an option that is not known.

    Raises:
        ProblemError: it is not.
    """
    if value not in allowed:
        raise ProblemError(f"Expected {name} to be one of {', '.join(map(repr, allowed))}, found {value!r}.")
