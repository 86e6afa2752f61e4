"""Losses along a line and over a plane."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int

from theodolite.records.record import Record


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Line(Record):
    """Losses L(θ + α·d).

    Args:
        alphas: positions.
        losses: loss at each; NaN and infinity are readings.
        stderrs: standard error of losses − loss at the centre, same samples at both (jackknife over chunks of the
            data); NaN with one chunk.
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


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Plane(Record):
    """Losses L(θ + α·d₁ + β·d₂).

    Args:
        alphas: positions along d₁.
        betas: positions along d₂.
        losses: loss at each point; NaN and infinity are readings.
        stderrs: standard error of losses − loss at the centre, same samples at both (jackknife over chunks of the
            data); NaN with one chunk.
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
