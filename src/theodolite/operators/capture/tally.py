"""Sums over parameters of what the uses give: Gram matrix, norms by layer, dot products with directions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from theodolite.operators.capture.use import Use
from theodolite.problem import Layout


@dataclass(frozen=True, eq=False)
class Reading:
    """What is kept of one parameter in one chunk to check it by.

    Args:
        total: 1ᵀG1.
        corners: the Gram matrix of the first and the last sample.
    """

    total: float
    corners: Float[Tensor, "2 2"]


class Tally:
    """Accumulates over parameters and pairs of chunks, unscaled and in double precision.

    Args:
        layout: the parameters.
        samples: in all chunks together.
        layers: whether to keep a Gram matrix for every layer.
        directions: flat directions whose dot products are wanted.
    """

    def __init__(
        self, layout: Layout, samples: int, *, layers: bool, directions: Float[Tensor, "k n"] | None = None
    ) -> None:
        self.gram = torch.zeros(samples, samples, dtype=torch.float64)
        self.layer_squares = torch.zeros(len(layout.layers), samples, dtype=torch.float64)
        self.layer_grams = torch.zeros(len(layout.layers), samples, samples, dtype=torch.float64) if layers else None
        self.dots = torch.zeros(samples, 0 if directions is None else len(directions), dtype=torch.float64)
        self.methods: dict[str, str] = {}
        self._layer = {name: index for index, names in enumerate(layout.layers.values()) for name in names}
        parts = () if directions is None else layout.unflatten_rows(directions)
        self._directions = dict(zip(layout.names, parts, strict=False))

    def add(self, uses: Sequence[Use], rows: slice) -> Reading:
        """A parameter's uses in one chunk, whose samples lie at ``rows``."""
        name = uses[0].parameter
        gram = torch.stack([use.gram() for use in uses]).sum(0)
        self._add(name, gram, rows, rows)
        self.layer_squares[self._layer[name], rows] += gram.diagonal()
        self.methods[name] = " + ".join(sorted({kind for use in uses for kind in use.kinds}))
        if name in self._directions:
            for use in uses:
                parts = [use.dots(use.block.part_of(direction)) for direction in self._directions[name]]
                self.dots[rows] += torch.stack(parts, dim=1).double().cpu()
        ends = [0, -1]
        return Reading(float(gram.sum()), gram[ends][:, ends])

    def add_pair(self, uses: Sequence[Use], rows: slice, others: Sequence[Use], columns: slice) -> None:
        """A parameter's uses in two different chunks."""
        theirs = {use.block: use for use in others}
        for use in uses:
            if use.block in theirs:
                gram = use.gram(theirs[use.block])
                self._add(use.parameter, gram, rows, columns)
                self._add(use.parameter, gram.T, columns, rows)

    def _add(self, name: str, gram: Float[Tensor, "r c"], rows: slice, columns: slice) -> None:
        self.gram[rows, columns] += gram
        if self.layer_grams is not None:
            self.layer_grams[self._layer[name], rows, columns] += gram
