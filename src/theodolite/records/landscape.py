"""Losses along a line and over a plane."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int

from theodolite.records.estimate import Estimate
from theodolite.records.quadratic import Quadratic, band, predicted
from theodolite.records.record import Record
from theodolite.records.text import number
from theodolite.records.topology import Topology, topology


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Line(Record):
    """Losses L(θ + α·d).

    Args:
        alphas: positions.
        losses: loss at each; NaN and infinity are readings.
        stderrs: standard error of losses − loss at the centre, same samples at both (jackknife over chunks of the
            data, by weight); NaN with one chunk.
        direction: d, flattened; None if it was dropped.
        direction_norm: ‖d‖.
        name: how d was drawn: ``"filter"``, ``"gaussian"``, ``"given"``.
        parameter_norm: ‖θ‖.
        scalars: other quantities at each position, by name, of the same forward pass on the same samples.
        scalar_stderrs: standard errors of their rise above the centre, as for the losses; NaN where they are not known.
        cap: loss above which a position counts as exploded.
        partial: where no more was read than the first chunk of the data, as its loss was above the cap or not finite; the
            numbers there are that chunk's. None where all were read.
        precision_error: the largest error of reduced precision at positions read again without, as a share of the range.
        slope: gᵀd, NaN where the quadratic model was not asked for.
        bend: dᵀHd.
        quadratic_radii: distances from the centre, in units of d, at which the model L₀ + α gᵀd + ½α² dᵀHd was held against losses.
        quadratic_errors: its largest error within each distance as a share of the range of the losses there.
    """

    kind: ClassVar[str] = "line"

    alphas: Float[np.ndarray, " a"]
    losses: Float[np.ndarray, " a"]
    stderrs: Float[np.ndarray, " a"]
    direction: Float[np.ndarray, " n"] | None = None
    direction_norm: float
    name: str
    parameter_norm: float
    scalars: Mapping[str, Any] = field(default_factory=dict)
    scalar_stderrs: Mapping[str, Any] = field(default_factory=dict)
    cap: float = float("inf")
    partial: Bool[np.ndarray, " a"] | None = None
    precision_error: float = 0.0
    slope: float = float("nan")
    bend: float = float("nan")
    quadratic_radii: Float[np.ndarray, " r"] | None = None
    quadratic_errors: Float[np.ndarray, " r"] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _same_shapes(self)

    @property
    def quadratic(self) -> Quadratic | None:
        """The quadratic model at the centre and how far it holds; None where it was not asked for."""
        return predicted((self.slope,), ((self.bend,),), self.quadratic_radii, self.quadratic_errors)

    @property
    def exploded(self) -> Bool[np.ndarray, " a"]:
        """Where the loss is above the cap or not finite."""
        return _exploded(self.losses, self.cap)

    def band(self, level: float = 0.95, *, scalar: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Ends, at every position, of an interval for the loss less that of the centre on all that the data stand for.

        Args:
            level: coverage at each position.
            scalar: one of ``scalars`` instead of the loss.
        """
        values, stderrs = _chosen(self, scalar)
        return band(values - _at(values, _zero(self.alphas)), stderrs, level=level, degrees=self.data_degrees)

    @property
    def center(self) -> float:
        """Loss at α = 0, NaN where that is not a position."""
        return _at(self.losses, _zero(self.alphas))

    @property
    def finite(self) -> Bool[np.ndarray, " a"]:
        """Where the loss is a finite number."""
        return np.asarray(np.isfinite(self.losses))

    @property
    def minimum(self) -> tuple[float, float]:
        """Position α and value of the smallest finite loss; NaN where none is finite."""
        alpha, loss = _minimum(self.losses, self.alphas)
        return alpha, loss

    @property
    def curvature(self) -> Estimate:
        """Second difference at the centre per unit length, dᵀHd/‖d‖² up to O(step²) where the loss is smooth.

        The error is an upper bound: the errors of the two neighbours are added, as they share their samples. NaN
        without a neighbour on each side.
        """
        return _curvature(self.alphas, self.losses, self.stderrs, self.direction_norm, self.data_degrees)

    def masked(self, cap: float = float("inf")) -> Float[np.ndarray, " a"]:
        """Losses with NaN where they are not finite or above cap or that of the record, for drawing."""
        return _masked(self.losses, min(cap, self.cap))

    def summary(self) -> tuple[str, ...]:
        """Direction, losses, curvature."""
        alpha, lowest = self.minimum
        reading = f"{_at_center(self.center, self.alphas)}lowest {number(lowest)} at α={number(alpha)}"
        return f"{self.name}, {self.alphas.size} points", reading, *_missing(self.losses), *_capped(self)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Plane(Record):
    """Losses L(θ + α·d₁ + β·d₂).

    Args:
        alphas: positions along d₁.
        betas: positions along d₂.
        losses: loss at each point; NaN and infinity are readings.
        stderrs: standard error of losses − loss at the centre, same samples at both (jackknife over chunks of the
            data, by weight); NaN with one chunk.
        directions: d₁ and d₂, flattened; None if they were dropped.
        direction_norms: ‖d₁‖ and ‖d₂‖.
        cosine: cosine between d₁ and d₂ as used, after normalisation.
        name: how they were drawn: ``"filter"``, ``"gaussian"``, ``"trajectory"``, ``"given"``.
        parameter_norm: ‖θ‖.
        path: coordinates (α, β) of the least-squares projection of each checkpoint of a trajectory.
        path_steps: their optimiser steps.
        path_losses: loss at each checkpoint itself, not at its projection.
        path_distances: distance of each checkpoint from the plane.
        explained: shares of the trajectory's variance that d₁ and d₂ explain; None without a trajectory.
        evaluated: where a forward pass was taken; the other losses are those of a spline, their standard errors interpolated.
            None where all were.
        interpolation_error: the largest error of the spline on cells held out from it, as a share of the range of losses; an
            estimate from some two dozen cells, which the worst cell may exceed severalfold.
        interpolation_log_error: the same of the logarithms of the losses; NaN where a loss is not positive.
        scalars: other quantities at each point, by name, of the same forward pass on the same samples; NaN where they were not
            read, as eigenvalues are on a coarser grid.
        scalar_stderrs: standard errors of their rise above the centre, as for the losses; NaN where they are not known.
        scalar_errors: the largest error of each on cells held out, as a share of its range.
        cap: loss above which a cell counts as exploded.
        partial: where no more was read than the first chunk of the data, as its loss was above the cap or not finite; the
            numbers there are that chunk's. None where all were read.
        precision_error: the largest error of reduced precision at points read again without, as a share of the range.
        slopes: gᵀd₁ and gᵀd₂, None where the quadratic model was not asked for.
        bends: dᵢᵀHdⱼ.
        quadratic_radii: distances from the centre, in units of the directions, at which the model L₀ + gᵀδ + ½δᵀHδ was held
            against losses in eight directions.
        quadratic_errors: its largest error within each distance as a share of the range of the losses there.
    """

    kind: ClassVar[str] = "plane"

    alphas: Float[np.ndarray, " a"]
    betas: Float[np.ndarray, " b"]
    losses: Float[np.ndarray, "a b"]
    stderrs: Float[np.ndarray, "a b"]
    directions: tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]] | None = None
    direction_norms: tuple[float, float]
    cosine: float
    name: str
    parameter_norm: float
    path: Float[np.ndarray, "t 2"] | None = None
    path_steps: Int[np.ndarray, " t"] | None = None
    path_losses: Float[np.ndarray, " t"] | None = None
    path_distances: Float[np.ndarray, " t"] | None = None
    explained: tuple[float, float] | None = None
    evaluated: Bool[np.ndarray, "a b"] | None = None
    interpolation_error: float = 0.0
    interpolation_log_error: float = 0.0
    scalars: Mapping[str, Any] = field(default_factory=dict)
    scalar_stderrs: Mapping[str, Any] = field(default_factory=dict)
    scalar_errors: Mapping[str, float] = field(default_factory=dict)
    cap: float = float("inf")
    partial: Bool[np.ndarray, "a b"] | None = None
    precision_error: float = 0.0
    slopes: tuple[float, float] | None = None
    bends: Float[np.ndarray, "2 2"] | None = None
    quadratic_radii: Float[np.ndarray, " r"] | None = None
    quadratic_errors: Float[np.ndarray, " r"] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _same_shapes(self)

    @property
    def quadratic(self) -> Quadratic | None:
        """The quadratic model at the centre and how far it holds; None where it was not asked for."""
        if self.slopes is None or self.bends is None:
            return None
        return predicted(self.slopes, self.bends, self.quadratic_radii, self.quadratic_errors)

    @property
    def exploded(self) -> Bool[np.ndarray, "a b"]:
        """Where the loss is above the cap or not finite."""
        return _exploded(self.losses, self.cap)

    def band(self, level: float = 0.95, *, scalar: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Ends, at every point, of an interval for the loss less that of the centre on all that the data stand for.

        Args:
            level: coverage at each point.
            scalar: one of ``scalars`` instead of the loss.
        """
        values, stderrs = _chosen(self, scalar)
        center = _at(values, _zero(self.alphas), _zero(self.betas))
        return band(values - center, stderrs, level=level, degrees=self.data_degrees)

    @property
    def center(self) -> float:
        """Loss at α = β = 0, NaN where that is not on the grid."""
        return _at(self.losses, _zero(self.alphas), _zero(self.betas))

    @property
    def finite(self) -> Bool[np.ndarray, "a b"]:
        """Where the loss is a finite number."""
        return np.asarray(np.isfinite(self.losses))

    @property
    def minimum(self) -> tuple[float, float, float]:
        """Position α, β and value of the smallest finite loss; NaN where none is finite."""
        alpha, beta, loss = _minimum(self.losses, self.alphas, self.betas)
        return alpha, beta, loss

    @property
    def curvatures(self) -> tuple[Estimate, Estimate]:
        """Second differences at the centre along both axes per unit length, dᵀHd/‖d‖² up to O(step²).

        The errors are upper bounds, as for ``Line.curvature``; NaN where the centre is not on the grid.
        """
        row, column = _zero(self.alphas), _zero(self.betas)
        unknown = Estimate(float("nan"), float("nan"))
        if row is None or column is None:
            return unknown, unknown
        first, second = self.direction_norms
        return (
            _curvature(self.alphas, self.losses[:, column], self.stderrs[:, column], first, self.data_degrees),
            _curvature(self.betas, self.losses[row, :], self.stderrs[row, :], second, self.data_degrees),
        )

    def topology(self, level: float = 0.95, *, scalar: str | None = None) -> Topology:
        """Minima, saddles and maxima of the surface, how long each lasts, and which of them are certain.

        Exploded cells are left out. What is certain stands against the errors of all cells at once, those from the data with
        those of interpolation and reduced precision, taken as they were found on cells held out.

        Cost: about 20 µs a cell.

        Args:
            level: coverage of the band over all cells.
            scalar: one of ``scalars`` instead of the loss.
        """
        values, stderrs = _chosen(self, scalar)
        kept = np.isfinite(values) & ~self.exploded
        extent = float(np.ptp(values[kept])) if kept.any() else 0.0
        missed = self.interpolation_error if scalar is None else self.scalar_errors.get(scalar, 0.0)
        slack = np.full(values.shape, self.precision_error * extent)
        if self.evaluated is not None:
            slack += np.where(self.evaluated, 0.0, missed * extent)
        return topology(
            values,
            alphas=self.alphas,
            betas=self.betas,
            kept=kept,
            stderrs=stderrs,
            slack=slack,
            degrees=self.data_degrees,
            level=level,
        )

    def masked(self, cap: float = float("inf")) -> Float[np.ndarray, "a b"]:
        """Losses with NaN where they are not finite or above cap or that of the record, for drawing."""
        return _masked(self.losses, min(cap, self.cap))

    def summary(self) -> tuple[str, ...]:
        """Directions, losses."""
        alpha, beta, lowest = self.minimum
        size = f"{self.alphas.size} × {self.betas.size} points"
        if self.evaluated is not None:
            error = number(self.interpolation_error)
            size += f", {int(self.evaluated.sum()):,} of them evaluated, error elsewhere {error} of the range"
        center = _at_center(self.center, self.alphas, self.betas)
        if self.name == "frame" and self.path is not None and self.path_losses is not None and len(self.path):
            here = ", ".join(map(number, self.path[-1].tolist()))
            center = f"loss {number(float(self.path_losses[-1]))} at the checkpoint ({here}), "
        reading = f"{center}lowest {number(lowest)} at ({number(alpha)}, {number(beta)})"
        return f"{self.name}, {size}", reading, *_missing(self.losses), *_capped(self)


def _zero(positions: Float[np.ndarray, " a"]) -> int | None:
    found = np.flatnonzero(positions == 0)
    return int(found[0]) if found.size else None


def _at(losses: Float[np.ndarray, "..."], *index: int | None) -> float:
    return float("nan") if None in index else float(losses[index])


def _at_center(loss: float, *axes: Float[np.ndarray, " _"]) -> str:
    """The loss at the centre where that was read; a span may leave it out."""
    return f"loss {number(loss)} at 0, " if all((axis == 0).any() for axis in axes) else "centre off the grid, "


def _minimum(losses: Float[np.ndarray, "..."], *axes: Float[np.ndarray, " _"]) -> tuple[float, ...]:
    if not np.isfinite(losses).any():
        return (float("nan"),) * (len(axes) + 1)
    index = np.unravel_index(np.argmin(np.where(np.isfinite(losses), losses, np.inf)), losses.shape)
    return *(float(axis[i]) for axis, i in zip(axes, index, strict=True)), float(losses[index])


def _masked(losses: Float[np.ndarray, "..."], cap: float) -> Float[np.ndarray, "..."]:
    return np.where(np.isfinite(losses) & (losses <= cap), losses, np.nan)


def _missing(losses: Float[np.ndarray, "..."]) -> tuple[str, ...]:
    count = int((~np.isfinite(losses)).sum())
    return (f"{count:,} of {losses.size:,} NOT FINITE",) if count else ()


def _capped(record: Line | Plane) -> tuple[str, ...]:
    """How many readings are above a cap, where there is one."""
    if not np.isfinite(record.cap):
        return ()
    count = int((record.losses > record.cap).sum())
    return (f"{count:,} of {record.losses.size:,} above the cap of {number(record.cap)}",)


def _exploded(losses: Float[np.ndarray, "..."], cap: float) -> Bool[np.ndarray, "..."]:
    return np.asarray(~np.isfinite(losses) | (losses > cap))


def _chosen(record: Line | Plane, scalar: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Values and standard errors of the loss or of another quantity."""
    if scalar is None:
        return record.losses, record.stderrs
    if scalar not in record.scalars:
        raise ValueError(f"Expected a scalar among {sorted(record.scalars)}, found {scalar!r}.")
    return record.scalars[scalar], record.scalar_stderrs[scalar]


def _same_shapes(record: Line | Plane) -> None:
    """Every quantity stands at every point."""
    for name, values in [*record.scalars.items(), *record.scalar_stderrs.items()]:
        if np.shape(values) != record.losses.shape:
            raise ValueError(
                f"{type(record).__name__}.scalars[{name!r}] has shape {np.shape(values)}; expected {record.losses.shape}, one "
                "for each loss."
            )


def _curvature(
    positions: Float[np.ndarray, " a"],
    losses: Float[np.ndarray, " a"],
    stderrs: Float[np.ndarray, " a"],
    norm: float,
    degrees: int | None,
) -> Estimate:
    """Second difference between uneven neighbours of 0: 2Δ₋/(h₋(h₋+h₊)) + 2Δ₊/(h₊(h₋+h₊)), Δ the rise from the centre."""
    center = _zero(positions)
    below, above = np.flatnonzero(positions < 0), np.flatnonzero(positions > 0)
    if center is None or not below.size or not above.size or not norm > 0:
        return Estimate(float("nan"), float("nan"))
    pair = np.array([below[np.argmax(positions[below])], above[np.argmin(positions[above])]])
    steps = np.abs(positions[pair])
    factors = 2 / (steps * steps.sum() * norm**2)
    with np.errstate(invalid="ignore"):  # infinity − infinity is a reading, NaN
        rises = losses[pair] - losses[center]
        return Estimate(float(factors @ rises), float(factors @ stderrs[pair]), degrees)
