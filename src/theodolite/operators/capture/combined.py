"""All uses of a parameter as few as possible, with disjoint blocks, so that their Gram matrices add up."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from jaxtyping import Float, Num
from torch import Tensor

from theodolite.operators.capture.factored import Factored, concatenated
from theodolite.operators.capture.rows import Rows
from theodolite.operators.capture.use import Block, Use, Work


class Combined(Use):
    """Several uses of one block of different kinds, such as an embedding that is also the output layer."""

    def __init__(self, uses: Sequence[Use]) -> None:
        first = uses[0]
        super().__init__(first.block, "other", first.site, first.samples)
        self.uses = tuple(uses)

    @property
    def kinds(self) -> set[str]:
        return {kind for use in self.uses for kind in use.kinds}

    @property
    def nbytes(self) -> int:
        return sum(use.nbytes for use in self.uses)

    def slab(self, start: int, stop: int, work: Work | None = None) -> Float[Tensor, "b r c"]:
        total = self.uses[0].slab(start, stop, work)
        for use in self.uses[1:]:
            total = total + use.slab(start, stop)
        return total

    def dots(self, direction: Float[Tensor, "..."]) -> Float[Tensor, " b"]:
        return torch.stack([use.dots(direction) for use in self.uses]).sum(0)

    def take(self, index: Num[Tensor, " s"]) -> Combined:
        return Combined([use.take(index) for use in self.uses])


def combined(uses: Sequence[Use]) -> list[Use]:
    """Uses of one parameter with those of each block merged, and blocks that overlap spread over the whole parameter."""
    by_block: dict[Block, list[Use]] = {}
    for use in uses:
        by_block.setdefault(use.block, []).append(use)
    if len(by_block) > 1 and _overlap(list(by_block)):
        return [_merged([_on_whole(use) for use in uses])]
    return [_merged(group) for group in by_block.values()]


def _merged(uses: list[Use]) -> Use:
    """One use for all of a block: positions joined where the factors allow it, summed rows, otherwise side by side."""
    factored = [use for use in uses if isinstance(use, Factored)]
    rows = [use for use in uses if isinstance(use, Rows)]
    found: list[Use] = [use for use in uses if not isinstance(use, Factored | Rows)]
    for transposed in (False, True):
        group = [use for use in factored if use.transposed == transposed]
        if group:
            found.append(concatenated(group))
    if rows:
        total = torch.stack([use.gradients for use in rows]).sum(0) if len(rows) > 1 else rows[0].gradients
        found.append(Rows(rows[0].block, rows[0].kind, rows[0].site, total))
    return found[0] if len(found) == 1 else Combined(found)


def _overlap(blocks: list[Block]) -> bool:
    places = [set(_entries(block).tolist()) for block in blocks]
    return any(not a.isdisjoint(b) for a, b in combinations(places, 2))


def _entries(block: Block) -> Tensor:
    count = torch.Size(block.whole).numel()
    return torch.arange(count).as_strided(block.shape, block.strides, block.offset).reshape(-1)


def _on_whole(use: Use) -> Rows:
    whole = use.block.of_whole()
    return Rows(whole, use.kind, use.site, use.block.place(use.materialise()))
