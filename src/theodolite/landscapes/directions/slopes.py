"""Directions of the gradient."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from theodolite.errors import ProblemError
from theodolite.landscapes.directions.vectors import flat_parameters, length
from theodolite.problem import Problem


def gradient(problem: Problem) -> Float[Tensor, " n"]:
    """The gradient of the loss, uphill, at its own length.

    Cost: one gradient.

    Raises:
        NonFiniteError: the loss is NaN or infinite.
    """
    return problem.gradient()


def ascent(problem: Problem, *, rho: float = 0.05, adaptive: bool = False, eta: float = 0.01) -> Float[Tensor, " n"]:
    """The displacement at which sharpness-aware minimisation takes its gradient; the line along it has that loss at α = 1.

    Cost: one gradient.

    Args:
        problem: where.
        rho: ‖ε‖, or ‖T⁻¹ε‖ with ``adaptive``.
        adaptive: ρ·T²g/‖Tg‖ with T = |θ| + η, which is blind to rescaled layers, instead of ρ·g/‖g‖.
        eta: η, which lets zero weights move; 0 for exact invariance.

    Raises:
        ProblemError: rho is not positive, or the gradient is zero.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(3, 1)
        >>> problem = Problem(model, torch.nn.MSELoss(), [(torch.randn(8, 3), torch.randn(8, 1))])
        >>> round(float(ascent(problem, rho=0.1).norm()), 6)
        0.1

    References:
        Foret, Kleiner, Mobahi & Neyshabur, "Sharpness-aware minimization for efficiently improving generalization" (2021).
        Kwon, Kim, Park & Choi, "ASAM: adaptive sharpness-aware minimization" (2021).
    """
    if not 0 < rho < float("inf"):
        raise ProblemError(f"Expected rho to be positive and finite, found {rho}.")
    g = problem.gradient()
    scale = flat_parameters(problem).abs() + eta if adaptive else 1.0
    size = length(scale * g)
    if not size > 0:
        raise ProblemError(
            "Expected a gradient that is not zero to ascend along, found zeros: at a stationary point SAM does not move."
        )
    return (rho / size) * (scale * scale * g)
