"""The exact diagonal of a GGN or Fisher, and its exact blocks where they are small."""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from theodolite.errors import OperatorError
from theodolite.linalg import BlockDiagonal, RotatedDiagonal
from theodolite.operators.blockwise import BlockwiseCurvature
from theodolite.operators.exact import ExactBlock
from theodolite.operators.pullbacks import Pullbacks
from theodolite.problem import Problem

LARGEST = 4096


def ggn_diagonal(problem: Problem, *, kind: str = "exact", draws: int = 1, seed: int = 0) -> Float[Tensor, " n"]:
    """The diagonal entries of the GGN or of a Fisher, sums of squares of per-sample gradients: exact but for ``kind="mc"``.

    Cost: a forward pass and, a sample, C − 1 backward passes for cross-entropy over C classes (times the positions of a
    sequence), ``draws`` for ``kind="mc"``, one for ``kind="empirical"``. Backward passes skip the gradients of weights.

    An estimate by ``kind="mc"`` comes without an error: the standard deviation over a few seeds, at the cost of as many calls,
    is that of one of them.

    Args:
        problem: what to differentiate.
        kind: ``"exact"`` for the GGN, ``"mc"`` for an unbiased estimate of it, ``"empirical"`` for the gradient covariance.
        draws: random vectors a sample of ``"mc"``.
        seed: of the random vectors.

    Raises:
        OperatorError: per-sample gradients are not defined, or the criterion is not convex in the outputs.

    Example:
        >>> problem = Problem(nn.Linear(3, 2), nn.MSELoss(), [(torch.ones(4, 3), torch.zeros(4, 2))])
        >>> [round(entry, 4) for entry in ggn_diagonal(problem).tolist()]
        [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]

    References:
        Dangel, Kunstner, Hennig, "BackPACK: packing more into backprop" (2020).
    """
    pullbacks = Pullbacks(problem, kind=kind, draws=draws, seed=seed)
    return _whole_diagonal(pullbacks).values[0]


@final
class GGNDiagonal(BlockwiseCurvature):
    """The exact diagonal of a GGN or Fisher as an operator, with its inverse and powers.

    Cost: as ``ggn_diagonal``.
    """

    def _assemble(self, pullbacks: Pullbacks) -> BlockDiagonal:
        self.forms = dict.fromkeys(pullbacks.problem.layout.names, "exact diagonal")
        return BlockDiagonal([_whole_diagonal(pullbacks)], indices=[torch.arange(pullbacks.problem.n)])


@final
class GGNBlocks(BlockwiseCurvature):
    """The exact diagonal blocks of a GGN or Fisher, one dense block for each layer.

    Cost: backward passes as for ``ggn_diagonal``; p² entries and p³ operations for a layer of p parameters.

    Raises:
        OperatorError: a layer has more than 4096 parameters; select others with ``params=``, or use KFAC.
    """

    def _assemble(self, pullbacks: Pullbacks) -> BlockDiagonal:
        problem = pullbacks.problem
        for layer, where in problem.layout.layer_slices.items():
            if where.stop - where.start > LARGEST:
                raise OperatorError(
                    f"Expected layers of at most {LARGEST} parameters for dense blocks, found {where.stop - where.start:,} in "
                    f"{layer}. Leave it out with problem.select(...), or use KFAC(problem)."
                )
        exact = {layer: ExactBlock(problem, names, dense=True) for layer, names in problem.layout.layers.items()}
        for pullback in pullbacks:
            for block in exact.values():
                block.add(pullback)
        self.forms = {
            name: f"exact block of {layer}" for layer, names in problem.layout.layers.items() for name in names
        }
        return BlockDiagonal(
            [block.diagonalised(pullbacks.scale) for block in exact.values()],
            indices=[block.index for block in exact.values()],
        )


def _whole_diagonal(pullbacks: Pullbacks) -> RotatedDiagonal:
    exact = ExactBlock(pullbacks.problem, pullbacks.problem.layout.names, dense=False)
    for pullback in pullbacks:
        exact.add(pullback)
    return exact.diagonalised(pullbacks.scale)
