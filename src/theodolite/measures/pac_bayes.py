"""The gradient-norm term of a PAC-Bayes bound: how far the loss moves with its inputs, over draws of a prior."""

from __future__ import annotations

import time

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from theodolite.errors import ProblemError
from theodolite.measures.arguments import surveyed
from theodolite.measures.inputs import at_inputs, refuse_inputs
from theodolite.operators.input_hessian import differentiable
from theodolite.problem import Point, Problem
from theodolite.problem.arguments import optional, real, whole
from theodolite.records import Cost, PacBayes


def gradient_norm_term(
    problem: Problem,
    *,
    noise: float,
    temperature: float | None = None,
    prior_scale: float = 0.0,
    centre: Float[Tensor, " n"] | None = None,
    draws: int = 16,
    nodes: int = 20,
    seed: int = 0,
    step: int | None = None,
) -> PacBayes:
    """C ≤ ln E_w exp((σ_x²λ/2)·∫₀^{λ/m} E_x[‖∇_xℓ‖²e^{−αℓ}]/M(α) dα) with M(α) = E_x e^{−αℓ}, the part of a bound that data adds.

    By the log-Sobolev inequality of inputs that are Gaussian of variance σ_x² around something; exact for a loss that is linear in
    them, twice too large for a quadratic one as λ goes to 0.

    Cost: a gradient in the inputs for each draw, and a forward pass.

    Args:
        problem: with a criterion and floating-point inputs; its m samples must not be coupled.
        noise: σ_x, local standard deviation of the inputs.
        temperature: λ; m by default, √m is the other usual choice.
        prior_scale: standard deviation of the Gaussian prior around its centre; 0 is the centre alone, one draw.
        centre: flat; the current parameters by default, which must then not depend on the data (an initialisation).
        draws: of the parameters.
        nodes: of the trapezoidal rule in α.
        seed: of the draws.
        step: optimiser step, kept in the record.

    Raises:
        ProblemError: an option makes no sense.
        OperatorError: samples are coupled, outputs are not known, or the inputs are tokens.

    Example:
        >>> inputs = torch.randn(50, 3)
        >>> problem = Problem(torch.nn.Linear(3, 1), torch.nn.MSELoss(), [(inputs, inputs.sum(1, keepdim=True))])
        >>> gradient_norm_term(problem, noise=0.1, prior_scale=0.1, draws=4).exponents.shape
        (4,)

    References:
        Gat et al., "On the importance of gradient norm in PAC-Bayesian bounds" (2022).
    """
    started = time.perf_counter()
    surveyed(problem)
    refuse_inputs(problem, "loss")
    real(noise=noise, prior_scale=prior_scale)
    optional(real, temperature=temperature)
    whole(draws=draws, nodes=nodes, seed=seed)
    wanted = problem.samples if temperature is None else temperature
    if not noise >= 0 or not wanted > 0 or not prior_scale >= 0 or draws < 1 or nodes < 2:
        raise ProblemError(
            f"Expected noise and prior_scale of at least 0, a positive temperature, a draw and two nodes, found noise={noise}, "
            f"prior_scale={prior_scale}, temperature={wanted}, draws={draws}, nodes={nodes}."
        )
    if centre is not None and centre.shape != (problem.n,):
        raise ProblemError(
            f"Expected a centre of {problem.n:,} numbers, one for each parameter in the order of named_parameters(), found shape "
            f"{tuple(centre.shape)}."
        )
    here = problem.layout.flatten(problem.point().leaves).detach() if centre is None else centre.to(problem.device)
    generator = torch.Generator().manual_seed(seed)
    exponents, squares, losses = [], [], []
    for _ in range(draws if prior_scale > 0 else 1):
        moved = here + prior_scale * torch.randn(problem.n, generator=generator, dtype=torch.float64).to(here)
        loss, square = _readings(problem, _at(problem, moved))
        alphas = np.linspace(0.0, wanted / problem.samples, nodes)
        exponents.append(0.5 * noise**2 * wanted * np.trapezoid(_tilted(loss, square, alphas), alphas))
        squares.append(square.mean())
        losses.append(loss.mean())
    return PacBayes(
        step=step,
        cost=Cost(gradients=float(len(losses)), forwards=float(len(losses)), seconds=time.perf_counter() - started),
        seed=seed if prior_scale > 0 else None,
        context=problem.context(),
        exponents=np.array(exponents),
        gradient_squares=np.array(squares),
        losses=np.array(losses),
        temperature=float(wanted),
        noise=noise,
        samples=problem.samples,
        prior_scale=prior_scale,
    )


def _at(problem: Problem, flat: Float[Tensor, " n"]) -> Point:
    return problem.displaced(
        tuple(part.to(problem.dtype).clone().requires_grad_() for part in problem.layout.unflatten(flat))
    )


def _readings(problem: Problem, point: Point) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Loss and squared norm of its gradient in the inputs of every sample."""
    values, squares = [], []
    with problem.session():
        for chunk in problem.chunks():
            loss, rows = at_inputs(problem, chunk, point, of="loss", inputs=differentiable(chunk))
            values.append(loss.double().cpu())
            squares.append(rows.double().square().sum(1).cpu())
        scale = problem.samples / problem.total_weight(problem.totals(point)[1])
    return (scale * torch.cat(values)).numpy(), (scale**2 * torch.cat(squares)).numpy()


def _tilted(
    losses: Float[np.ndarray, " m"], squares: Float[np.ndarray, " m"], alphas: Float[np.ndarray, " a"]
) -> Float[np.ndarray, " a"]:
    """E[‖∇ℓ‖²e^{−αℓ}]/E[e^{−αℓ}] for every α, without overflow."""
    exponents = -np.multiply.outer(alphas, losses)
    weights = np.exp(exponents - exponents.max(axis=1, keepdims=True))
    return np.asarray((weights * squares).sum(axis=1) / weights.sum(axis=1))
