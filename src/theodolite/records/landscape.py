"""Losses along a line and over a plane."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int

from theodolite.records.estimate import Estimate
from theodolite.records.record import Record
from theodolite.records.text import number


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
    """

    kind: ClassVar[str] = "line"

    alphas: Float[np.ndarray, " a"]
    losses: Float[np.ndarray, " a"]
    stderrs: Float[np.ndarray, " a"]
    direction: Float[np.ndarray, " n"] | None = None
    direction_norm: float
    name: str
    parameter_norm: float

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
        """Losses with NaN where they are not finite or above cap, for drawing."""
        return _masked(self.losses, cap)

    def summary(self) -> tuple[str, ...]:
        """Direction, losses, curvature."""
        alpha, lowest = self.minimum
        reading = f"loss {number(self.center)} at 0, lowest {number(lowest)} at α={number(alpha)}"
        return f"{self.name}, {self.alphas.size} points", reading, *_missing(self.losses)


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

    def masked(self, cap: float = float("inf")) -> Float[np.ndarray, "a b"]:
        """Losses with NaN where they are not finite or above cap, for drawing."""
        return _masked(self.losses, cap)

    def summary(self) -> tuple[str, ...]:
        """Directions, losses."""
        alpha, beta, lowest = self.minimum
        size = f"{self.alphas.size} × {self.betas.size} points"
        if self.evaluated is not None:
            error = number(self.interpolation_error)
            size += f", {int(self.evaluated.sum()):,} of them evaluated, error elsewhere {error} of the range"
        reading = f"loss {number(self.center)} at 0, lowest {number(lowest)} at ({number(alpha)}, {number(beta)})"
        return f"{self.name}, {size}", reading, *_missing(self.losses)


def _zero(positions: Float[np.ndarray, " a"]) -> int | None:
    found = np.flatnonzero(positions == 0)
    return int(found[0]) if found.size else None


def _at(losses: Float[np.ndarray, "..."], *index: int | None) -> float:
    return float("nan") if None in index else float(losses[index])


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
