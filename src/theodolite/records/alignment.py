"""How much of the gradient and of the optimiser's update lies in the top eigenspace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from theodolite.records.estimate import Estimate
from theodolite.records.record import Record
from theodolite.records.text import number, with_error


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Alignment(Record):
    """Shares of ‖g‖² and ‖u‖² along each of the top eigenvectors.

    Args:
        eigenvalues: of those eigenvectors, descending.
        gradient_shares: (vᵀg)²/‖g‖² for each eigenvector v; NaN where the gradient vanishes.
        gradient_stderrs: their standard errors from the data with eigenvectors held, NaN with one chunk.
        gradient_stderr: of their sum.
        gradient_norm: ‖g‖.
        update_shares: the same of the update u that the optimiser would take next; NaN without an optimiser.
        update_stderrs: their standard errors: those of the update for gradients that leave a chunk out.
        update_stderr: of their sum.
        update_norm: ‖u‖, NaN without.
        cosine: between the update and −g, NaN without.
        optimizer: class name, empty without.
        operator: whose eigenvectors they are.
        size: number of parameters n.
    """

    kind: ClassVar[str] = "alignment"

    eigenvalues: Float[np.ndarray, " k"]
    gradient_shares: Float[np.ndarray, " k"]
    gradient_stderrs: Float[np.ndarray, " k"]
    gradient_stderr: float
    gradient_norm: float
    update_shares: Float[np.ndarray, " k"]
    update_stderrs: Float[np.ndarray, " k"]
    update_stderr: float
    update_norm: float = float("nan")
    cosine: float = float("nan")
    optimizer: str = ""
    operator: str = "hessian"
    size: int

    @property
    def gradient(self) -> Estimate:
        """Share of ‖g‖² in the span of all the eigenvectors; a random vector has k/n."""
        return Estimate(float(self.gradient_shares.sum()), self.gradient_stderr, self.data_degrees)

    @property
    def update(self) -> Estimate:
        """Share of ‖u‖² in their span; NaN without an optimiser."""
        return Estimate(float(self.update_shares.sum()), self.update_stderr, self.data_degrees)

    @property
    def chance(self) -> float:
        """Share of a random vector, k/n."""
        return len(self.eigenvalues) / max(self.size, 1)

    def summary(self) -> tuple[str, ...]:
        """Eigenvectors, share of the gradient, share of the update."""
        gradient, update = self.gradient, self.update
        readings = [f"{with_error(gradient.value, gradient.stderr, source='data')} of ‖g‖²"]
        if self.optimizer:
            readings.append(
                f"{with_error(update.value, update.stderr, source='data')} of ‖u‖² ({self.optimizer}) in the top "
                f"{len(self.eigenvalues)}"
            )
        return f"{self.operator}, n={self.size:,}", *readings, f"by chance {number(self.chance)}"
