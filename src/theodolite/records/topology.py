"""Minima, saddles and maxima of a surface on a grid, how long each lasts, and which of them the data can tell from noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import final

import numpy as np
from jaxtyping import Bool, Float

from theodolite.records.estimate import Estimate
from theodolite.records.merging import Merge, merges
from theodolite.records.text import number


@final
@dataclass(frozen=True)
class Site:
    """A cell of the grid.

    Args:
        row: along α.
        column: along β.
        alpha: position along d₁.
        beta: position along d₂.
        loss: there.
        border: whether it lies on the border of what was read, where a minimum may be no minimum beyond.
    """

    row: int
    column: int
    alpha: float
    beta: float
    loss: float
    border: bool


@final
@dataclass(frozen=True)
class Extremum:
    """A minimum with the saddle over which lower ground is reached, or a maximum with the saddle that closes the ring around it.

    Args:
        site: of the extremum.
        saddle: None for a minimum from which no way leads lower.
        elder: site of the minimum that it merges with at the saddle, None for a maximum and where there is no saddle.
        persistence: height between extremum and saddle; infinite where there is no saddle.
        certain: height that is left of it whatever the errors of all cells at once, at most the persistence, 0 where nothing is;
            NaN without errors.
    """

    site: Site
    saddle: Site | None
    elder: Site | None
    persistence: float
    certain: float


@final
@dataclass(frozen=True, eq=False)
class Topology:
    """Extrema of a surface, the most persistent first, and the saddles between them.

    Args:
        minima: each is the bottom of a part of the sub-level sets; neighbours are the eight cells around a cell.
        maxima: each is the top of a ring in the sub-level sets, inside of what was read; neighbours are the four beside a cell.
        rings: saddles that close a ring around cells that were not read or exploded, which has no top.
        reach: half-width of the band around every cell that holds all of them at once; NaN where it is not known.
        level: coverage of that band.
    """

    minima: tuple[Extremum, ...]
    maxima: tuple[Extremum, ...]
    rings: tuple[Site, ...] = ()
    reach: Float[np.ndarray, "a b"] = field(default_factory=lambda: np.zeros((0, 0)))
    level: float = 0.95

    @property
    def saddles(self) -> tuple[Site, ...]:
        """Of minima, then of maxima, then of rings, as often as each counts: a monkey saddle stands twice."""
        return (*(one.saddle for one in (*self.minima, *self.maxima) if one.saddle is not None), *self.rings)

    @property
    def euler(self) -> int:
        """#minima − #saddles + #maxima, the Euler characteristic of what was read: 1 for a whole plane."""
        return len(self.minima) - len(self.saddles) + len(self.maxima)

    @property
    def certain(self) -> tuple[Extremum, ...]:
        """Minima of which something is left whatever the errors.

        The true surface has at least as many minima on this grid, with probability ``level``. Every region has one.
        """
        return tuple(one for one in self.minima if one.certain > 0)

    def above(self, persistence: float) -> Topology:
        """Without what lasts no longer than a height; minima, saddles and maxima still add up to the same.

        Args:
            persistence: in units of the loss.
        """
        minima, maxima = (
            tuple(one for one in each if one.persistence > persistence) for each in (self.minima, self.maxima)
        )
        return Topology(minima, maxima, self.rings, self.reach, self.level)

    def diagram(self, dimension: int = 0) -> Float[np.ndarray, "k 2"]:
        """Birth and death of each part (dimension 0) or ring (1) of the sub-level sets; death is infinite where none comes.

        Raises:
            ValueError: a surface over a plane has no other dimension.
        """
        if dimension not in (0, 1):
            raise ValueError(f"Expected dimension 0 (parts) or 1 (rings) of sub-level sets, found {dimension!r}.")
        if dimension == 0:
            pairs = [(one.site.loss, math.inf if one.saddle is None else one.saddle.loss) for one in self.minima]
        else:
            pairs = [(one.saddle.loss, one.site.loss) for one in self.maxima if one.saddle is not None]
            pairs += [(ring.loss, math.inf) for ring in self.rings]
        return np.array(pairs, dtype=np.float64).reshape(-1, 2)

    def __str__(self) -> str:
        counts = (
            _count(len(self.minima), "minimum", "minima"),
            _count(len(self.saddles), "saddle", "saddles"),
            _count(len(self.maxima), "maximum", "maxima"),
        )
        lasting = [one for one in self.minima if one.saddle is not None]
        longest = f", the longest of finite persistence {number(lasting[0].persistence)}" if lasting else ""
        told = "errors not known" if np.isnan(self.reach).any() else f"{len(self.certain)} of the minima certain"
        return f"{', '.join(counts)}{longest}; {told}"


def topology(
    values: Float[np.ndarray, "a b"],
    *,
    alphas: Float[np.ndarray, " a"] | None = None,
    betas: Float[np.ndarray, " b"] | None = None,
    kept: Bool[np.ndarray, "a b"] | None = None,
    stderrs: Float[np.ndarray, "a b"] | None = None,
    slack: Float[np.ndarray, "a b"] | float = 0.0,
    degrees: int | None = None,
    level: float = 0.95,
) -> Topology:
    """Critical cells of a surface and their persistence.

    Every cell is compared with its neighbours alone, so that two minima between which the grid has no cell are one, and a saddle
    is at the height of its cell: above the true one by what the surface rises between cells. Equal cells are taken in their
    order, and what lasts for no height is left out. What is certain holds for all cells at once: each error is taken times the
    quantile that makes the band hold everywhere with probability ``level``, whatever the cells have in common, as those of
    one plane share their samples.

    Cost: about 10 µs a cell; twice that with errors.

    Args:
        values: of the surface.
        alphas: positions of the rows, their indices by default.
        betas: positions of the columns.
        kept: cells that take part; those that are finite by default.
        stderrs: standard errors of the values, or of their rises above one of them; None where they are exact.
        slack: further half-width, for errors that are no standard errors, as those of interpolation.
        degrees: degrees of freedom of the standard errors, None for normal ones.
        level: coverage of the band over all cells.

    Raises:
        ValueError: the level is not between 0 and 1.

    Example:
        >>> found = topology(np.array([[3.0, 0.0, 2.0, 1.0, 3.0]]))
        >>> [(one.site.loss, one.persistence) for one in found.minima]
        [(0.0, inf), (1.0, 1.0)]

    References:
        Edelsbrunner, Letscher & Zomorodian, "Topological persistence and simplification" (2002); Cohen-Steiner, Edelsbrunner &
        Harer, "Stability of persistence diagrams" (2007); Xie, Mahoney et al., "Evaluating loss landscapes from a topological
        perspective" (2024).
    """
    if not 0 < level < 1:
        raise ValueError(f"topology(level) expects a coverage between 0 and 1, for example 0.95; found {level!r}.")
    kept = np.isfinite(values) if kept is None else kept & np.isfinite(values)
    rows = np.arange(values.shape[0], dtype=np.float64) if alphas is None else alphas
    columns = np.arange(values.shape[1], dtype=np.float64) if betas is None else betas
    reach = _reach(kept, stderrs=stderrs, slack=slack, degrees=degrees, level=level)
    outside = np.pad(kept, 1)
    inner = outside[:-2, 1:-1] & outside[2:, 1:-1] & outside[1:-1, :-2] & outside[1:-1, 2:]
    site = partial(_site, rows=rows, columns=columns, values=values, border=~inner)
    low = merges(values, kept=kept, diagonals=True)
    low = [one for one in low if one.at is None or values.flat[one.at] > values.flat[one.seed]]
    left = _certain(values, reach, low, kept=kept, diagonals=True)
    minima = [_extremum(one, values, site, certain) for one, certain in zip(low, left, strict=True)]
    maxima, rings = _rings(values, reach, kept, site)
    ranked = [tuple(sorted(each, key=lambda one: -one.persistence)) for each in (minima, maxima)]
    return Topology(ranked[0], ranked[1], rings, reach, level)


def _count(number_of: int, one: str, many: str) -> str:
    return f"{number_of:,} {one if number_of == 1 else many}"


def _reach(
    kept: Bool[np.ndarray, "a b"],
    *,
    stderrs: Float[np.ndarray, "a b"] | None,
    slack: Float[np.ndarray, "a b"] | float,
    degrees: int | None,
    level: float,
) -> Float[np.ndarray, "a b"]:
    """Half-width of the band that holds all cells at once, by Bonferroni's inequality."""
    half = np.broadcast_to(np.asarray(slack, dtype=np.float64), kept.shape)
    if stderrs is not None:
        each = 1 - (1 - level) / max(int(kept.sum()), 1)
        half = half + Estimate(0.0, 1.0, degrees).interval(each)[1] * stderrs
    return np.where(kept, half, 0.0)


def _certain(
    values: Float[np.ndarray, "a b"],
    reach: Float[np.ndarray, "a b"],
    found: list[Merge],
    *,
    kept: Bool[np.ndarray, "a b"],
    diagonals: bool,
) -> list[float]:
    """What is left of each persistence on every surface within the band.

    Inside it {true ≤ t} ⊂ {values − reach ≤ t}, and the true surface at a seed is at most values + reach. Parts of the larger
    sets that have not met at t are apart on the true surface, so that a barrier between the regions of two seeds rises from no
    higher than values + reach at both to no lower than where the parts meet.
    """
    if np.isnan(reach).any():
        return [math.nan] * len(found)
    seeds = np.array([one.seed for one in found], dtype=np.int64)
    lower, upper = (values - reach).ravel(), (values + reach).ravel()
    left: dict[int, float] = {}
    for one in merges(values - reach, kept=kept, diagonals=diagonals, births=values, seeds=seeds):
        if one.at is None or one.elder is None:
            left[one.seed] = math.inf
        else:
            left[one.seed] = max(float(lower[one.at] - max(upper[one.seed], upper[one.elder])), 0.0)
    return [left.get(one.seed, 0.0) for one in found]


def _rings(
    values: Float[np.ndarray, "a b"],
    reach: Float[np.ndarray, "a b"],
    kept: Bool[np.ndarray, "a b"],
    site: Callable[[int], Site],
) -> tuple[list[Extremum], tuple[Site, ...]]:
    """Maxima, and the saddles of rings around cells that were not kept.

    Rings of the sub-level sets are parts of what lies above them: cells side by side, the eldest all that is outside.
    """
    above = np.pad(np.where(kept, -values, -np.inf), 1, constant_values=-np.inf)
    everything = np.ones(above.shape, dtype=bool)
    parts = merges(above, kept=everything, diagonals=False)
    parts = [one for one in parts if one.at is None or above.flat[one.at] > above.flat[one.seed]]
    left = _certain(above, np.pad(reach, 1), parts, kept=everything, diagonals=False)
    maxima, rings = [], []
    for part, certain in zip(parts, left, strict=True):
        if part.at is None:
            continue  # all that is outside
        seed, at = (_unpadded(cell, above.shape) for cell in (part.seed, part.at))
        if kept.flat[seed]:
            maxima.append(_extremum(Merge(seed, at), values, site, certain))
        else:
            rings.append(site(at))
    return maxima, tuple(rings)


def _unpadded(cell: int, shape: tuple[int, ...]) -> int:
    """The place of a cell in the grid without its rim."""
    row, column = divmod(cell, shape[1])
    return (row - 1) * (shape[1] - 2) + column - 1


def _extremum(
    merge: Merge,
    values: Float[np.ndarray, "a b"],
    site: Callable[[int], Site],
    certain: float,
) -> Extremum:
    saddle = None if merge.at is None else site(merge.at)
    return Extremum(
        site=site(merge.seed),
        saddle=saddle,
        elder=None if merge.elder is None else site(merge.elder),
        persistence=math.inf if merge.at is None else abs(float(values.flat[merge.at] - values.flat[merge.seed])),
        certain=certain,
    )


def _site(
    cell: int,
    *,
    rows: Float[np.ndarray, " a"],
    columns: Float[np.ndarray, " b"],
    values: Float[np.ndarray, "a b"],
    border: Bool[np.ndarray, "a b"],
) -> Site:
    i, j = divmod(cell, values.shape[1])
    return Site(i, j, float(rows[i]), float(columns[j]), float(values[i, j]), bool(border[i, j]))
