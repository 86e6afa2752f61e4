"""How the low parts of a surface on a grid grow together as the level rises."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float, Int


@dataclass(frozen=True)
class Merge:
    """A part of the sub-level sets that ends where it meets an older one.

    Args:
        seed: flat index of the cell that it began with.
        at: of the cell through which it was joined; None for a part that was joined with no other.
        elder: seed of the part that it joined.
    """

    seed: int
    at: int | None = None
    elder: int | None = None


def merges(
    values: Float[np.ndarray, "a b"],
    *,
    kept: Bool[np.ndarray, "a b"],
    diagonals: bool,
    births: Float[np.ndarray, "a b"] | None = None,
    seeds: Int[np.ndarray, " m"] | None = None,
) -> list[Merge]:
    """Parts of the sets {values ≤ t} as t rises; of two that meet, that with the higher seed ends (the elder rule).

    Cells of equal value enter in their order in the array, as if each were a little higher than the last, so that ties leave parts
    that end at the level of their seed and nothing else.

    Cost: up to eight look-ups a cell.

    Args:
        values: of the cells; −∞ is a value.
        kept: cells that enter at all.
        diagonals: whether cells that touch at a corner are neighbours.
        births: what seeds are compared by, the values themselves by default.
        seeds: flat indices of the only cells that parts may begin with; parts without one have no name. All by default.

    Returns:
        One for each part, those that never end last.

    References:
        Edelsbrunner, Letscher & Zomorodian, "Topological persistence and simplification" (2002).
    """
    width = values.shape[1] + 2  # with a rim, in which nothing enters, every cell has all neighbours
    cells = np.arange(values.size).reshape(values.shape)
    padded = cells + width + 1 + 2 * (cells // max(values.shape[1], 1))
    home = dict(zip(padded.ravel().tolist(), cells.ravel().tolist(), strict=True))
    order = padded[kept][np.argsort(values[kept], kind="stable")].tolist()
    ages = (values if births is None else births).ravel().tolist()
    named = set(range(values.size) if seeds is None else seeds.tolist())
    steps = [-width, -1, 1, width, *([-width - 1, -width + 1, width - 1, width + 1] if diagonals else [])]
    parents = [-1] * (width * (values.shape[0] + 2))
    champions: dict[int, int | None] = {}
    found = []
    for place in order:
        cell = home[place]
        parents[place] = root = place
        champions[place] = cell if cell in named else None
        for other in (place + step for step in steps):
            if parents[other] < 0:
                continue
            while parents[other] != other:
                parents[other] = other = parents[parents[other]]
            if other == root:
                continue
            rivals = [one for one in (champions.pop(root), champions.pop(other)) if one is not None]
            rivals.sort(key=lambda seed: (ages[seed], seed))
            parents[root], root = other, other
            champions[other] = rivals[0] if rivals else None
            found += [Merge(younger, cell, elder) for elder, younger in pairwise(rivals) if younger != cell]
    return found + [Merge(champion) for champion in champions.values() if champion is not None]
