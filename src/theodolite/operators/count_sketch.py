"""CountSketch: a random linear map from all parameters to few numbers that keeps inner products."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from theodolite.errors import ProblemError

# Coordinates that are hashed at a time: larger pieces save no time.
PIECE = 2**18
GAMMA, FIRST, SECOND = -7046029254386353131, -4658895280553007687, -7723592293110705685


@final
@dataclass(frozen=True)
class CountSketch:
    """Every coordinate goes with a random sign into one of ``size`` buckets, in ``repeats`` independent ways.

    Sketches are linear, and inner products of one repeat have the mean ⟨x, y⟩ and the variance
    (‖x‖²‖y‖² + ⟨x, y⟩² − 2Σ x_j²y_j²)/size; over the mean of all repeats it is ``repeats`` times smaller. Bucket and sign are
    computed from the number of the coordinate alone, so that nothing as long as the parameters is kept, and every process,
    step and device has the same map.

    Args:
        size: numbers in a sketch.
        repeats: how many sketches, from whose spread an error is read.
        seed: of the map; sketches compare only under one seed.

    Raises:
        ProblemError: size or repeats is not positive.

    Example:
        >>> sketch = CountSketch(size=512, repeats=4)
        >>> x = torch.ones(1, 10_000)
        >>> found = sketch(x)
        >>> found.shape
        torch.Size([1, 4, 512])
        >>> bool((found.square().sum(-1).mean() / 10_000 - 1).abs() < 4 * (2 / 512 / 4) ** 0.5)
        True

    References:
        Charikar, Chen, Farach-Colton, "Finding frequent items in data streams" (2002); Weinberger et al., "Feature hashing for
        large scale multitask learning" (2009), whose lemma 2 is the variance; Steele, Lea, Flood, "Fast splittable pseudorandom
        number generators" (2014), for the hash.
    """

    size: int
    repeats: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if not (0 < self.size < 2**31 and self.repeats > 0):
            raise ProblemError(
                f"Expected a positive size and number of repeats of a sketch, found size={self.size}, repeats={self.repeats}."
            )

    def __call__(self, rows: Float[Tensor, "b n"]) -> Float[Tensor, "b r d"]:
        """Sketches of vectors of parameters, such as gradients or updates of the optimiser.

        Args:
            rows: one vector a row, flattened in the order of ``named_parameters()``.
        """
        found = self.zeros(len(rows), like=rows)
        for start in range(0, rows.shape[1], PIECE):
            piece = rows[:, start : start + PIECE]
            self.add(found, piece, torch.arange(start, start + piece.shape[1], device=rows.device))
        return found

    def zeros(self, count: int, *, like: Tensor) -> Float[Tensor, "b r d"]:
        """Sketches of nothing, in single precision at least, to be added to."""
        wide = torch.promote_types(like.dtype, torch.float32)
        return torch.zeros(count, self.repeats, self.size, dtype=wide, device=like.device)

    def add(self, into: Float[Tensor, "b r d"], entries: Float[Tensor, "b m"], where: Int[Tensor, " m"]) -> None:
        """Add some entries of the vectors to their sketches.

        Cost: one addition of each entry for each repeat; on a GPU in any order, and so equal up to rounding.

        Args:
            into: the sketches.
            entries: of every vector.
            where: their coordinates in the flat vector.
        """
        entries = entries.to(into.dtype)
        for repeat in range(self.repeats):
            bits = _mixed(where * GAMMA + self._key(repeat))
            buckets = ((bits >> 32 & 0xFFFFFFFF) * self.size) >> 32
            signs = (1 - 2 * (bits & 1)).to(into.dtype)
            into[:, repeat].scatter_add_(1, buckets.expand(len(entries), -1), entries * signs)

    def _key(self, repeat: int) -> int:
        """A number of 64 bits that no other seed or repeat shares, but by chance."""
        of_seed = _mixed(torch.tensor(self.seed) * GAMMA + 1)
        return int(_mixed((of_seed + repeat + 1) * GAMMA))


def _mixed(x: Int[Tensor, "*m"]) -> Int[Tensor, "*m"]:
    """The finaliser of SplitMix64, in signed words that wrap around; right shifts bring in zeros."""
    x = (x ^ (x >> 30 & 0x3FFFFFFFF)) * FIRST
    x = (x ^ (x >> 27 & 0x1FFFFFFFFF)) * SECOND
    return x ^ (x >> 31 & 0x1FFFFFFFF)
