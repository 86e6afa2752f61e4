"""What stochastic gradient descent does to the gap between test and training loss, from the noise of its gradient."""

from __future__ import annotations

import time
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from theodolite.errors import ProblemError
from theodolite.measures.arguments import surveyed
from theodolite.measures.combinations import combined_gradients, sign_weights
from theodolite.measures.separable import refuse_mixed_samples
from theodolite.problem import Chunk, Point, Problem
from theodolite.problem.arguments import whole
from theodolite.problem.problem import gradients
from theodolite.records import Cost, GapChange


def gap_change(problem: Problem, *, probes: int = 16, seed: int = 0, step: int | None = None) -> GapChange:
    """tr Σ, ½⟨𝒢, ∇tr Σ⟩ and tr(HΣ) of per-sample gradients, which the gap to the test loss follows from.

    Samples are combined with random signs, z = Σ(ε_i − ε̄)g_i/√(N − 1), so that E zzᵀ = Σ; and ½∇‖z‖² = Σ(ε_i − ε̄)H_iz/√(N − 1)
    has ½∇tr Σ as its mean, which takes no gradient of a single sample.

    Cost: for each probe a gradient and two products; a gradient more.

    Args:
        problem: what to survey; its samples must not be coupled.
        probes: random combinations of the samples, at least 2 for the error.
        seed: of the signs.
        step: optimiser step, kept in the record.

    Raises:
        ProblemError: there are too few probes or samples, or an argument is of the wrong type.
        OperatorError: samples are coupled, or ranks share the data.

    Example:
        >>> inputs = torch.randn(64, 5)
        >>> problem = Problem(nn.Linear(5, 1), nn.MSELoss(), [(inputs, inputs.sum(1, keepdim=True))])
        >>> gap_change(problem).gap_rate(0.1, batch=8).value > 0
        True

    References:
        Roberts, "SGD implicitly regularizes generalization error" (2021).
    """
    started = time.perf_counter()
    surveyed(problem)
    refuse_mixed_samples(problem)
    whole(probes=probes, seed=seed)
    if probes < 2 or problem.samples < 2:
        raise ProblemError(f"Expected two probes and two samples or more, found {probes} and {problem.samples}.")
    weights = sign_weights(problem, probes=probes, seed=seed)
    point, mean = problem.point(), problem.gradient()
    rows = combined_gradients(problem, point, weights)
    curved, slopes = _second(problem, point, weights, rows, mean)
    return GapChange(
        step=step,
        cost=Cost(products=2.0 * probes, gradients=probes + 1.0, seconds=time.perf_counter() - started),
        seed=seed,
        context=problem.context(),
        squares=rows.double().square().sum(1).cpu().numpy(),
        curvatures=(curved.double() * rows.double()).sum(1).cpu().numpy(),
        slopes=slopes.cpu().numpy(),
        gradient_square=float(mean.double().square().sum()),
        samples=problem.samples,
        size=problem.n,
    )


def _second(
    problem: Problem, point: Point, weights: Float[Tensor, "k i"], rows: Float[Tensor, "k n"], mean: Float[Tensor, " n"]
) -> tuple[Float[Tensor, "k n"], Float[Tensor, " k"]]:
    """Hz for every combination z, and 𝒢ᵀ(Σ w_i H_i)z."""
    products, slopes, done = torch.zeros_like(rows), torch.zeros(len(rows), dtype=torch.float64), 0
    divisor = problem.total_weight(problem.totals()[1])

    def differentiate(model: nn.Module, chunk: Chunk, mine: Tensor) -> tuple[Tensor, Tensor]:
        shares = problem.objective.shares(model, chunk.batch)
        whole = gradients(shares.sum(), point.leaves, create_graph=True)
        curved, along = [], []
        for row, z in zip(mine, rows, strict=True):
            parts = problem.layout.unflatten(z)
            slope = torch.stack([(g * part).sum() for g, part in zip(whole, parts, strict=True)]).sum()
            curved.append(problem.layout.flatten(_again(slope, point.leaves)))
            combined = gradients(torch.dot(row.to(shares), shares), point.leaves, create_graph=True)
            slope = torch.stack([(g * part).sum() for g, part in zip(combined, parts, strict=True)]).sum()
            along.append(problem.layout.flatten(_again(slope, point.leaves)).double() @ mean.double())
        return torch.stack(curved), torch.stack(along)

    with problem.session():
        for chunk in problem.chunks():
            mine = weights[:, done : done + chunk.samples]
            curved, along = problem.call(partial(differentiate, chunk=chunk, mine=mine), point, chunk=chunk.index)
            products += curved / divisor
            slopes += along.cpu()
            done += chunk.samples
    return products, slopes


def _again(slope: Tensor, leaves: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Second derivatives, zero where the first do not depend on the parameters."""
    if not slope.requires_grad:
        return tuple(torch.zeros_like(leaf) for leaf in leaves)
    return torch.autograd.grad(slope, leaves, retain_graph=True, materialize_grads=True)
