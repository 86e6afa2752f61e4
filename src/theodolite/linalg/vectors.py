"""Inner products, all of them: the one place to sum over ranks when vectors are sharded."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def dot(X: Float[Tensor, "n *k"], Y: Float[Tensor, "n *k"]) -> Float[Tensor, "*k"]:
    """Inner products of two vectors, or of the columns of two blocks."""
    products: Tensor = torch.linalg.vecdot(X, Y, dim=0)
    return products


def norm(X: Float[Tensor, "n *k"]) -> Float[Tensor, "*k"]:
    """Euclidean norm of a vector, or of the columns of a block, in double precision.

    In single precision the squares of entries below 1e-23 vanish, and a product of that size would pass for zero.
    """
    norms: Tensor = torch.linalg.vector_norm(X, dim=0, dtype=torch.float64)
    return norms


def project(Q: Float[Tensor, "*m j n"], V: Float[Tensor, "*m n k"]) -> Float[Tensor, "*m j k"]:
    """Inner products of the rows of Q with the columns of V; m blocks with m bases if there are m."""
    return Q @ V


def is_finite(X: Float[Tensor, "*any"]) -> bool:
    """Whether no entry is NaN or infinite.

    Either survives in the sum, which costs a third of looking at every entry; a sum that overflows is looked at closely.
    """
    return bool(torch.isfinite(X.sum())) or bool(torch.isfinite(X).all())
