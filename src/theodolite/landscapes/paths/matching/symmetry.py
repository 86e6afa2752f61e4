"""The permutations of hidden units that leave a model's function as it is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from theodolite.landscapes.paths.matching.units import NONE, Settled, mixed

Place = tuple[str, int]  # a parameter or buffer, and one of its axes
Indices = Mapping[Place, Int[np.ndarray, " s"]]


@dataclass(frozen=True)
class Fibre:
    """Units of several blocks that correspond to one another; those of one block may be exchanged.

    Args:
        positions: where the j-th unit of block h stands along each axis, in order, (h, j, times).
    """

    positions: Mapping[Place, Int[np.ndarray, "h j t"]]

    @property
    def size(self) -> int:
        """Units of each block."""
        return int(next(iter(self.positions.values())).shape[1])


@dataclass(frozen=True)
class Group:
    """Blocks that may be exchanged, each with its units; a plain layer has blocks without units inside.

    Args:
        blocks: how many.
        own: where block h itself stands along each axis, in order, (h, times).
        fibres: the units inside the blocks.
    """

    blocks: int
    own: Mapping[Place, Int[np.ndarray, "h t"]]
    fibres: tuple[Fibre, ...] = ()

    @property
    def places(self) -> tuple[Place, ...]:
        """All axes that it permutes."""
        return tuple(dict.fromkeys([*self.own, *(place for fibre in self.fibres for place in fibre.positions)]))

    @property
    def name(self) -> str:
        """The first axis that it permutes, in words."""
        parameter, axis = self.places[0]
        inside = f" blocks of {'+'.join(str(fibre.size) for fibre in self.fibres)}" if self.fibres else ""
        return f"{parameter} axis {axis} ({self.blocks}{inside})"

    def indices(
        self, outer: Int[np.ndarray, " h"], inner: tuple[Int[np.ndarray, "h _"], ...], sizes: Mapping[Place, int]
    ) -> Indices:
        """For every axis, which entry comes to stand at each place.

        Args:
            outer: which block comes to stand at each block.
            inner: for each fibre, which unit of that block comes to stand at each unit.
            sizes: of the axes.
        """
        found = {place: np.arange(sizes[place]) for place in self.places}
        for place, positions in self.own.items():
            found[place][positions] = positions[outer]
        for fibre, order in zip(self.fibres, inner, strict=True):
            for place, positions in fibre.positions.items():
                found[place][positions] = positions[outer[:, None], order]
        return found

    def random(self, generator: np.random.Generator, sizes: Mapping[Place, int]) -> Indices:
        """A random element of the group."""
        inner = [np.stack([generator.permutation(fibre.size) for _ in range(self.blocks)]) for fibre in self.fibres]
        return self.indices(generator.permutation(self.blocks), tuple(inner), sizes)


def permuted(state: Mapping[str, Tensor], indices: Indices) -> dict[str, Tensor]:
    """A state whose entries are moved along axes; the rest is shared with the given one."""
    moved = dict(state)
    for (name, axis), order in indices.items():
        moved[name] = moved[name].index_select(axis, torch.from_numpy(order).to(moved[name].device))
    return moved


def groups_of(settled: Settled, axes: Mapping[Place, Int[np.ndarray, " s"]]) -> list[Group]:
    """The independent groups of permutations, those of the first axes first.

    Args:
        settled: what the operations say of all units.
        axes: the units along the axes of parameters and buffers.
    """
    held = _Held(settled, axes)
    found = [*held.plain(), *held.blocked()]
    order = {place: rank for rank, place in enumerate(axes)}
    return sorted(found, key=lambda group: order[group.places[0]])


def left_of(
    settled: Settled, axes: Mapping[Place, Int[np.ndarray, " s"]], groups: Sequence[Group]
) -> tuple[Place, ...]:
    """Axes that no group permutes, though neither data nor outputs give their units an order."""
    moved = {place for group in groups for place in group.places}
    # What is free but in no group is alike to nothing, or stands for a block whose units stand in no parameter.
    left = settled.left | (~settled.fixed & (settled.signature != 0))
    return tuple(place for place, ids in axes.items() if place not in moved and bool(left[settled.root[ids]].any()))


class _Held:
    """Units that stand in parameters, by block and signature."""

    def __init__(self, settled: Settled, axes: Mapping[Place, Int[np.ndarray, " s"]]) -> None:
        self.fixed, self.block = settled.fixed, settled.block
        self.used = settled.signature != 0  # what no operation touched has no order to find
        self.positions: dict[int, dict[Place, np.ndarray]] = defaultdict(dict)
        self.signature = settled.signature.copy()
        for rank, (place, ids) in enumerate(axes.items()):
            roots = settled.root[ids]
            np.add.at(self.signature, roots, mixed(np.array([rank + 1], dtype=np.uint64))[0])
            order = np.argsort(roots, kind="stable")
            units, starts = np.unique(roots[order], return_index=True)
            for unit, where in zip(units.tolist(), np.split(order, starts[1:]), strict=True):
                self.positions[unit][place] = where

    def plain(self) -> Iterator[Group]:
        """Units that belong to no block."""
        blocks = set(self.block[self.block != NONE].tolist())
        alike: dict[int, list[int]] = defaultdict(list)
        for unit in self.positions:
            if self.used[unit] and not self.fixed[unit] and self.block[unit] == NONE and unit not in blocks:
                alike[int(self.signature[unit])].append(unit)
        for units in alike.values():
            if len(units) > 1:
                yield Group(len(units), self._stacked(units))

    def blocked(self) -> Iterator[Group]:
        """Blocks with the units inside; one that must stay where it is alone."""
        inside: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
        for unit in sorted(self.positions):
            if self.block[unit] != NONE:
                inside[int(self.block[unit])][int(self.signature[unit])].append(unit)
        alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for block, members in inside.items():
            contents = [(signature, len(units)) for signature, units in sorted(members.items())]
            alone = (block,) if self.fixed[block] else ()
            own = int(self.signature[block])
            alike[(*alone, own, *(number for pair in contents for number in pair))].append(block)
        for blocks in alike.values():
            group = self._group(blocks, inside)
            if group.blocks > 1 or group.fibres:
                yield group

    def _group(self, blocks: list[int], inside: Mapping[int, Mapping[int, list[int]]]) -> Group:
        fibres = []
        for signature in sorted(inside[blocks[0]]):
            members = [
                [unit for unit in inside[block][signature] if not self.fixed[unit] or len(blocks) > 1]
                for block in blocks
            ]
            if len(blocks) > 1 or len(members[0]) > 1:
                stacked = self._stacked([unit for units in members for unit in units])
                shape = (len(blocks), len(members[0]), -1)
                fibres.append(Fibre({place: where.reshape(shape) for place, where in stacked.items()}))
        standing = all(block in self.positions for block in blocks)
        own = self._stacked(blocks) if standing and len(blocks) > 1 else {}
        return Group(len(blocks), own, tuple(fibres))

    def _stacked(self, units: list[int]) -> dict[Place, np.ndarray]:
        return {place: np.stack([self.positions[unit][place] for unit in units]) for place in self.positions[units[0]]}
