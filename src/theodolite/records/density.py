"""Spectral density of a symmetric operator by stochastic Lanczos quadrature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from theodolite.records.record import Record


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Density(Record):
    """Quadrature nodes and weights of the spectral density, one rule for each random probe.

    Args:
        nodes: Ritz values of each probe's Lanczos run of s steps; NaN-padded where a run broke down early.
        weights: squared first components of the Ritz vectors, rows sum to 1; 0 where padded.
        operator: what was decomposed, ``"hessian"`` or ``"ggn"``.
        size: number of parameters n.
    """

    kind: ClassVar[str] = "density"

    nodes: Float[np.ndarray, "m s"]
    weights: Float[np.ndarray, "m s"]
    operator: str = "hessian"
    size: int
