"""Inner products, all of them: the one place that sums over ranks where vectors are sharded."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, final

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor


@final
class Dots:
    """Inner products of vectors, of which every rank of a process group may hold a slice.

    What comes out is the same on all ranks.

    Args:
        group: whose ranks hold slices, one after the other, as even as can be; None where every vector is whole.
        size: length of the whole vectors, for a group.
    """

    def __init__(self, group: Any = None, *, size: int = 0) -> None:
        self.group, self.size = group, size
        ranks, rank = (1, 0) if group is None else (dist.get_world_size(group), dist.get_rank(group))
        starts = [size * r // ranks for r in range(ranks + 1)]
        self.lengths = [stop - start for start, stop in pairwise(starts)]
        self.own = slice(starts[rank], starts[rank + 1])

    def dot(self, X: Float[Tensor, "n *k"], Y: Float[Tensor, "n *k"]) -> Float[Tensor, "*k"]:
        """Inner products of two vectors, or of the columns of two blocks."""
        return self.sum(dot(X, Y))

    def norm(self, X: Float[Tensor, "n *k"]) -> Float[Tensor, "*k"]:
        """Euclidean norm of a vector, or of the columns of a block, in double precision."""
        norms = norm(X)
        return norms if self.group is None else self.sum(norms**2).sqrt()

    def project(self, Q: Float[Tensor, "*m j n"], V: Float[Tensor, "*m n k"]) -> Float[Tensor, "*m j k"]:
        """Inner products of the rows of Q with the columns of V; m blocks with m bases if there are m."""
        return self.sum(project(Q, V))

    def is_finite(self, X: Float[Tensor, "*any"]) -> bool:
        """Whether no entry on any rank is NaN or infinite."""
        finite = is_finite(X)
        return finite if self.group is None else not float(self.sum(torch.tensor(float(not finite), device=X.device)))

    def sum(self, part: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        """The sum over ranks of what each finds on its slice."""
        if self.group is None or not part.numel():
            return part
        total = part.contiguous().clone()
        dist.all_reduce(total, group=self.group)
        return total

    def gather(self, V: Float[Tensor, "n k"]) -> Float[Tensor, "whole k"]:
        """The whole vectors of which the ranks hold slices."""
        longest = max(self.lengths)
        padded = V.new_zeros(longest, V.shape[1])
        padded[: len(V)] = V
        parts = [torch.empty_like(padded) for _ in self.lengths]
        dist.all_gather(parts, padded, group=self.group)
        return torch.cat([part[:length] for part, length in zip(parts, self.lengths, strict=True)])

    def within(self, part: slice) -> slice:
        """Where a slice of whole vectors lies in those here; empty if it does not."""
        if self.group is None:
            return part
        start, stop, step = part.indices(self.size)
        first = start + max(0, -(-(self.own.start - start) // step)) * step
        return slice(
            min(first, self.own.stop) - self.own.start, max(min(stop, self.own.stop) - self.own.start, 0), step
        )


WHOLE = Dots()


def dot(X: Float[Tensor, "n *k"], Y: Float[Tensor, "n *k"]) -> Float[Tensor, "*k"]:
    """Inner products of two whole vectors, or of the columns of two blocks."""
    products: Tensor = torch.linalg.vecdot(X, Y, dim=0)
    return products


def norm(X: Float[Tensor, "n *k"]) -> Float[Tensor, "*k"]:
    """Euclidean norm of a whole vector, or of the columns of a block, in double precision.

    In single precision the squares of entries below 1e-23 vanish, and a product of that size would pass for zero.
    """
    norms: Tensor = torch.linalg.vector_norm(X, dim=0, dtype=torch.float64)
    return norms


def project(Q: Float[Tensor, "*m j n"], V: Float[Tensor, "*m n k"]) -> Float[Tensor, "*m j k"]:
    """Inner products of the rows of Q with the columns of V, whole ones; m blocks with m bases if there are m."""
    return Q @ V


def is_finite(X: Float[Tensor, "*any"]) -> bool:
    """Whether no entry here is NaN or infinite.

    Either survives in the sum, which costs a third of looking at every entry; a sum that overflows is looked at closely.
    """
    return bool(torch.isfinite(X.sum())) or bool(torch.isfinite(X).all())
