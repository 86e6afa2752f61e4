"""Sums over parameters of what the uses give: Gram matrix, norms by layer, dot products with directions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from theodolite.operators.capture.rows import Rows
from theodolite.operators.capture.use import Use
from theodolite.problem import Layout

# Bytes of per-sample gradients of a parameter, such as a bias, that are multiplied together with others.
SMALL = 2**20


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
        self._small: dict[int, list[Tensor]] = {}

    def add(self, uses: Sequence[Use], rows: slice) -> Reading:
        """A parameter's uses in one chunk, whose samples lie at ``rows``."""
        gram = self._multiplied(uses, rows)
        ends = [0, -1]
        return Reading(float(gram.sum()), gram[ends][:, ends])

    def collect(self, uses: Sequence[Use], rows: slice) -> None:
        """As ``add``, but without a reading, and small gradients wait until ``settle`` multiplies them all at once."""
        if all(isinstance(use, Rows) and use.nbytes <= SMALL for use in uses):
            self._note(uses, rows)
            parts = [use.slab(0, use.block.rows).flatten(1) for use in uses]
            self._small.setdefault(self._layer[uses[0].parameter], []).extend(parts)
        else:
            self._multiplied(uses, rows)

    def settle(self, rows: slice) -> None:
        """Multiply what waits; all of it must be of the samples at ``rows``."""
        if self._small and self.layer_grams is None:
            together = torch.cat([part for parts in self._small.values() for part in parts], dim=1)
            self.gram[rows, rows] += (together @ together.T).cpu()
        for layer, parts in self._small.items():
            joined = torch.cat(parts, dim=1)
            self.layer_squares[layer, rows] += joined.square().sum(1).cpu()
            if self.layer_grams is not None:
                gram = (joined @ joined.T).double().cpu()
                self.gram[rows, rows] += gram
                self.layer_grams[layer, rows, rows] += gram
        self._small.clear()

    def _multiplied(self, uses: Sequence[Use], rows: slice) -> Float[Tensor, "b b"]:
        first, *others = uses
        gram = first.gram()
        for use in others:
            gram += use.gram()
        self._add(first.parameter, gram, rows, rows)
        self.layer_squares[self._layer[first.parameter], rows] += gram.diagonal()
        self._note(uses, rows)
        return gram

    def _note(self, uses: Sequence[Use], rows: slice) -> None:
        """What there is to say of a parameter beside the Gram matrix."""
        name = uses[0].parameter
        self.methods[name] = " + ".join(sorted({kind for use in uses for kind in use.kinds}))
        if name in self._directions:
            for use in uses:
                parts = [use.dots(use.block.part_of(direction)) for direction in self._directions[name]]
                self.dots[rows] += torch.stack(parts, dim=1).double().cpu()

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
