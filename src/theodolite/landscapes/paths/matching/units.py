"""Which entries of which axes belong to one hidden unit, and which units move together as a block."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Bool, Int, UInt

Ids = Int[np.ndarray, "*shape"]
FIXED = 0  # the unit of what cannot move: positions of constants, of data and of padding
NONE = -1


@dataclass(frozen=True)
class Rows:
    """Units that an operation on each row, or a tensor that differs from row to row, treats as blocks.

    Args:
        members: units, one row a block.
        blocks: the unit that stands for each row.
    """

    members: Int[np.ndarray, "r c"]
    blocks: Int[np.ndarray, " r"]


@dataclass(frozen=True)
class Settled:
    """What all operations together say, for every unit.

    Args:
        root: the unit that it is one with.
        fixed: whether that stays in its place.
        block: the block that it belongs to, −1 without.
        signature: what it went through; only units and blocks of equal signature may be exchanged.
        left: whether it stays though no data, constants or outputs that it meets say so: operations group it in ways that are not
            followed, as the experts of a mixture, so that it may have a symmetry.
    """

    root: Int[np.ndarray, " u"]
    fixed: Bool[np.ndarray, " u"]
    block: Int[np.ndarray, " u"]
    signature: UInt[np.ndarray, " u"]
    left: Bool[np.ndarray, " u"]


@final
class Units:
    """A growing set of units that are found to be one another, fixed, or members of blocks."""

    def __init__(self) -> None:
        self._root = np.zeros(1, dtype=np.int64)
        self._fixed = np.ones(1, dtype=bool)
        self._given = np.ones(1, dtype=bool)
        self._signature = np.zeros(1, dtype=np.uint64)
        self._sums: list[Rows] = []
        self._factors: list[Rows] = []

    def fresh(self, count: int) -> Int[np.ndarray, " c"]:
        """New units, each its own."""
        ids = np.arange(self._root.size, self._root.size + count)
        self._root = np.concatenate([self._root, ids])
        self._fixed = np.concatenate([self._fixed, np.zeros(count, dtype=bool)])
        self._given = np.concatenate([self._given, np.zeros(count, dtype=bool)])
        self._signature = np.concatenate([self._signature, np.zeros(count, dtype=np.uint64)])
        return ids

    def find(self, ids: Ids) -> Ids:
        """The smallest unit that each is one with."""
        found: Ids = self._root[ids]
        while (found != self._root[found]).any():
            found = self._root[found]
        self._root[ids] = found
        return found

    def unite(self, first: Ids, second: Ids) -> None:
        """Entry by entry, both are one unit; what meets the fixed unit is fixed."""
        first, second = np.broadcast_arrays(first, second)
        free = (first != FIXED) & (second != FIXED)
        self.fix(np.maximum(first, second)[~free], given=True)
        first, second = first[free], second[free]
        while True:
            one, other = self.find(first), self.find(second)
            if (one == other).all():
                return
            np.minimum.at(self._root, np.maximum(one, other), np.minimum(one, other))

    def fix(self, ids: Ids, *, given: bool = False) -> None:
        """These units stay where they are; ``given`` where they meet data, constants or outputs, which have an order."""
        self._fixed[ids] = True
        self._given[ids] |= given

    def touch(self, ids: Ids, *salt: int) -> None:
        """Units went through an operation, once for every time that they are listed."""
        np.add.at(self._signature, ids.ravel(), _hashed(*salt))

    def sum_rows(self, members: Int[np.ndarray, "r c"]) -> Int[np.ndarray, " r"]:
        """An operation is on each row, as a sum over it. Rows of the same units are one block.

        Returns:
            The unit that stands for each row.
        """
        _, which = np.unique(np.sort(self.find(members), axis=1), axis=0, return_inverse=True)
        blocks = self.fresh(int(which.max()) + 1)[which.ravel()]
        self._sums.append(Rows(members, blocks))
        return blocks

    def scale_rows(self, members: Int[np.ndarray, "r c"], by: Int[np.ndarray, " r"]) -> None:
        """Each row meets one unit of another tensor, or of a constant, which is fixed."""
        self._factors.append(Rows(members, by))

    def settled(self) -> Settled:
        """What all operations together say.

        Blocks by sums come first. A factor that differs across a block, as rotary embeddings do, stays in its place, and
        tells the units of the block apart. Where two sums cut across one another, all their units are fixed.
        """
        self._close()
        for rows in self._sums:
            if self._merged(rows):
                self.fix(rows.members)
        block = np.full(self._root.size, NONE)
        for rows in self._sums:
            block[self.find(rows.members)] = self.find(rows.blocks)[:, None]
        for number, rows in enumerate(self._factors):
            self._factor(rows, block, number)
        return self._summed(block)

    def _close(self) -> None:
        """Blocks that share a unit are one block."""
        if not self._sums:
            return
        members = np.concatenate([rows.members.ravel() for rows in self._sums])
        blocks = np.concatenate([np.repeat(rows.blocks, rows.members.shape[1]) for rows in self._sums])
        while True:
            units, held = self.find(members), self.find(blocks)
            order = np.lexsort((held, units))
            units, held = units[order], held[order]
            same = (units[1:] == units[:-1]) & (held[1:] != held[:-1])
            if not same.any():
                return
            self.unite(held[1:][same], held[:-1][same])

    def _merged(self, rows: Rows) -> bool:
        """Whether rows of different units have become one block."""
        distinct = np.unique(np.sort(self.find(rows.members), axis=1), axis=0)
        return len(distinct) > len(np.unique(self.find(rows.blocks)))

    def _factor(self, rows: Rows, block: Int[np.ndarray, " u"], number: int) -> None:
        members, by = self.find(rows.members), self.find(rows.blocks)
        held = block[members]
        if (held == NONE).all() and (by != FIXED).all():
            block[members] = by[:, None]
            return
        held = np.where(held == NONE, NONE, self.find(np.maximum(held, 0)))
        along = (held == held[:, :1]).all() and (held != NONE).all()
        if along and _one_to_one(held[:, 0], by):
            self.unite(held[:, 0], by)
            return
        self.fix(by)
        for place, row in enumerate(members):
            self.touch(row, 1, number, place)

    def _summed(self, block: Int[np.ndarray, " u"]) -> Settled:
        root = self.find(np.arange(self._root.size))
        fixed, signature = np.zeros(root.size, dtype=bool), np.zeros(root.size, dtype=np.uint64)
        given = np.zeros(root.size, dtype=bool)
        np.logical_or.at(fixed, root, self._fixed)
        np.logical_or.at(given, root, self._given)
        np.add.at(signature, root, self._signature)
        belongs = np.full(root.size, NONE)
        inside = block != NONE
        belongs[root[inside]] = root[block[inside]]
        inside = belongs != NONE
        np.logical_or.at(fixed, belongs[inside], fixed[inside])
        fixed[inside] |= belongs[belongs[inside]] != NONE  # blocks of blocks keep what they hold where it is
        return Settled(root, fixed, belongs, signature, fixed & ~given)


def mixed(values: UInt[np.ndarray, "*shape"]) -> UInt[np.ndarray, "*shape"]:
    """Scrambles 64 bits, so that sums of the results tell multisets apart (the finaliser of splitmix64)."""
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(values ^ (values >> np.uint64(31)))


def _one_to_one(first: Int[np.ndarray, " r"], second: Int[np.ndarray, " r"]) -> bool:
    """Whether equal entries of one stand with equal entries of the other."""
    pairs = np.unique(np.stack([first, second]), axis=1).shape[1]
    return bool(pairs == len(np.unique(first)) == len(np.unique(second)))


def _hashed(*salt: int) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.blake2b(repr(salt).encode(), digest_size=8).digest(), "little"))
