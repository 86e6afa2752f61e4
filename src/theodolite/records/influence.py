"""Which samples raise and lower the loss of queries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int

from theodolite.records.record import Record
from theodolite.records.text import number


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Influence(Record):
    """Influence functions through an inverse product.

    Args:
        scores: −g_qᵀ(H + δI)⁻¹g_i: how the loss of query q grows with the weight of sample i, to first order, when the whole is
            minimised anew. Negative where the sample helps.
        residuals: ‖(H + δI)x − g_q‖/‖g_q‖ that each query's system was solved to.
        converged: whether that is at most the tolerance.
        damping: δ.
        tol: relative residual that was asked for.
        operator: H.
        size: number of parameters n.
    """

    kind: ClassVar[str] = "influence"

    scores: Float[np.ndarray, "q i"]
    residuals: Float[np.ndarray, " q"]
    converged: Bool[np.ndarray, " q"]
    damping: float
    tol: float
    operator: str
    size: int

    @property
    def left_out(self) -> Float[np.ndarray, "q i"]:
        """Change of each query's loss when sample i is left out and the rest minimised anew, to first order: −scores/N."""
        return np.asarray(-self.scores / self.scores.shape[1])

    def helpful(self, query: int, count: int = 10) -> Int[np.ndarray, " c"]:
        """Places of the samples that lower the loss of a query most, the strongest first."""
        return np.argsort(self.scores[query], kind="stable")[:count]

    def harmful(self, query: int, count: int = 10) -> Int[np.ndarray, " c"]:
        """Places of the samples that raise the loss of a query most, the strongest first."""
        return np.argsort(-self.scores[query], kind="stable")[:count]

    def summary(self) -> tuple[str, ...]:
        """Operator, size of the table, convergence."""
        queries, samples = self.scores.shape
        subject = f"{self.operator} + {number(self.damping)}, n={self.size:,}"
        reached = int(self.converged.sum())
        state = f"{reached} of {queries} systems solved to {number(self.tol)}"
        if reached < queries:
            state = f"NOT CONVERGED: {state}, residuals up to {number(float(self.residuals.max()))}"
        return subject, f"{queries:,} queries × {samples:,} samples", state
