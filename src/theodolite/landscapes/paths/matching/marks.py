"""Tensors whose axes are marked with the units that their entries belong to."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import final

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from theodolite.landscapes.paths.matching.units import FIXED, Units

# Unit ids in the shape of a tensor, of size 1 along the axes that they do not depend on: a matrix has one for its rows and
# one for its columns, queries of several heads have one for heads and features together.
Mark = Int[np.ndarray, "..."]
Marks = tuple[Mark, ...]


@final
class Marker:
    """The rules by which marks of operands become marks of a result, told to a set of units.

    Args:
        units: what is learnt about them.
    """

    def __init__(self, units: Units) -> None:
        self.units = units
        self._number = itertools.count(1)

    def parameter(self, shape: Sequence[int]) -> Marks:
        """A mark for every axis, of new units."""
        return tuple(
            self.units.fresh(size).reshape([-1 if k == axis else 1 for k in range(len(shape))])
            for axis, size in enumerate(shape)
            if size > 1
        )

    def meet(self, operands: Sequence[tuple[Tensor, Marks]]) -> Marks:
        """Of an elementwise operation on tensors that broadcast: what meets is one unit.

        An operand without marks is a constant or data: where its values differ along an axis, the units there are fixed.
        """
        rank = max(tensor.dim() for tensor, _ in operands)
        aligned = [
            (
                tensor.reshape((1,) * (rank - tensor.dim()) + tuple(tensor.shape)),
                [_aligned(mark, rank) for mark in marks],
            )
            for tensor, marks in operands
        ]
        result: list[Mark] = []
        for _, marks in aligned:
            for mark in marks:
                result = self._joined(result, mark)
        for index, (tensor, marks) in enumerate(aligned):
            known = {axis for mark in marks for axis in support(mark)}
            for other, (_, others) in enumerate(aligned):
                if other != index:
                    for mark in others:
                        self._against(mark, tensor, known, given=not marks)
        return self._passed(result)

    def reduce(self, marks: Marks, axes: Sequence[int], *, keep: bool = True) -> Marks:
        """Of a symmetric function over axes, as a sum; with ``keep`` they stay, of size 1."""
        found = []
        for mark in marks:
            over = [axis for axis in support(mark) if axis in axes]
            rest = [axis for axis in support(mark) if axis not in axes]
            if not over:
                found.append(mark)
            elif rest:
                blocks = self.units.sum_rows(rows(mark, rest))
                found.append(blocks.reshape([mark.shape[axis] if axis in rest else 1 for axis in range(mark.ndim)]))
        kept = self._passed(found)
        return kept if keep else tuple(mark.reshape(_without(mark.shape, axes)) for mark in kept)

    def normalise(self, marks: Marks, axes: Sequence[int]) -> Marks:
        """Of a function that is symmetric along axes and keeps them, as softmax."""
        for mark in marks:
            rest = [axis for axis in support(mark) if axis not in axes]
            if rest and len(rest) < len(support(mark)):
                self.units.sum_rows(rows(mark, rest))
        return self._passed(list(marks))

    def move(self, full: Sequence[Int[Tensor, "..."]]) -> Marks:
        """Of an operation that only moves entries, from what it makes of marks that were spread over the whole tensor."""
        found = []
        for ids in full:
            mark = compressed(ids.numpy())
            if support(mark):
                found.append(mark)
            elif mark.size:
                self.units.touch(mark, 2, next(self._number))  # one unit was picked out
        return self._passed(found)

    def fix(self, marks: Marks, *, given: bool = False) -> None:
        """All units stay where they are; ``given`` where their order is that of data, of constants or of outputs."""
        for mark in marks:
            self.units.fix(mark, given=given)

    def _joined(self, marks: list[Mark], mark: Mark) -> list[Mark]:
        """The marks with one more, which may share axes with them."""
        apart, axes = [], set(support(mark))
        for other in marks:
            shared = axes & set(support(other))
            if not shared:
                apart.append(other)
            elif support(mark) == support(other):
                self.units.unite(mark, other)
            elif shared == set(support(other)):
                self._factor(mark, other)
            elif shared == axes:
                self._factor(other, mark)
                mark, axes = other, set(support(other))
            else:
                self.fix((mark, other))
                apart.append(other)
        return [*apart, mark]

    def _factor(self, larger: Mark, smaller: Mark) -> None:
        """A tensor with fewer axes meets one with more: what it meets is a row."""
        by = np.broadcast_to(smaller, np.broadcast_shapes(smaller.shape, larger.shape))
        axes = list(support(smaller))
        self.units.scale_rows(rows(larger, axes), rows(by, axes)[:, 0])

    def _against(self, mark: Mark, tensor: Tensor, known: set[int], *, given: bool) -> None:
        """A mark meets a tensor whose values may differ along axes that are not marked."""
        axes = support(mark)
        differing = [axis for axis in axes if axis not in known and _differs(tensor, axis)]
        if not differing:
            return
        if len(differing) == len(axes):
            self.units.fix(mark, given=given)
            return
        members = rows(mark, differing)
        self.units.scale_rows(members, np.full(len(members), FIXED))

    def _passed(self, marks: Sequence[Mark]) -> Marks:
        for mark in marks:
            self.units.touch(mark, 3, next(self._number))
        return tuple(marks)


def support(mark: Mark) -> tuple[int, ...]:
    """The axes that a mark depends on."""
    return tuple(axis for axis, size in enumerate(mark.shape) if size > 1)


def rows(mark: Mark, axes: Sequence[int]) -> Int[np.ndarray, "r c"]:
    """One row for every place along given axes."""
    rest = [axis for axis in range(mark.ndim) if axis not in axes]
    count = int(np.prod([mark.shape[axis] for axis in axes]))
    return mark.transpose([*axes, *rest]).reshape(count, -1)


def compressed(ids: Mark) -> Mark:
    """Size 1 along every axis that the ids do not depend on."""
    for axis in range(ids.ndim):
        first = ids.take([0], axis=axis) if ids.shape[axis] else ids
        if (ids == first).all():
            ids = first
    return ids


def _aligned(mark: Mark, rank: int) -> Mark:
    return mark.reshape((1,) * (rank - mark.ndim) + mark.shape)


def _differs(tensor: Tensor, axis: int) -> bool:
    return tensor.shape[axis] > 1 and not torch.equal(tensor, tensor.narrow(axis, 0, 1).expand_as(tensor))


def _without(shape: tuple[int, ...], axes: Sequence[int]) -> list[int]:
    return [size for axis, size in enumerate(shape) if axis not in axes]
