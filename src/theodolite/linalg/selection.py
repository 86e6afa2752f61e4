"""Which Ritz pairs are asked for, how good they are, and when nothing is left to discover."""

from __future__ import annotations

import math
from typing import Literal, final

import numpy as np
from jaxtyping import Float, Int

from theodolite.linalg.krylov import Krylov, Ritz

Which = Literal["largest", "smallest", "both", "magnitude"]

PATIENCE = 0.1  # share of the steps during which the pairs must stay good; its figures are in ``lanczos``
SMALL = 1e-3  # eigenvalues below this share of the largest are judged against it


@final
class StoppingRule:
    """When the asked pairs are good enough and nothing is left to discover, as ``lanczos`` states it."""

    def __init__(self, *, k: int, which: Which, tol: float, fair_steps: int, verify: bool) -> None:
        self.worst = math.inf
        self._k, self._which, self._tol = k, which, tol
        self._fair_steps, self._verify = fair_steps, verify
        self._passed_since: int | None = None
        self._values_before_block: np.ndarray | None = None

    def settles(self, krylov: Krylov, ritz: Ritz) -> bool:
        """Whether to stop; may ask the decomposition for a fresh block instead."""
        chosen = chosen_pairs(ritz, self._k, self._which)
        if len(chosen) < self._k:
            return False
        values, tolerances = ritz.values[chosen], self._tol * scales(ritz, chosen)
        self.worst = float(relative_bounds(ritz, chosen).max())
        passed = self.worst <= self._tol
        if not passed:
            self._passed_since = None
        elif self._passed_since is None:
            self._passed_since = krylov.products
        patience = math.floor(PATIENCE * min(len(krylov), krylov.block_steps))
        settled = self._passed_since is not None and krylov.products - self._passed_since >= patience
        ended = krylov.invariant or (settled and krylov.block_steps >= self._fair_steps)
        if not ended:
            return False
        first_is_enough = not krylov.invariant and not self._verify
        if krylov.blocks == 1 and first_is_enough:
            return True
        if passed and _agree(values, self._values_before_block, tolerances):
            return True
        self._values_before_block = values
        self._fair_steps = max(self._fair_steps, krylov.block_steps)
        krylov.drop_residual()
        return False


def order(values: Float[np.ndarray, " j"], which: Which) -> Int[np.ndarray, " j"]:
    """Positions in ascending values, the most wanted first."""
    ascending = np.arange(len(values))
    if which == "smallest":
        return ascending
    if which == "magnitude":
        return np.argsort(-np.abs(values), kind="stable")
    descending = ascending[::-1].copy()
    if which == "largest":
        return descending
    return np.stack([descending, ascending], axis=1).ravel()[: len(values)]


def chosen_pairs(ritz: Ritz, k: int, which: Which) -> Int[np.ndarray, " k"]:
    """Positions of the asked pairs, values descending."""
    return np.sort(order(ritz.values, which)[:k])[::-1].copy()


def radius(ritz: Ritz) -> float:
    """The largest |Ritz value|."""
    return float(np.abs(ritz.values).max())


def scales(ritz: Ritz, chosen: Int[np.ndarray, " k"]) -> Float[np.ndarray, " k"]:
    """What the residual of each chosen pair is relative to: max(|λ|, 1e-3·radius)."""
    found: np.ndarray = np.maximum(np.abs(ritz.values[chosen]), SMALL * radius(ritz))
    return found


def relative_bounds(ritz: Ritz, chosen: Int[np.ndarray, " k"], *, rounding: float = 0.0) -> Float[np.ndarray, " k"]:
    """Relative residuals of the chosen pairs, with what products round relative to the largest eigenvalue."""
    scale, bounds = scales(ritz, chosen), ritz.bounds[chosen] + rounding * radius(ritz)
    # The zero operator has bounds and scales 0: its pairs are exact.
    relative: np.ndarray = np.divide(bounds, scale, out=np.zeros(len(chosen)), where=scale > 0)
    return relative


def _agree(values: np.ndarray, before: np.ndarray | None, tolerances: np.ndarray) -> bool:
    return before is not None and bool((np.abs(values - before) <= tolerances).all())
