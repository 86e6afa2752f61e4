"""One use of a parameter by one operation, and the per-sample gradients that it adds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Num
from torch import Tensor

Kind = Literal["linear", "convolution", "embedding", "scale", "shift", "other", "fallback"]


@dataclass(frozen=True)
class Block:
    """The part of a parameter that an operation reads: all of it, or a view without overlaps.

    Args:
        parameter: its name.
        shape: shape of the part.
        strides: strides of the part within the flat parameter.
        offset: where the part begins in the flat parameter.
        whole: shape of the whole parameter.
    """

    parameter: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    whole: tuple[int, ...]

    @property
    def is_whole(self) -> bool:
        """Whether this is the parameter itself, in its own shape."""
        return self.shape == self.whole and self.offset == 0 and self.strides == _contiguous(self.whole)

    @property
    def rows(self) -> int:
        """Size of the first dimension, 1 for a scalar."""
        return self.shape[0] if self.shape else 1

    @property
    def columns(self) -> int:
        """Entries of a row."""
        return torch.Size(self.shape[1:]).numel()

    def part_of(self, whole: Tensor) -> Tensor:
        """The part of a tensor in the shape of the parameter."""
        return (
            whole
            if self.is_whole
            else whole.contiguous().as_strided(self.shape, self.strides, self.offset + whole.storage_offset())
        )

    def of_whole(self) -> Block:
        """The block that is all of the parameter."""
        return whole_block(self.parameter, self.whole)

    def place(self, gradients: Float[Tensor, "b *shape"]) -> Float[Tensor, "b *whole"]:
        """Per-sample gradients of the part as gradients of the whole parameter, zero elsewhere."""
        if self.is_whole:
            return gradients
        count = torch.Size(self.whole).numel()
        found = gradients.new_zeros(gradients.shape[0], count)
        where = torch.arange(count, device=gradients.device).as_strided(self.shape, self.strides, self.offset)
        found[:, where.reshape(-1)] = gradients.reshape(gradients.shape[0], -1)
        return found.reshape(-1, *self.whole)


def whole_block(parameter: str, shape: tuple[int, ...]) -> Block:
    """All of a parameter."""
    return Block(parameter, shape, _contiguous(shape), 0, shape)


class Use(ABC):
    """What one operation adds to the per-sample gradients of a parameter, factored or materialised.

    Args:
        block: the part of the parameter that the operation reads.
        kind: ``"linear"``, ``"convolution"``, ``"embedding"``, ``"scale"`` (of a norm layer), ``"shift"`` (biases),
            ``"other"`` or ``"fallback"``.
        site: number of the operation within the forward pass; weight and bias of one operation share it.
        samples: number of samples.
    """

    def __init__(self, block: Block, kind: Kind, site: int, samples: int) -> None:
        self.block = block
        self.kind: Kind = kind
        self.site = site
        self.samples = samples

    @property
    def kinds(self) -> set[str]:
        """The kinds of operation that read the block."""
        return {self.kind}

    @property
    def parameter(self) -> str:
        """Name of the parameter."""
        return self.block.parameter

    @abstractmethod
    def slab(self, start: int, stop: int, work: Work | None = None) -> Float[Tensor, "b r c"]:
        """Per-sample gradients of some rows of the block, its other dimensions flattened.

        Args:
            start: first row.
            stop: behind the last row.
            work: memory that the slab may lie in, until the next slab does.
        """

    @abstractmethod
    def dots(self, direction: Float[Tensor, "..."]) -> Float[Tensor, " b"]:
        """⟨g_i, d⟩ for a direction in the shape of the block."""

    @abstractmethod
    def take(self, index: Num[Tensor, " s"]) -> Use:
        """The use on some of the samples only."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes that are kept alive."""

    def materialise(self, rows: Num[Tensor, " s"] | None = None) -> Float[Tensor, "s *block"]:
        """Per-sample gradients of the block, for all samples or some.

        Args:
            rows: indices of samples.
        """
        use = self if rows is None else self.take(rows)
        return use.slab(0, self.block.rows).reshape(use.samples, *self.block.shape)

    def norms(self) -> Float[Tensor, " b"]:
        """Norm of every sample's gradient of the block."""
        total, work = torch.zeros(self.samples, dtype=torch.float64), Work()
        for start, stop in slabs(self):
            total += self.slab(start, stop, work).flatten(1).square().sum(1).cpu()
        return total.sqrt()

    def gram(self, other: Use | None = None) -> Float[Tensor, "b c"]:
        """Dot products with the gradients of another use of the same block, its own by default."""
        other = self if other is None else other
        total = torch.zeros(self.samples, other.samples, dtype=torch.float64)
        work, others = Work(), Work()
        for start, stop in slabs(self, other):
            mine = self.slab(start, stop, work).flatten(1)
            if other is self:
                _add_square(total, mine)
            else:
                total += (mine @ other.slab(start, stop, others).flatten(1).T).cpu()
        return total


class Work:
    """Memory that is used again for one slab after the other, instead of new pages for each."""

    def __init__(self) -> None:
        self._flat: Tensor | None = None

    def like(self, tensor: Tensor, *shape: int) -> Tensor:
        """Room for a tensor of a shape, of the kind of another one; what lay there before is gone."""
        size = torch.Size(shape).numel()
        if self._flat is None or self._flat.numel() < size:
            self._flat = tensor.new_empty(size)
        return self._flat[:size].view(shape)


# Bytes of materialised gradients at a time: larger slabs save no time, smaller ones lose it to many small products.
SLAB = 4 * 2**20
# Below this many samples half a product takes as long as a whole one.
FEW = 64


def slabs(*uses: Use) -> list[tuple[int, int]]:
    """Ranges of rows of the block whose materialised gradients fit a memory cap."""
    block = uses[0].block
    width = max(1, sum(use.samples for use in uses) * block.columns * 4)
    step = max(1, SLAB // width)
    return [(start, min(start + step, block.rows)) for start in range(0, block.rows, step)]


def _add_square(total: Float[Tensor, "b b"], rows: Float[Tensor, "b n"]) -> None:
    """Add the rows' dot products; of those between the first and the second half only one of the two equal blocks is
    multiplied."""
    if len(rows) < FEW:
        total += (rows @ rows.T).cpu()
        return
    half = len(rows) // 2
    upper, lower = (rows[:half] @ rows.T).cpu(), (rows[half:] @ rows[half:].T).cpu()
    total[:half] += upper
    total[half:, :half] += upper[:, half:].T
    total[half:, half:] += lower


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))
