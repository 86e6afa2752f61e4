"""The uncentred covariance of per-sample gradients, also called the empirical Fisher."""

from __future__ import annotations

from torch import nn

from theodolite.errors import OperatorError
from theodolite.operators.graphs import Graph, SandwichGraph
from theodolite.operators.problem_operator import ProblemOperator
from theodolite.problem import Chunk, Point, Problem


class GradientCovariance(ProblemOperator):
    """C = (1/N) Σ g_i g_iᵀ, with per-sample gradients scaled so that their mean is the gradient of the problem.

    Uncentred: C − ∇L ∇Lᵀ is the covariance about the mean. Positive semi-definite, of rank at most N. A sample is an entry
    of the batch dimension: the tokens of a sequence are summed.

    Cost: a product takes about 1.5 to 3 gradients on kept graphs.

    Args:
        problem: what to differentiate; its samples must not be coupled by BatchNorm on batch statistics.

    Raises:
        OperatorError: per-sample gradients are not defined.

    References:
        Kunstner, Balles, Hennig, "Limitations of the empirical Fisher approximation" (2019).
    """

    name = "gradient covariance"

    def __init__(self, problem: Problem) -> None:
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
        super().__init__(problem)

    def _graph(self, model: nn.Module, chunk: Chunk, point: Point) -> Graph:
        _, weight = self.problem.evaluate(chunk, point, grad=False)
        shares = self.problem.objective.shares(model, chunk.batch)
        return SandwichGraph(shares, point.leaves, weight, lambda vector: vector)

    def _mean_scale(self, weight: float, samples: int) -> float:
        # g_i = (N / W) ∇share_i, so that (1/N) Σ g_i is the gradient of Σ share_i / W.
        return samples / weight**2
