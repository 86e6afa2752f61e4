"""Marks of landscapes: surfaces in three dimensions, zones of a plane, tables of magnitudes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True, kw_only=True, eq=False)
class Surface:
    """Heights over a grid in three dimensions, the only mark of its panel; NaN is a hole."""

    x: Float[np.ndarray, " nx"]
    y: Float[np.ndarray, " ny"]
    z: Float[np.ndarray, "ny nx"]
    levels: Float[np.ndarray, " l"]
    scale: Literal["linear", "log", "symlog"]
    label: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Zone:
    """The part of a plane in which −1 ≤ z ≤ 1, interpolated between the points of a grid."""

    x: Float[np.ndarray, " nx"]
    y: Float[np.ndarray, " ny"]
    z: Float[np.ndarray, "ny nx"]
    color: str
    alpha: float = 0.45


@dataclass(frozen=True, kw_only=True, eq=False)
class Heat:
    """A table of magnitudes as coloured cells from 0 to ``high``, with a short text in each; NaN is grey."""

    z: Float[np.ndarray, "ny nx"]
    high: float
    label: str
    texts: tuple[tuple[str, ...], ...] = ()
    hover: tuple[tuple[str, ...], ...] = ()
