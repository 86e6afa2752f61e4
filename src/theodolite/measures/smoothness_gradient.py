"""The two gradients that sharpness-aware training adds up: that of the loss, and what a step to its worst neighbour adds."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from theodolite.errors import NonFiniteError, ProblemError
from theodolite.measures.arguments import surveyed
from theodolite.measures.excursions import gradient_at
from theodolite.problem import Problem
from theodolite.problem.arguments import real
from theodolite.problem.finite import non_finite_loss


def smoothness_gradient(problem: Problem, *, radius: float = 0.05) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Gradient g of the loss, and g(θ + ρg/‖g‖) − g: the smoothness part of SAM's gradient.

    Gathered over steps of training, their entries at the scales of a quantiser make a ``SignFlips`` record.

    Cost: two gradients.

    Args:
        problem: what to differentiate.
        radius: ρ.

    Returns:
        Both, flat; the second is zero where the first is.

    Raises:
        ProblemError: the radius is no positive number.
        NonFiniteError: the loss or a gradient is not finite.

    Example:
        >>> model = torch.nn.Linear(3, 1)
        >>> problem = Problem(model, torch.nn.MSELoss(), [(torch.randn(8, 3), torch.randn(8, 1))])
        >>> [part.shape for part in smoothness_gradient(problem)]
        [torch.Size([4]), torch.Size([4])]

    References:
        Foret et al., "Sharpness-aware minimization for efficiently improving generalization" (2021).
    """
    surveyed(problem)
    real(radius=radius)
    if not radius > 0:
        raise ProblemError(f"Expected a positive radius, found {radius}.")
    loss, task, _ = gradient_at(problem)
    norm = float(task.double().norm())
    if not math.isfinite(loss.value):
        raise non_finite_loss(float(loss.value), parameters=problem.parameters)
    if not math.isfinite(norm):
        raise NonFiniteError(
            "Expected a finite gradient of a finite loss, found NaN or infinity. Check the model for a square root at 0."
        )
    if norm == 0:
        return task, torch.zeros_like(task)
    _, there, _ = gradient_at(problem, task * (radius / norm))
    if not bool(torch.isfinite(there).all()):
        raise NonFiniteError(
            f"Expected finite gradients at θ and {radius:g} from it along the gradient, found NaN or infinity. Use a smaller "
            "radius."
        )
    return task, there - task
