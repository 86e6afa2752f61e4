"""Block-diagonal operators whose blocks are diagonalised, with their functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from theodolite.errors import OperatorError
from theodolite.linalg.kronecker import RotatedDiagonal
from theodolite.linalg.operator import LinearOperator


@final
class BlockDiagonal(LinearOperator):
    """Diagonal blocks on sets of indices that partition 0 … n−1, each in a basis that diagonalises it.

    Args:
        blocks: the blocks.
        indices: where each block's rows lie in the whole, in the order of its rows.

    Raises:
        OperatorError: the indices are no partition, or do not fit the blocks.

    Example:
        >>> import torch
        >>> from theodolite.linalg import BlockDiagonal, RotatedDiagonal
        >>> one, two = RotatedDiagonal(torch.tensor([[3.0]])), RotatedDiagonal(torch.tensor([[1.0, 1.0]]))
        >>> A = BlockDiagonal([one, two], indices=[torch.tensor([1]), torch.tensor([0, 2])])
        >>> A.diagonal().tolist(), A.inverse(damping=1.0).trace()
        ([1.0, 3.0, 1.0], 1.25)
    """

    def __init__(self, blocks: Sequence[RotatedDiagonal], *, indices: Sequence[Int[Tensor, " _"]]) -> None:
        if len(blocks) != len(indices) or not blocks:
            raise OperatorError(f"Expected indices for each block, found {len(blocks)} blocks and {len(indices)} sets.")
        for block, index in zip(blocks, indices, strict=True):
            if block.shape[0] != len(index) or block.dtype != blocks[0].dtype or block.device != blocks[0].device:
                raise OperatorError(
                    f"Blocks share a dtype and a device and have as many rows as indices, found {block!r} with "
                    f"{len(index)} indices beside {blocks[0]!r}."
                )
        n = sum(len(index) for index in indices)
        if not torch.equal(torch.cat([index.cpu() for index in indices]).sort().values, torch.arange(n)):
            raise OperatorError(f"The indices of the blocks should be 0 … {n - 1}, each once; they are not.")
        super().__init__(shape=(n, n), dtype=blocks[0].dtype, device=blocks[0].device, symmetric=True)
        self.blocks = tuple(blocks)
        self.indices = tuple(index.to(self.device) for index in indices)

    def _matmat(self, V: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        result = torch.empty_like(V)
        for block, index in zip(self.blocks, self.indices, strict=True):
            result[index] = block @ V[index]
        return result

    def eigenvalues(self) -> Float[Tensor, " n"]:
        """All eigenvalues, ascending."""
        return torch.cat([block.values.reshape(-1) for block in self.blocks]).sort().values

    def trace(self) -> float:
        """Sum of the eigenvalues."""
        return sum(block.trace() for block in self.blocks)

    def diagonal(self) -> Float[Tensor, " n"]:
        """The diagonal entries."""
        entries = self.blocks[0].values.new_empty(self.shape[0])
        for block, index in zip(self.blocks, self.indices, strict=True):
            entries[index] = block.diagonal()
        return entries

    def logdet(self, *, damping: float = 0.0) -> float:
        """log det(A + damping·I).

        Raises:
            OperatorError: A + damping·I is not positive definite.
        """
        return sum(block.logdet(damping=damping) for block in self.blocks)

    def inverse(self, *, damping: float = 0.0) -> BlockDiagonal:
        """(A + damping·I)⁻¹.

        Raises:
            OperatorError: A + damping·I is not positive definite.
        """
        return self._mapped(lambda block: block.inverse(damping=damping))

    def power(self, exponent: float, *, damping: float = 0.0) -> BlockDiagonal:
        """(A + damping·I) to a power.

        Raises:
            OperatorError: A + damping·I is not positive definite.
        """
        return self._mapped(lambda block: block.power(exponent, damping=damping))

    def _mapped(self, function: Callable[[RotatedDiagonal], RotatedDiagonal]) -> BlockDiagonal:
        return BlockDiagonal([function(block) for block in self.blocks], indices=self.indices)
