"""The generalised Gauss-Newton matrix of a problem."""

from __future__ import annotations

from torch import nn

from theodolite.operators.graphs import Graph, SandwichGraph
from theodolite.operators.outputs import outputs_of
from theodolite.operators.problem_operator import ProblemOperator
from theodolite.problem import Chunk, Point, Problem


class GGN(ProblemOperator):
    """G = Σ Jᵀ Λ J / weight, with J the Jacobian of the outputs and Λ the Hessian of the criterion in them.

    Positive semi-definite for a criterion that is convex in the outputs. For cross-entropy, binary cross-entropy and squared
    error it is also the Fisher information of what the model predicts, see ``Fisher``.

    Cost: a product takes about 1.5 to 3 gradients on kept graphs.

    Args:
        problem: made with a criterion, or with ``from_loss`` of a model of transformers and batches that have ``labels``.

    Raises:
        OperatorError: the problem has no criterion, or the model's outputs are no tensor.

    References:
        Schraudolph, "Fast curvature matrix-vector products for second-order gradient descent" (2002).
    """

    name = "ggn"

    def __init__(self, problem: Problem) -> None:
        self._outputs = outputs_of(problem)
        super().__init__(problem)

    def _graph(self, model: nn.Module, chunk: Chunk, point: Point) -> Graph:
        loss, targets = self._outputs.loss, self._outputs.targets(chunk.batch)
        outputs = self._outputs.tensor(model, chunk.batch)
        return SandwichGraph(outputs, point.leaves, loss.weight(outputs, targets), loss.curvature(outputs, targets))
