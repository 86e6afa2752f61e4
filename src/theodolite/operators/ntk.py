"""The neural tangent kernel of a problem's data: inner products of the gradients of its outputs."""

from __future__ import annotations

import time
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from theodolite.linalg import LinearOperator
from theodolite.operators.gradient_rows import GradientRows
from theodolite.operators.pullbacks import JACOBIAN, Pullbacks
from theodolite.problem import Problem
from theodolite.records import Cost


@final
class NTK(LinearOperator):
    """J Jᵀ of shape (m, m), J the Jacobian of the outputs, one row for each entry: sample by sample, its entries flattened.

    Computed once, from first derivatives only, and held; it does not follow the parameters. For squared error the GGN has the
    same eigenvalues up to 2/m and zeros.

    Cost: a forward pass, and a backward pass without gradients of weights for each entry of a sample's outputs; m² numbers.

    Args:
        problem: made with a criterion, whose outputs are differentiated, or with ``from_loss`` of a model of transformers and
            batches that have ``labels``.

    Attributes:
        matrix: the kernel, in double precision on the CPU.
        cost: what it took.

    Raises:
        OperatorError: the outputs are not known, samples are coupled, or the kernel does not fit the memory of the problem.

    Example:
        >>> problem = Problem(nn.Linear(3, 2), nn.MSELoss(), [(torch.eye(3), torch.zeros(3, 2))])
        >>> NTK(problem).matrix.diagonal().tolist()
        [2.0, 2.0, 2.0, 2.0, 2.0, 2.0]

    References:
        Jacot, Gabriel, Hongler, "Neural tangent kernel" (2018).
        Novak, Sohl-Dickstein, Schoenholz, "Fast finite width neural tangent kernel" (2022).
    """

    def __init__(self, problem: Problem) -> None:
        started = time.perf_counter()
        pullbacks = Pullbacks(problem, kind=JACOBIAN)
        rows = GradientRows(pullbacks)
        super().__init__(shape=(rows.count, rows.count), dtype=problem.dtype, device=problem.device, symmetric=True)
        # Backward passes come first in each chunk; stable, so that the entries of a sample stay in order.
        order = torch.sort(rows.sample, stable=True).indices
        self.matrix: Float[Tensor, "m m"] = rows.gram()[0][order[:, None], order]
        self.cost = Cost(gradients=pullbacks.passes, seconds=time.perf_counter() - started)

    def _matmat(self, V: Float[Tensor, "n k"]) -> Float[Tensor, "m k"]:
        return (self.matrix.to(V.device) @ V.double()).to(V.dtype)
