"""Per-sample gradients of an embedding, held as output gradients and indices."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from theodolite.operators.capture.use import Block, Use, Work

# A pair of positions takes the time of as many entries of a table of all samples.
PAIR = 2
# Entries that are multiplied at a time.
PIECE = 2**18


class Lookup(Use):
    """Rows of a table that are read by index: the gradient of row v is the sum of δ_t over the positions that read it.

    Args:
        block: the table.
        site: number of the operation.
        ids: rows that each position reads.
        D: gradients of what was read; zero where the row is a padding row.
    """

    def __init__(self, block: Block, site: int, *, ids: Int[Tensor, "b t"], D: Float[Tensor, "b t k"]) -> None:
        super().__init__(block, "embedding", site, ids.shape[0])
        self.ids = ids
        self.D = D

    @property
    def nbytes(self) -> int:
        return self.ids.nbytes + self.D.nbytes

    def slab(self, start: int, stop: int, work: Work | None = None) -> Float[Tensor, "b r c"]:
        count = stop - start
        sample, position = ((self.ids >= start) & (self.ids < stop)).nonzero(as_tuple=True)
        flat = (Work() if work is None else work).like(self.D, self.samples * count, self.D.shape[2]).zero_()
        flat.index_add_(0, sample * count + self.ids[sample, position] - start, self.D[sample, position])
        return flat.reshape(self.samples, count, -1)

    def dots(self, direction: Float[Tensor, "..."]) -> Float[Tensor, " b"]:
        return (direction.reshape(self.block.rows, -1)[self.ids] * self.D).flatten(1).sum(1)

    def take(self, index: Num[Tensor, " s"]) -> Lookup:
        return Lookup(self.block, self.site, ids=self.ids[index], D=self.D[index])

    def norms(self) -> Float[Tensor, " b"]:
        (compact,) = compacted([self])
        return super(Lookup, compact).norms()

    def gram(self, other: Use | None = None) -> Float[Tensor, "b c"]:
        if other is None or other is self:
            if self._by_pairs():
                return self._pairs()
            (compact,) = compacted([self])
            return super(Lookup, compact).gram()
        if isinstance(other, Lookup):
            mine, theirs = compacted([self, other])
            return super(Lookup, mine).gram(theirs)
        return super().gram(other)

    def _by_pairs(self) -> bool:
        """Whether positions that read the same row are so few that multiplying them pair by pair moves less memory."""
        rows, counts = torch.unique(self.ids, return_counts=True)
        return PAIR * int(counts.square().sum()) <= len(rows) * self.samples

    def _pairs(self) -> Float[Tensor, "b b"]:
        """Σ ⟨δ_p, δ_q⟩ over pairs of positions p, q that read the same row."""
        order = torch.argsort(self.ids.reshape(-1), stable=True)
        ids, D = self.ids.reshape(-1)[order], self.D.flatten(0, 1)
        sample = order // self.ids.shape[1]
        total = torch.zeros(self.samples, self.samples, dtype=torch.float64, device=D.device)
        distance, start = 0, torch.arange(len(ids), device=ids.device)
        while len(start):
            # What stands so far apart in the order of rows reads the same row where both ends do.
            for a in start.split(max(1, PIECE // D.shape[1])):
                b = a + distance
                products = (D[order[a]] * D[order[b]]).sum(1).double()
                total.index_put_((sample[a], sample[b]), products if distance else products / 2, accumulate=True)
            distance += 1
            start = start[start + distance < len(ids)]
            start = start[ids[start] == ids[start + distance]]
        return (total + total.T).cpu()


def compacted(lookups: list[Lookup]) -> list[Lookup]:
    """The same lookups in a table of the rows that are read at all, so that no vocabulary is ever materialised."""
    used, places = torch.unique(torch.cat([lookup.ids.reshape(-1) for lookup in lookups]), return_inverse=True)
    first = lookups[0].block
    block = Block(first.parameter, (len(used), *first.shape[1:]), first.strides, first.offset, first.whole)
    parts = places.split([lookup.ids.numel() for lookup in lookups])
    return [
        Lookup(block, lookup.site, ids=part.reshape(lookup.ids.shape), D=lookup.D)
        for lookup, part in zip(lookups, parts, strict=True)
    ]
