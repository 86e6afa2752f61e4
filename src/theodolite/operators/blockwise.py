"""Block-diagonal curvature that is held in memory, with its inverse, powers and determinant."""

from __future__ import annotations

import time
from abc import abstractmethod

from jaxtyping import Float
from torch import Tensor

from theodolite.linalg import BlockDiagonal, LinearOperator
from theodolite.operators.pullbacks import Pullbacks
from theodolite.operators.subject import refuse_no_problem
from theodolite.problem import Problem
from theodolite.records import Cost


class BlockwiseCurvature(LinearOperator):
    """A block-diagonal approximation of a Fisher, computed once from a problem at its current parameters.

    Unlike the GGN it does not follow the parameters afterwards. Which Fisher is chosen by ``kind``: ``"exact"`` is the GGN,
    from all columns of the root of the output curvature; ``"mc"`` the same in expectation, from ``draws`` random vectors a
    sample; ``"empirical"`` the gradient covariance.

    Args:
        problem: what to differentiate; made with a criterion, or with ``from_loss`` of a model of transformers and batches that
            have ``labels``, except for ``"empirical"``, which takes any.
        kind: ``"exact"``, ``"mc"`` or ``"empirical"``.
        draws: random vectors a sample of ``"mc"``.
        seed: of the random vectors.

    Attributes:
        blocks: the operator as diagonalised blocks.
        forms: how each parameter is represented, in words.
        cost: what it took.
    """

    def __init__(self, problem: Problem, *, kind: str = "exact", draws: int = 1, seed: int = 0) -> None:
        refuse_no_problem(problem, operator=type(self).__name__)
        super().__init__(shape=(problem.n, problem.n), dtype=problem.dtype, device=problem.device, symmetric=True)
        started = time.perf_counter()
        self.kind = kind
        self.forms: dict[str, str] = {}
        pullbacks = Pullbacks(problem, kind=kind, draws=draws, seed=seed)
        self.blocks = self._assemble(pullbacks)
        self.cost = Cost(gradients=pullbacks.passes, seconds=time.perf_counter() - started)

    @abstractmethod
    def _assemble(self, pullbacks: Pullbacks) -> BlockDiagonal:
        """The blocks, from as many walks over the data as are needed."""

    def _matmat(self, V: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        return self.blocks @ V

    def inverse(self, *, damping: float = 0.0) -> BlockDiagonal:
        """(A + damping·I)⁻¹, exact for the approximation A.

        Raises:
            OperatorError: A + damping·I is not positive definite.
        """
        return self.blocks.inverse(damping=damping)

    def power(self, exponent: float, *, damping: float = 0.0) -> BlockDiagonal:
        """(A + damping·I) to a power.

        Raises:
            OperatorError: A + damping·I is not positive definite.
        """
        return self.blocks.power(exponent, damping=damping)

    def logdet(self, *, damping: float = 0.0) -> float:
        """log det(A + damping·I).

        Raises:
            OperatorError: A + damping·I is not positive definite.
        """
        return self.blocks.logdet(damping=damping)

    def trace(self) -> float:
        """Sum of the diagonal."""
        return self.blocks.trace()

    def diagonal(self) -> Float[Tensor, " n"]:
        """The diagonal entries."""
        return self.blocks.diagonal()

    def eigenvalues(self) -> Float[Tensor, " n"]:
        """All eigenvalues, ascending."""
        return self.blocks.eigenvalues()
