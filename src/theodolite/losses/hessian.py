"""The Hessian of a loss in its logits as a diagonal plus a few rank-one terms, one block a sample."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class OutputHessian:
    """diag(d) + Σ_k w_k u_k u_kᵀ for each sample.

    Every closed form of this room has this shape, so a product costs O(m·k) a sample and no c × c matrix is formed.

    Args:
        diagonal: d.
        vectors: u_k.
        weights: w_k, of either sign.
        classes: number of classes, c.
        columns: the m classes that d and u_k are over, the rest having no curvature; None for all of them.
    """

    diagonal: Float[Tensor, "n m"]
    vectors: Float[Tensor, "n k m"]
    weights: Float[Tensor, "n k"]
    classes: int | None = None
    columns: Int[Tensor, "n m"] | None = None

    def __matmul__(self, v: Float[Tensor, "b c *d"]) -> Float[Tensor, "b c *d"]:
        """Multiply each sample's block with its own vector; further axes of the logits are samples too."""
        rows = class_last(v)
        if self.columns is None:
            return class_second(self._product(rows), v.shape)
        inner = self._product(rows.gather(1, self.columns))
        return class_second(torch.zeros_like(rows).scatter(1, self.columns, inner), v.shape)

    def _product(self, rows: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        total = self.diagonal * rows
        for k in range(self.vectors.shape[1]):  # one or two: passes over the rows cost less than a batched product
            u = self.vectors[:, k]
            along = torch.linalg.vecdot(u, rows) * self.weights[:, k]
            total = torch.addcmul(total, along[:, None], u)
        return total

    def dense(self) -> Float[Tensor, "n c c"]:
        """Return the blocks as matrices."""
        inner = torch.diag_embed(self.diagonal) + self.vectors.mT @ (self.weights[:, :, None] * self.vectors)
        if self.columns is None or self.classes is None:
            return inner
        place = torch.nn.functional.one_hot(self.columns, self.classes).to(inner.dtype)
        return place.mT @ inner @ place

    def scaled(self, factors: Float[Tensor, " n"]) -> OutputHessian:
        """Multiply each sample's block by a number."""
        return replace(self, diagonal=self.diagonal * factors[:, None], weights=self.weights * factors[:, None])


def class_last(values: Float[Tensor, "b c *d"]) -> Float[Tensor, "n c"]:
    """Return one sample a row."""
    return values if values.ndim == 2 else values.movedim(1, -1).reshape(-1, values.shape[1])


def class_second(rows: Float[Tensor, "n c"], shape: torch.Size) -> Float[Tensor, "b c *d"]:
    """Return rows in the shape (b, c, …) that they came from."""
    return rows if len(shape) == 2 else rows.reshape(shape[0], *shape[2:], shape[1]).movedim(-1, 1)
