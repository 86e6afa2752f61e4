"""The covariance of per-sample gradients, uncentred (also called the empirical Fisher) or about their mean."""

from __future__ import annotations

from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from theodolite.errors import OperatorError
from theodolite.operators.graphs import Graph, SandwichGraph
from theodolite.operators.problem_operator import ProblemOperator
from theodolite.operators.subject import refuse_no_problem
from theodolite.problem import Chunk, Point, Problem

Same = TypeVar("Same", bound="GradientCovariance")


class GradientCovariance(ProblemOperator):
    """C = (1/N) Σ g_i g_iᵀ, with per-sample gradients scaled so that their mean is the gradient of the problem.

    Centred it is C − ∇L ∇Lᵀ = (1/N) Σ (g_i − ∇L)(g_i − ∇L)ᵀ, the noise of a batch of one sample. Positive semi-definite, of
    rank at most N, centred N − 1. A sample is an entry of the batch dimension: the tokens of a sequence are summed.

    Cost: a product takes about 1.5 to 3 gradients on kept graphs; centred one gradient more at each point.

    Args:
        problem: what to differentiate; its samples must not be coupled by BatchNorm on batch statistics.
        centered: about the mean gradient instead of about zero.

    Raises:
        OperatorError: per-sample gradients are not defined.

    References:
        Kunstner, Balles, Hennig, "Limitations of the empirical Fisher approximation" (2019).
    """

    name = "gradient covariance"

    def __init__(self, problem: Problem, *, centered: bool = False) -> None:
        refuse_coupled_samples(problem)
        super().__init__(problem)
        self.centered = centered
        self._mean_gradient: Tensor | None = None
        self._mean_version: tuple[object, ...] | None = None

    def by_chunk(
        self, V: Float[Tensor, "n k"]
    ) -> tuple[Float[Tensor, "n k"], Float[Tensor, "c k"], Float[Tensor, " c"]]:
        products, left_out, weights = super().by_chunk(V)
        if not self.centered:
            return products, left_out, weights
        with self.problem.together("slopes of the chunks", vectors=V):
            # The chunks that the products were taken on, which are pieces of batches where those do not fit into memory.
            gradients = self.problem.chunk_gradients(at_most=self._at_most())
            slopes = torch.stack([part @ V for _, _, _, part in gradients]).double()
        slopes = self.problem.ranks.join(slopes)
        # Without a chunk the mean gradient is that of the others, over their share of the denominator.
        left = (weights.sum() - weights) * self.problem.total_weight(weights) / weights.sum()
        means = (slopes.sum(0) - slopes) / left.to(slopes.device)[:, None]
        return self._about_the_mean(products, V), left_out - means.square(), weights

    def _matmat(self, V: Float[Tensor, "n k"]) -> Float[Tensor, "m k"]:
        product = super()._matmat(V)
        return self._about_the_mean(product, V) if self.centered else product

    def _about_the_mean(self, product: Float[Tensor, "n k"], V: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        version = self.problem.point().version
        if self._mean_gradient is None or version != self._mean_version:
            self._mean_gradient, self._mean_version = self.problem.gradient(), version
        return product - torch.outer(self._mean_gradient, self._mean_gradient @ V)

    def _on(self: Same, problem: Problem) -> Same:
        return type(self)(problem, centered=self.centered)

    def _graph(self, model: nn.Module, chunk: Chunk, point: Point) -> Graph:
        return shares_graph(self.problem, model, chunk, point)

    def _mean_scale(self, weight: float, samples: int) -> float:
        # g_i = (N / W) ∇share_i, so that (1/N) Σ g_i is the gradient of Σ share_i / W.
        return samples / weight**2


def shares_graph(problem: Problem, model: nn.Module, chunk: Chunk, point: Point) -> Graph:
    """Products with Σ s_i s_iᵀ, s_i the gradient of what sample i adds to the total."""
    _, weight = problem.evaluate(chunk, point, grad=False)
    shares = problem.objective.shares(model, chunk.batch)
    return SandwichGraph(shares, point.leaves, weight, lambda vector: vector)


def refuse_coupled_samples(problem: Problem) -> None:
    """Raise if the gradient of a sample alone is not defined.

    Raises:
        OperatorError: the model or the criterion couples the samples of a batch.
    """
    refuse_no_problem(problem, operator="GradientCovariance")
    if problem.objective.couples():
        raise OperatorError(
            "Per-sample gradients are not defined with a criterion that couples the samples of a batch, such as a "
            "contrastive one. Survey its Hessian or its GGN."
        )
    if problem.coupled:
        raise OperatorError(
            "Per-sample gradients are not defined with BatchNorm on batch statistics, which couple the samples of a "
            f"batch; found mode={problem.mode!r}. Use mode='eval'."
        )
