"""The noise of the gradient seen through the curvature: which batch sizes and learning rates pay."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Literal

import torch

from theodolite.errors import ProblemError
from theodolite.measures.arguments import surveyed
from theodolite.measures.combinations import combined_gradients, sign_weights
from theodolite.measures.separable import refuse_mixed_samples
from theodolite.measures.subject import context_of, operator_of
from theodolite.problem import Problem
from theodolite.problem.arguments import whole
from theodolite.problem.finite import refuse_non_finite
from theodolite.records import Cost, CurvedNoise


def curved_noise(
    problem: Problem,
    *,
    probes: int = 8,
    operator: Literal["hessian", "ggn"] = "hessian",
    seed: int = 0,
    step: int | None = None,
) -> CurvedNoise:
    """B_noise = tr(HΣ)/(𝒢ᵀH𝒢), the noise scale that weighs directions by what noise along them costs.

    ``gradients(problem).noise_scale`` is its value for a Hessian in proportion to the identity. No gradient of a single sample
    is formed: random signs weigh the losses of the samples.

    Cost: a gradient and a product for each probe, and one of each more. With ``from_loss`` samples are evaluated one by one,
        unless the batches are those of transformers.

    Args:
        problem: what to survey.
        probes: random combinations of the samples, at least 2 for the error.
        operator: ``"hessian"`` or ``"ggn"``.
        seed: of the signs.
        step: optimiser step, kept in the record.

    Raises:
        ProblemError: there are too few probes or samples.
        OperatorError: something couples the samples, or ranks share the data.

    Example:
        >>> inputs, targets = torch.randn(32, 5), torch.randn(32, 1)
        >>> problem = Problem(nn.Linear(5, 1), nn.MSELoss(), [(inputs, targets)])
        >>> curved_noise(problem, operator="ggn").curvatures.shape
        (8,)

    References:
        McCandlish et al., "An empirical model of large-batch training" (2018).
    """
    started = time.perf_counter()
    surveyed(problem)
    refuse_mixed_samples(problem)
    refuse_non_finite(problem.parameters)
    whole(probes=probes, seed=seed)
    if probes < 2 or problem.samples < 2:
        raise ProblemError(f"Expected two probes and two samples or more, found {probes} and {problem.samples}.")
    H = operator_of(problem, operator)
    combinations = combined_gradients(problem, problem.point(), sign_weights(problem, probes=probes, seed=seed))
    rows = torch.cat([combinations, problem.gradient()[None]])
    curvatures = (rows * (H @ rows.T).T).double().sum(1).cpu().numpy()
    squares = rows.double().square().sum(1).cpu().numpy()
    cost = H.cost + Cost(gradients=probes + 1.0)
    return CurvedNoise(
        step=step,
        cost=replace(cost, seconds=time.perf_counter() - started),
        seed=seed,
        notes=tuple(H.notes),
        context=context_of(problem, H),
        curvatures=curvatures[:-1],
        squares=squares[:-1],
        slope_curvature=float(curvatures[-1]),
        slope_square=float(squares[-1]),
        samples=problem.samples,
        operator=operator,
        size=problem.n,
    )
