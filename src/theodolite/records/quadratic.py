"""The quadratic model of a loss along one direction or over a plane, and how far it holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from theodolite.records.estimate import Estimate

HOLDS = 0.1  # of the range of losses within a distance: curves drawn over each other begin to part


@dataclass(frozen=True)
class Quadratic:
    """L₀ + xᵀs + ½xᵀBx in the coordinates x of one or two directions.

    Args:
        slopes: s, the directional derivatives.
        bends: B, the Hessian between the directions.
        radii: distances from the centre at which it was held against losses.
        errors: its largest error within each distance, as a share of the range of the losses there.
    """

    slopes: Float[np.ndarray, " k"]
    bends: Float[np.ndarray, "k k"]
    radii: Float[np.ndarray, " r"]
    errors: Float[np.ndarray, " r"]

    def rise(self, *coordinates: Float[np.ndarray, " _"]) -> Float[np.ndarray, "..."]:
        """Predicted rise above the centre over a grid of positions along each direction."""
        grid = np.stack(np.meshgrid(*coordinates, indexing="ij"), axis=-1)
        return np.asarray(grid @ self.slopes + 0.5 * np.einsum("...i,ij,...j->...", grid, self.bends, grid))

    @property
    def radius(self) -> float:
        """Distance from the centre up to which the error is at most 10 %, interpolated between logarithms.

        0 where it is larger at the smallest distance already, infinite where it is not reached, NaN where nothing was compared.
        """
        if not self.errors.size:
            return float("nan")
        above = np.flatnonzero(~(self.errors <= HOLDS))
        if not above.size:
            return float("inf")
        first = int(above[0])
        if first == 0:
            return 0.0
        inside, outside = np.log(np.maximum(self.errors[first - 1 : first + 1], 1e-12))
        share = (np.log(HOLDS) - inside) / (outside - inside) if np.isfinite(outside) else 0.0
        low, high = np.log(self.radii[first - 1 : first + 1])
        return float(np.exp(low + share * (high - low)))

    @property
    def disagreement(self) -> float:
        """The error at the smallest distance, where a smooth loss leaves none.

        What is left there are kinks that derivatives do not see (ReLU), noise between evaluations, or wrong derivatives.
        """
        return float(self.errors[0]) if self.errors.size else float("nan")


def predicted(
    slopes: Sequence[float],
    bends: Sequence[Sequence[float]] | Float[np.ndarray, "k k"],
    radii: Float[np.ndarray, " r"] | None,
    errors: Float[np.ndarray, " r"] | None,
) -> Quadratic | None:
    """The model that a record keeps in plain fields, None where it keeps none."""
    if radii is None or errors is None:
        return None
    return Quadratic(np.array(slopes, dtype=float), np.array(bends, dtype=float), radii, errors)


def band(
    values: Float[np.ndarray, "..."], stderrs: Float[np.ndarray, "..."], *, level: float, degrees: int | None
) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    """Both ends of Student's interval around every value."""
    reach = Estimate(0.0, 1.0, degrees).interval(level)[1] * stderrs
    return values - reach, values + reach
