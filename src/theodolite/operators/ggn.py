"""The generalised Gauss-Newton matrix of a problem."""

from __future__ import annotations

from torch import nn

from theodolite.operators.graphs import Graph, SandwichGraph
from theodolite.operators.problem_operator import ProblemOperator
from theodolite.problem import Chunk, Point, Problem
from theodolite.problem.criteria import tensor_of
from theodolite.problem.objective import pair, with_outputs


class GGN(ProblemOperator):
    """G = Σ Jᵀ Λ J / weight, with J the Jacobian of the outputs and Λ the Hessian of the criterion in them.

    Positive semi-definite for a criterion that is convex in the outputs. For cross-entropy and squared error it is also
    the Fisher information (up to the factor 2 of the squared error).

    Cost: a product takes about 1.5 to 3 gradients on kept graphs.

    Args:
        problem: made with a criterion, not with ``from_loss``.

    Raises:
        OperatorError: the problem has no criterion, or the model's outputs are no tensor.

    References:
        Schraudolph, "Fast curvature matrix-vector products for second-order gradient descent" (2002).
    """

    name = "ggn"

    def __init__(self, problem: Problem) -> None:
        self._objective = with_outputs(problem.objective)
        super().__init__(problem)

    def _graph(self, model: nn.Module, chunk: Chunk, point: Point) -> Graph:
        loss, targets = self._objective.loss, pair(chunk.batch)[1]
        outputs = tensor_of(self._objective.outputs(model, chunk.batch))
        return SandwichGraph(outputs, point.leaves, loss.weight(outputs, targets), loss.curvature(outputs, targets))
