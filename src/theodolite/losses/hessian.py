"""The Hessian of a loss in its logits as a diagonal plus a few rank-one terms, one block a sample."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class OutputHessian:
    """diag(d) + Σ_k w_k u_k u_kᵀ for each sample.

    Every closed form of this room has this shape, so a product costs O(c·k) a sample and no c × c matrix is formed.

    Args:
        diagonal: d.
        vectors: u_k.
        weights: w_k, of either sign.
    """

    diagonal: Float[Tensor, "n c"]
    vectors: Float[Tensor, "n k c"]
    weights: Float[Tensor, "n k"]

    def __matmul__(self, v: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """Multiply each sample's block with its own vector."""
        along = (self.vectors @ v[:, :, None])[:, :, 0] * self.weights
        return self.diagonal * v + (along[:, None, :] @ self.vectors)[:, 0]

    def dense(self) -> Float[Tensor, "n c c"]:
        """Return the blocks as matrices."""
        return torch.diag_embed(self.diagonal) + self.vectors.mT @ (self.weights[:, :, None] * self.vectors)

    def scaled(self, factors: Float[Tensor, " n"]) -> OutputHessian:
        """Multiply each sample's block by a number."""
        return OutputHessian(self.diagonal * factors[:, None], self.vectors, self.weights * factors[:, None])
