"""The eigenvalues that stand above the bulk, and how much of them the class means explain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float

from theodolite.records.record import Record
from theodolite.records.text import number, plural


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Outliers(Record):
    """Outliers of a spectrum against the classes of the data.

    Args:
        eigenvalues: the largest, descending, about three for each class.
        converged: whether each met its tolerance.
        shares: of each eigenvector, how much lies in the span of the class-mean gradients: ‖Qu‖² with an orthonormal basis Q.
        count: how many eigenvalues stand above the widest gap between them on a logarithmic scale, among three for each class
            that converged, below 1e-6·λ₁ all alike; 0 where fewer than two are positive.
        ratio: of the two eigenvalues beside that gap; NaN without.
        above_bulk: how many lie more than ``kappa`` scales above the centre of the bulk; None where all that are known do.
        kappa: that number.
        centre: median of the spectrum.
        scale: 1.4826 times its median absolute deviation.
        classes: labels of the classes.
        weights: share of each class in the loss.
        gradient_norms: norm of the gradient of each class's own loss.
        cosines: between the gradients of the classes.
        rank: dimension of their span.
        operator: what was decomposed.
        size: number of parameters n.
    """

    kind: ClassVar[str] = "outliers"
    lengths: ClassVar[Mapping[str, str]] = {"classes": "C"}

    eigenvalues: Float[np.ndarray, " k"]
    converged: Bool[np.ndarray, " k"]
    shares: Float[np.ndarray, " k"]
    count: int
    ratio: float
    above_bulk: int | None
    kappa: float
    centre: float
    scale: float
    classes: tuple[str, ...]
    weights: Float[np.ndarray, " C"]
    gradient_norms: Float[np.ndarray, " C"]
    cosines: Float[np.ndarray, "C C"]
    rank: int
    operator: str = "hessian"
    size: int

    @property
    def overlap(self) -> float:
        """‖QUᵀ‖_F²/count: how much of the outliers' eigenspace the class means span; NaN without outliers."""
        chosen = self.shares[: max(self.count, 0)]
        return float(chosen.mean()) if chosen.size else float("nan")

    @property
    def chance(self) -> float:
        """The overlap of a random subspace: rank/n."""
        return self.rank / max(self.size, 1)

    @property
    def excess(self) -> int:
        """Outliers beyond one for each class; cross-entropy is expected to show −1 or 0."""
        return self.count - len(self.classes)

    def summary(self) -> tuple[str, ...]:
        """Operator, count against classes, overlap."""
        found = f"{plural(self.count, 'outlier')} above a gap of {number(self.ratio)}×, {len(self.classes)} classes"
        overlap = (
            f"{number(100 * self.overlap)} % in the span of the class means (by chance {number(100 * self.chance)} %)"
        )
        state = f"{int(self.converged.sum())} of {self.converged.size} converged"
        return f"{self.operator}, n={self.size:,}", found, overlap, state
