"""A surface from few of its points: splines through a coarse grid, judged on cells held out, exact where they fail."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.interpolate import LinearNDInterpolator, RectBivariateSpline

from theodolite.landscapes.reading import Reading

Grid = Float[np.ndarray, "a b"]
AtNodes = Float[np.ndarray, "i j"]
Cells = Int[np.ndarray, "cells 2"]
Axes = tuple[Float[np.ndarray, " a"], Float[np.ndarray, " b"]]
Nodes = tuple[Int[np.ndarray, " i"], Int[np.ndarray, " j"]]
Evaluate = Callable[[Cells], Sequence[Reading]]

# 13 × 13 of 51 × 51: cubic splines leave 0.05 to 0.16 % of the range on smooth nets, 0.02 to 0.07 % through 17 × 17. Splines of
# degree 5 leave more.
STEPS_PER_SIDE = (6, 8)
# Cells held out, a third of them around the lowest loss: a narrow valley in a rugged plane bends its logarithms more than anything
# else, and random cells fall beside it.
HELD_OUT, AROUND_LOWEST = 24, 8
# An error of 2 % of the logarithmic range at a tolerance of 0.1 %: on rugged nets, whose range is that of an explosion, the
# linear error says nothing of the valley.
LOG_FACTOR = 20.0
TINY, ROUNDING = float(np.finfo(float).tiny), 1e-13
SHARES = (0.25, 0.25, 0.5, 1.0)  # of the patches that are still interpolated, worst first, in each round of refinement


@final
@dataclass(frozen=True, kw_only=True)
class Surface:
    """Losses over a grid, and how they were come by.

    Args:
        losses: at every cell.
        readings: of the cells that were evaluated, by row and column.
        error: the largest miss on the cells held out last, as a share of the range of finite losses; 0 where every cell was
            evaluated.
        log_error: the same of the logarithms; NaN where a loss is not positive.
        axes: positions along both axes.
        nodes: the coarse grid that splines go through.
        held: cells held out last.
    """

    losses: Float[np.ndarray, "a b"]
    readings: dict[tuple[int, int], Reading]
    error: float
    log_error: float
    axes: Axes
    nodes: Nodes
    held: Cells

    def filled(self, name: str) -> tuple[Float[np.ndarray, "a b"], float]:
        """Another quantity over the grid, read where the losses were and between those cells from a spline as well.

        Returns:
            Its values, within the range of what was read, and the largest error on the cells held out as a share of that range;
            0 where every cell was read.
        """
        truth = np.full(self.losses.shape, np.nan)
        for cell, reading in self.readings.items():
            truth[cell] = reading.scalars[name].loss
        known = self.evaluated
        seen = truth[known & np.isfinite(truth)]
        if known.all() or not seen.size:
            return truth, 0.0
        fits = [np.clip(fit, seen.min(), seen.max()) for fit in _fits(truth, self.axes, self.nodes)]
        errors = [_miss(fit, truth, self.held)[0] for fit in fits]
        best = int(np.argmin(errors))
        return np.where(known, truth, fits[best]), errors[best]

    def with_readings(self, readings: Sequence[Reading]) -> Surface:
        """The surface with other readings at the cells that were evaluated, in the order of ``readings``."""
        losses, found = self.losses.copy(), dict(zip(self.readings, readings, strict=True))
        for cell, reading in found.items():
            losses[cell] = reading.loss
        return replace(self, losses=losses, readings=found)

    def spread(self, values: Float[np.ndarray, " cells"]) -> Float[np.ndarray, "a b"]:
        """Values at the evaluated cells, in the order of ``readings``, and between them linear interpolation."""
        places = np.array(list(self.readings))
        spread = np.full(self.losses.shape, np.nan)
        if not self.evaluated.all():
            spread = LinearNDInterpolator(places, values)(*np.indices(self.losses.shape))
        spread[tuple(places.T)] = values
        return np.asarray(spread)

    @property
    def evaluated(self) -> Bool[np.ndarray, "a b"]:
        """Where a forward pass was taken."""
        return _mask(self.readings, self.losses.shape)


def surface(
    evaluate: Evaluate, alphas: Float[np.ndarray, " a"], betas: Float[np.ndarray, " b"], *, tol: float | None, seed: int
) -> Surface:
    """Losses over a grid from forward passes at some of its cells.

    At most 13 × 13 cells, both ends and the centre of the axes among them, are evaluated and joined by a bicubic spline, of
    the losses or of their logarithms. Cells between them, random ones and those around the
    lowest loss, are evaluated too and judge: where the spline misses one by
    more than ``tol`` of the range of losses, or 20 times that of the range of their logarithms, 17 × 17 cells are tried, and
    other cells held out; where they fail too, the patches whose corners their neighbours foretell worst are evaluated in full,
    and so on. A smooth surface of 51 × 51 cells costs a thirteenth of them; a rugged one more, up to all.

    Cost: one forward pass for each evaluated cell.

    Args:
        evaluate: readings at cells, given as rows and columns of the grid.
        alphas: positions along the first axis.
        betas: positions along the second axis.
        tol: largest miss that is let pass, as a share of the range of finite losses; None evaluates every cell.
        seed: of the cells held out.
    """
    axes, shape = (alphas, betas), (alphas.size, betas.size)
    levels = [(_coarse(alphas, steps), _coarse(betas, steps)) for steps in STEPS_PER_SIDE]
    nodes, *finer = [(np.arange(alphas.size), np.arange(betas.size))] if tol is None else levels
    readings: dict[tuple[int, int], Reading] = {}
    _take(evaluate, readings, _crossings(nodes))
    generator, shares = np.random.default_rng(seed), iter(SHARES)
    while True:
        exact = _exact(readings, shape)
        held = _held_out(exact, ~_mask(readings, shape), generator)
        if not held.size:
            return Surface(losses=exact, readings=readings, error=0.0, log_error=0.0, axes=axes, nodes=nodes, held=held)
        _take(evaluate, readings, held)
        truth = _exact(readings, shape)
        candidates = [(fit, *_miss(fit, truth, held)) for fit in _fits(exact, axes, nodes)]
        fit, error, log_error = min(candidates, key=lambda found: _badness(*found[1:]))
        if tol is not None and _badness(error, log_error) <= tol:
            losses = np.where(_mask(readings, shape), truth, fit)
            return Surface(
                losses=losses,
                readings=readings,
                error=error,
                log_error=log_error,
                axes=axes,
                nodes=nodes,
                held=held,
            )
        open_ = ~_mask(readings, shape)
        if finer:
            nodes = finer.pop(0)
            cells = _crossings(nodes)
            _take(evaluate, readings, cells[open_[tuple(cells.T)]])
        else:
            _take(evaluate, readings, _worst(exact, axes, nodes, open_, share=next(shares)))


def _held_out(exact: Grid, open_: Bool[np.ndarray, "a b"], generator: np.random.Generator) -> Cells:
    """Cells that are not evaluated yet, in random order those nearest to the lowest loss and any others."""
    cells: Cells = generator.permutation(np.argwhere(open_))
    if not np.isfinite(exact).any():
        return cells[:HELD_OUT]
    lowest = np.unravel_index(np.argmin(np.where(np.isfinite(exact), exact, np.inf)), exact.shape)
    nearest = np.argsort(np.abs(cells - np.array(lowest)).max(axis=1), kind="stable")[:AROUND_LOWEST]
    return np.concatenate([cells[nearest], np.delete(cells, nearest, axis=0)[: HELD_OUT - AROUND_LOWEST]])


def _crossings(nodes: Nodes) -> Cells:
    return np.stack(np.meshgrid(*nodes, indexing="ij"), axis=-1).reshape(-1, 2)


def _coarse(positions: Float[np.ndarray, " a"], steps: int) -> Int[np.ndarray, " c"]:
    """Indices of both ends, of the centre, and of evenly spaced positions between them."""
    middle = int(np.argmin(np.abs(positions)))
    last = positions.size - 1
    below = np.linspace(0, middle, min(steps, middle) + 1)
    above = np.linspace(middle, last, min(steps, last - middle) + 1)
    return np.unique(np.round(np.concatenate([below, above])).astype(int))


def _take(evaluate: Evaluate, readings: dict[tuple[int, int], Reading], cells: Cells) -> None:
    places = [(row, column) for row, column in cells.tolist()]
    readings.update(zip(places, evaluate(cells), strict=True))


def _mask(readings: dict[tuple[int, int], Reading], shape: tuple[int, ...]) -> Bool[np.ndarray, "a b"]:
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(np.array(list(readings)).T)] = True
    return mask


def _exact(readings: dict[tuple[int, int], Reading], shape: tuple[int, int]) -> Grid:
    """The losses that were evaluated, NaN elsewhere."""
    losses = np.full(shape, np.nan)
    for cell, reading in readings.items():
        losses[cell] = reading.loss
    return losses


def _fits(exact: Grid, axes: Axes, nodes: Nodes) -> list[Grid]:
    """Bicubic splines of the losses at the nodes, and of their logarithms where all are positive."""
    values = _finite(exact[np.ix_(*nodes)])
    fits = [_spline(values, axes, nodes)]
    if values.min() > 0:
        with np.errstate(over="ignore"):  # infinity misses what is held out
            fits.append(np.exp(_spline(np.log(values), axes, nodes)))
    return fits


def _finite(values: AtNodes) -> AtNodes:
    """The highest finite loss in place of what is not finite; zeros where nothing is."""
    known = values[np.isfinite(values)]
    return np.where(np.isfinite(values), values, known.max() if known.size else 0.0)


def _spline(values: AtNodes, axes: Axes, nodes: Nodes) -> Grid:
    """The bicubic spline through values at nodes, on all positions; of a lower degree where there are few nodes."""
    (alphas, betas), (rows, columns) = axes, nodes
    degrees = (min(3, rows.size - 1), min(3, columns.size - 1))
    found = RectBivariateSpline(alphas[rows], betas[columns], values, kx=degrees[0], ky=degrees[1])(alphas, betas)
    return np.asarray(found)


def _miss(fit: Grid, truth: Grid, held: Cells) -> tuple[float, float]:
    """The largest error at held-out cells as a share of the range, of losses and of their logarithms."""
    at = tuple(held.T)
    known = truth[np.isfinite(truth)]
    if not np.isfinite(truth[at]).all() or not known.size:
        return float("inf"), float("inf")
    error = _share(fit[at] - truth[at], known)
    if known.min() <= 0:
        return error, float("nan")
    return error, _share(np.log(np.maximum(fit[at], TINY)) - np.log(truth[at]), np.log(known))


def _share(differences: Float[np.ndarray, "..."], known: Float[np.ndarray, " k"]) -> float:
    """The largest difference as a share of a range, 0 where neither is above rounding."""
    largest, width = float(np.abs(differences).max()), float(np.ptp(known))
    return 0.0 if largest <= ROUNDING * float(np.abs(known).max()) else largest / max(width, TINY)


def _badness(error: float, log_error: float) -> float:
    return max(error, 0.0 if np.isnan(log_error) else log_error / LOG_FACTOR)


def _worst(exact: Grid, axes: Axes, nodes: Nodes, open_: Bool[np.ndarray, "a b"], *, share: float) -> Cells:
    """The cells that are still open in the worst patches between nodes: those whose corners every second node foretells worst."""
    scores = _foretold_badly(exact, axes, nodes)
    corners = np.stack([scores[:-1, :-1], scores[1:, :-1], scores[:-1, 1:], scores[1:, 1:]]).max(axis=0)
    patches = []
    for i, j in np.ndindex(*corners.shape):
        rows, columns = slice(nodes[0][i], nodes[0][i + 1] + 1), slice(nodes[1][j], nodes[1][j + 1] + 1)
        cells = np.argwhere(open_[rows, columns]) + np.array([rows.start, columns.start])
        if cells.size:
            patches.append((float(corners[i, j]), cells))
    patches.sort(key=lambda patch: -patch[0])
    count = int(np.ceil(share * len(patches)))
    return np.unique(np.concatenate([cells for _, cells in patches[:count]]), axis=0)


def _foretold_badly(exact: Grid, axes: Axes, nodes: Nodes) -> AtNodes:
    """How far every node lies from the spline through every second node, in tolerances; infinite where it is not finite."""
    raw = exact[np.ix_(*nodes)]
    values = _finite(raw)
    halved = tuple(np.unique(np.append(each[::2], each[-1])) for each in nodes)
    fit = _spline(_finite(exact[np.ix_(*halved)]), axes, (halved[0], halved[1]))[np.ix_(*nodes)]
    scores = np.abs(fit - values) / max(float(np.ptp(values)), TINY)
    if values.min() > 0:
        logs = np.log(values)
        apart = np.abs(np.log(np.maximum(fit, TINY)) - logs) / max(float(np.ptp(logs)), TINY)
        scores = np.maximum(scores, apart / LOG_FACTOR)
    return np.where(np.isfinite(raw), scores, np.inf)
