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

    def __matmul__(self, v: Float[Tensor, "b c *d"]) -> Float[Tensor, "b c *d"]:
        """Multiply each sample's block with its own vector; further axes of the logits are samples too."""
        rows = class_last(v)
        along = (self.vectors @ rows[:, :, None])[:, :, 0] * self.weights
        return class_second(self.diagonal * rows + (along[:, None, :] @ self.vectors)[:, 0], v.shape)

    def dense(self) -> Float[Tensor, "n c c"]:
        """Return the blocks as matrices."""
        return torch.diag_embed(self.diagonal) + self.vectors.mT @ (self.weights[:, :, None] * self.vectors)

    def scaled(self, factors: Float[Tensor, " n"]) -> OutputHessian:
        """Multiply each sample's block by a number."""
        return OutputHessian(self.diagonal * factors[:, None], self.vectors, self.weights * factors[:, None])


def class_last(values: Float[Tensor, "b c *d"]) -> Float[Tensor, "n c"]:
    """Return one sample a row."""
    return values if values.ndim == 2 else values.movedim(1, -1).reshape(-1, values.shape[1])


def class_second(rows: Float[Tensor, "n c"], shape: torch.Size) -> Float[Tensor, "b c *d"]:
    """Return rows in the shape (b, c, …) that they came from."""
    return rows if len(shape) == 2 else rows.reshape(shape[0], *shape[2:], shape[1]).movedim(-1, 1)
