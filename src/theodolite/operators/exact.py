"""An exact diagonal block of a Fisher, dense or its diagonal only, summed over backward passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Int
from torch import Tensor

from theodolite.linalg import RotatedDiagonal
from theodolite.operators.pullbacks import Pullback
from theodolite.operators.sums import index_of, squares
from theodolite.problem import Problem


@final
class ExactBlock:
    """Sums of outer products of per-sample gradients of some parameters, or of their squares.

    Args:
        problem: decides types and places.
        names: parameters of the block, in the order of the problem.
        dense: whether the whole block is kept, or its diagonal.
    """

    def __init__(self, problem: Problem, names: Sequence[str], *, dense: bool) -> None:
        slices = problem.layout.slices
        self._starts, size = {}, 0
        for name in names:
            self._starts[name] = size
            size += slices[name].stop - slices[name].start
        self.dense = dense
        self.index: Int[Tensor, " p"] = torch.cat([torch.arange(slices[n].start, slices[n].stop) for n in names])
        self._dtype = problem.dtype
        wide = torch.promote_types(problem.dtype, torch.float32)
        self._total = torch.zeros((size, size) if dense else (size,), dtype=wide, device=problem.device)

    def add(self, pullback: Pullback) -> None:
        """Take in one backward pass of one chunk."""
        total = self._total
        rows = torch.zeros(pullback.samples, len(total), dtype=total.dtype, device=total.device) if self.dense else None
        for name, start in self._starts.items():
            for use in pullback.uses.get(name, ()):
                where = (index_of(use.block) + start).to(total.device)
                if rows is None:
                    total[where] += squares(use).to(total.dtype)
                else:
                    rows[:, where] = use.materialise().reshape(pullback.samples, -1).to(total.dtype)
        if rows is not None:
            total += rows.T @ rows

    def diagonalised(self, scale: float) -> RotatedDiagonal:
        """The block times ``scale``, by its eigenvectors."""
        if not self.dense:
            return RotatedDiagonal((self._total * scale)[None].to(self._dtype))
        values, vectors = torch.linalg.eigh(self._total * scale)
        return RotatedDiagonal(values.clamp_min(0.0)[None].to(self._dtype), right=vectors.to(self._dtype))
