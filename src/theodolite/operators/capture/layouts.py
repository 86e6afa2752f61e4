"""Where the samples of a batch lie in an intermediate tensor: one axis, part of an axis, or a row for each position."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor


class Layout(ABC):
    """Which entries of a tensor belong to which sample.

    Args:
        samples: number of samples.
    """

    samples: int

    @abstractmethod
    def fold(self, tensor: Tensor, trailing: int) -> Tensor:
        """The tensor as (samples, positions, *trailing dimensions); positions that a sample lacks are zero."""

    @abstractmethod
    def summed(self, tensor: Tensor, axes: Sequence[int]) -> Tensor | None:
        """Each sample's part of the tensor summed over axes, (samples, *axes that are left); None if that mixes samples."""

    @abstractmethod
    def weighted(self, tensor: Tensor, weights: Tensor) -> Tensor:
        """The tensor with the entries of every sample multiplied by its weight."""

    @abstractmethod
    def only(self, tensor: Tensor, sample: int) -> Tensor:
        """The tensor with the entries of all other samples set to zero."""


@dataclass(frozen=True)
class AxisLayout(Layout):
    """Samples along one axis, which may hold several positions of each sample.

    Args:
        axis: the axis.
        samples: number of samples.
        sample_major: whether the positions of a sample follow one another, as in a flattened (samples, positions).
    """

    axis: int
    samples: int
    sample_major: bool = True

    def fold(self, tensor: Tensor, trailing: int) -> Tensor:
        kept = tensor.shape[tensor.dim() - trailing :]
        folded = tensor if self.axis == 0 and self.sample_major else self._apart(tensor)
        return folded.reshape(self.samples, -1, *kept)

    def summed(self, tensor: Tensor, axes: Sequence[int]) -> Tensor | None:
        if self.axis not in axes:
            return None
        return self._apart(tensor).sum([axis + 1 for axis in axes])

    def weighted(self, tensor: Tensor, weights: Tensor) -> Tensor:
        found = tensor.clone(memory_format=torch.contiguous_format)
        self._apart(found).mul_(weights.reshape(-1, *[1] * tensor.dim()))
        return found

    def only(self, tensor: Tensor, sample: int) -> Tensor:
        found = torch.zeros_like(tensor, memory_format=torch.contiguous_format)
        self._apart(found)[sample] = self._apart(tensor)[sample]
        return found

    def _apart(self, tensor: Tensor) -> Tensor:
        """A view with the samples in front and the positions within the axis in its place."""
        split = (self.samples, -1) if self.sample_major else (-1, self.samples)
        apart: Tensor = tensor.unflatten(self.axis, split).movedim(self.axis + (not self.sample_major), 0)
        return apart


@dataclass(frozen=True, eq=False)
class RowLayout(Layout):
    """A sample for each row of a tensor (rows, features), as after the routing of a mixture of experts.

    Args:
        sample: index of the sample of each row.
        samples: number of samples.
    """

    sample: Int[Tensor, " r"]
    samples: int

    def fold(self, tensor: Tensor, trailing: int) -> Tensor:
        rows = tensor.reshape(self.sample.shape[0], *tensor.shape[tensor.dim() - trailing :])
        order = torch.argsort(self.sample, stable=True)
        counts = torch.bincount(self.sample, minlength=self.samples)
        owner = self.sample[order]
        place = torch.arange(len(order), device=order.device) - (torch.cumsum(counts, 0) - counts)[owner]
        folded = rows.new_zeros(self.samples, int(counts.max()), *rows.shape[1:])
        folded[owner, place] = rows[order]
        return folded

    def summed(self, tensor: Tensor, axes: Sequence[int]) -> Tensor | None:
        if 0 not in axes or tensor.shape[0] != self.sample.shape[0]:
            return None
        summed = tensor.sum([axis for axis in axes if axis]) if len(axes) > 1 else tensor
        return summed.new_zeros(self.samples, *summed.shape[1:]).index_add_(0, self.sample, summed)

    def weighted(self, tensor: Tensor, weights: Tensor) -> Tensor:
        return tensor * weights[self.sample].reshape(*tensor.shape[:-1], 1)

    def only(self, tensor: Tensor, sample: int) -> Tensor:
        keep = (self.sample == sample).reshape(*tensor.shape[:-1], 1)
        return tensor.where(keep, torch.zeros_like(tensor))


def candidates(shape: Sequence[int], trailing: int, samples: int) -> Iterator[AxisLayout]:
    """Every way in which the samples may lie along one of the leading axes, the usual ones first."""
    for axis, size in enumerate(shape[: len(shape) - trailing]):
        if size and size % samples == 0:
            yield AxisLayout(axis, samples)
            if size > samples > 1:
                yield AxisLayout(axis, samples, sample_major=False)
