"""Random combinations of the gradients of samples, whose outer products have the covariance of the gradients as their mean."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from theodolite.problem import Chunk, Point, Problem


def sign_weights(problem: Problem, *, probes: int, seed: int) -> Float[Tensor, "k i"]:
    """Weights of the samples' shares of the loss: with ε = ±1 they add up to z = Σ(ε_i − ε̄)g_i/√(N − 1), so that E zzᵀ = Σ.

    Cost: a forward pass.

    Args:
        problem: of at least two samples, which must not be coupled.
        probes: combinations, one a row.
        seed: of the signs.
    """
    signs = torch.from_numpy(np.random.default_rng(seed).choice([-1.0, 1.0], size=(probes, problem.samples)))
    # g_i = N·∇share_i/W, so that their mean is the gradient of the problem.
    scale = problem.samples / problem.total_weight(problem.totals()[1]) / (problem.samples - 1) ** 0.5
    weights: Tensor = scale * (signs - signs.mean(1, keepdim=True))
    return weights


def combined_gradients(problem: Problem, point: Point, weights: Float[Tensor, "k i"]) -> Float[Tensor, "k n"]:
    """Σ w_i ∇share_i for every row of weights, without the gradient of any single sample.

    Cost: a gradient for each row.
    """
    found, done = torch.zeros(len(weights), problem.n, dtype=problem.dtype, device=problem.device), 0

    def pull(model: nn.Module, chunk: Chunk, mine: Tensor) -> Tensor:
        shares = problem.objective.shares(model, chunk.batch)
        rows = [
            torch.autograd.grad(shares, point.leaves, row.to(shares), retain_graph=True, materialize_grads=True)
            for row in mine
        ]
        return torch.stack([problem.layout.flatten(row) for row in rows])

    with problem.session():
        for chunk in problem.chunks():
            mine = weights[:, done : done + chunk.samples]
            found += problem.call(partial(pull, chunk=chunk, mine=mine), point, chunk=chunk.index)
            done += chunk.samples
    return found
