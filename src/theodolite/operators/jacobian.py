"""The Jacobian of the model's outputs in its parameters, and its transpose."""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from theodolite.linalg import LinearOperator
from theodolite.operators.certificate import clock
from theodolite.operators.graphs import Graph, OutputGraph
from theodolite.operators.outputs import outputs_of
from theodolite.operators.problem_operator import rows_of
from theodolite.operators.stacked import StackedOperator, refuse_sharded
from theodolite.problem import Chunk, Point, Problem


class Jacobian(StackedOperator):
    """J = ∂outputs/∂parameters of shape (m, n), one row for each entry of the outputs as the criterion takes them.

    Rows follow the data: sample by sample, the entries of a sample flattened. J v is how the outputs move along v, and
    ``J.T @ u`` the gradient of ⟨u, outputs⟩. GGN = Jᵀ Λ J / weight, with Λ the Hessian of the criterion in the outputs.

    Cost: one forward pass to count the rows; a product with J about two gradients on kept graphs, with ``J.T`` one.

    Args:
        problem: made with a criterion, or with ``from_loss`` of a model of transformers and batches that have ``labels``.

    Attributes:
        rows: number of rows of each batch, or of each piece that ``microbatch`` makes of it.

    Raises:
        OperatorError: the model's outputs are not known.

    Example:
        >>> problem = Problem(nn.Linear(3, 2), nn.MSELoss(), [(torch.randn(8, 3), torch.randn(8, 2))])
        >>> J = Jacobian(problem)
        >>> J.shape, (J @ torch.ones(8)).shape, (J.T @ torch.ones(16)).shape
        ((16, 8), torch.Size([16]), torch.Size([8]))
    """

    name = "jacobian"

    def __init__(self, problem: Problem) -> None:
        refuse_sharded(problem)
        self._outputs = outputs_of(problem)
        self.rows = tuple(self._count(problem, chunk) for chunk in problem.chunks())
        super().__init__(problem, shape=(sum(self.rows), problem.n), symmetric=False)

    @property
    def T(self) -> JacobianTranspose:
        """Jᵀ, on the same graphs."""
        return JacobianTranspose(self)

    def pull(self, rows: Float[Tensor, "k m"]) -> Float[Tensor, "k n"]:
        """The products of Jᵀ with k vectors."""
        start = clock(self.problem)
        with self.problem.session():
            total = rows.new_zeros(rows.shape[0], self.shape[1])
            point = self._prepare()
            start_row = 0
            for graph, chunk, buffers in self._visit(point):
                assert isinstance(graph, OutputGraph)
                # Counted here: where a batch does not fit into memory its pieces are walked.
                piece = rows[:, start_row : start_row + graph.outputs.numel()]
                start_row += graph.outputs.numel()

                def pulled(_: nn.Module, graph: OutputGraph = graph, piece: Tensor = piece) -> Tensor:
                    parts = (graph.pull(row.reshape(graph.outputs.shape)) for row in piece)
                    return torch.stack([self.problem.layout.flatten(part) for part in parts])

                total += self.problem.call(pulled, point, chunk=chunk.index, buffers=buffers)
        self._spent(rows, start)
        return total

    def _count(self, problem: Problem, chunk: Chunk) -> int:
        def entries(model: nn.Module) -> int:
            with torch.no_grad():
                return self._outputs.tensor(model, chunk.batch).numel()

        return problem.call(entries, problem.point(), chunk=chunk.index)

    def _graph(self, model: nn.Module, chunk: Chunk, point: Point) -> Graph:
        return OutputGraph(self._outputs.tensor(model, chunk.batch), point.leaves, 1.0)

    def _scale(self, weights: Float[Tensor, " c"], samples: int) -> float:
        return 1.0


@final
class JacobianTranspose(LinearOperator):
    """Jᵀ of shape (n, m): the gradient of ⟨u, outputs⟩ in the parameters.

    Cost: a product takes one gradient on kept graphs, and k products k.

    Args:
        jacobian: J, whose graphs are used.
    """

    def __init__(self, jacobian: Jacobian) -> None:
        m, n = jacobian.shape
        super().__init__(shape=(n, m), dtype=jacobian.dtype, device=jacobian.device)
        self.T = jacobian

    def _matmat(self, V: Float[Tensor, "m k"]) -> Float[Tensor, "n k"]:
        return self.T.pull(rows_of(V)).T
