"""Random vectors that depend on a seed alone, not on the device, the dtype or the size of the blocks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from theodolite.linalg.operator import LinearOperator

Distribution = Literal["gaussian", "rademacher"]


@final
class Probes:
    """A stream of random vectors for an operator.

    Vectors are drawn one by one on the CPU in single precision, then converted and moved: 10 probes are the first 10
    of 20, in blocks of any size, on any device.

    Args:
        operator: gives size, dtype and device.
        seed: of the generator.
        distribution: standard normal entries, or signs.
    """

    def __init__(self, operator: LinearOperator, *, seed: int, distribution: Distribution = "gaussian") -> None:
        self._operator = operator
        self._generator = torch.Generator("cpu").manual_seed(seed)
        self._distribution = distribution

    def draw(self, count: int) -> Float[Tensor, "count n"]:
        """The next probes, one a row."""
        drawn = torch.empty(count, self._operator.shape[1], dtype=self._operator.dtype, device=self._operator.device)
        for row in drawn:
            row.copy_(self._draw_one())
        return drawn

    def blocks(self, count: int, *, size: int) -> Iterator[Float[Tensor, "n b"]]:
        """The next ``count`` probes in blocks of at most ``size``, one probe a column."""
        for first in range(0, count, size):
            yield self.draw(min(size, count - first)).T

    def _draw_one(self) -> Float[Tensor, " n"]:
        if self._operator.dots.group is None:
            return self._entries(self._operator.shape[1])
        return self._entries(self._operator.size)[self._operator.dots.own]  # of the vector that one rank would draw

    def _entries(self, n: int) -> Float[Tensor, " n"]:
        if self._distribution == "gaussian":
            return torch.randn(n, generator=self._generator, dtype=torch.float32)
        return torch.randint(0, 2, (n,), generator=self._generator, dtype=torch.int8).float().mul_(2).sub_(1)


def mean_with_stderr(samples: Float[Tensor, " m"]) -> tuple[float, float]:
    """The mean over probes and its standard error; one sample says nothing about its error, which is NaN."""
    stderr = float(samples.std()) / math.sqrt(len(samples)) if len(samples) > 1 else math.nan
    return float(samples.mean()), stderr
