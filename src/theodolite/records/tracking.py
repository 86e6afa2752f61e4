"""The top eigenspace at one checkpoint, and how far it turned since the one before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int

from theodolite.records.record import Record
from theodolite.records.text import number, with_error


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Tracking(Record):
    """Top eigenpairs, found from those of an earlier checkpoint, and how the two eigenspaces lie to each other.

    Args:
        eigenvalues: in descending order.
        residuals: relative, as in ``Spectrum``.
        converged: whether each is at most ``tol``.
        data_stderr: standard errors from the data, as in ``Spectrum``.
        eigenvectors: one a row.
        overlaps: squared inner products (vᵢᵀwⱼ)² with the j eigenvectors of the earlier checkpoint, of which there are none at
            the start.
        angles: principal angles between the two spans, in radians, ascending.
        earlier: eigenvalues at the earlier checkpoint.
        earlier_step: its optimiser step.
        tol: the relative residual that was asked for.
        operator: what was decomposed.
        size: number of parameters n.
        parameters: name and shape of each parameter.
    """

    kind: ClassVar[str] = "tracking"

    eigenvalues: Float[np.ndarray, " k"]
    residuals: Float[np.ndarray, " k"]
    converged: Bool[np.ndarray, " k"]
    data_stderr: Float[np.ndarray, " k"]
    eigenvectors: Float[np.ndarray, "k n"]
    overlaps: Float[np.ndarray, "k j"]
    angles: Float[np.ndarray, " m"]
    earlier: Float[np.ndarray, " j"]
    earlier_step: int | None = None
    tol: float
    operator: str = "hessian"
    size: int
    parameters: tuple[tuple[str, tuple[int, ...]], ...] = ()

    @property
    def max(self) -> float:
        """Largest eigenvalue λ₁."""
        return float(self.eigenvalues[0])

    @property
    def overlap(self) -> float:
        """Mean squared cosine of the principal angles, 1 where the eigenspace stayed; NaN at the start."""
        return float(np.square(np.cos(self.angles)).mean()) if self.angles.size else float("nan")

    @property
    def came_from(self) -> Int[np.ndarray, " k"]:
        """Which earlier eigenvector each overlaps most, −1 where it overlaps all of them together by less than one half."""
        if not self.overlaps.size:
            return np.full(len(self.eigenvalues), -1)
        return np.where(self.overlaps.sum(axis=1) >= 0.5, self.overlaps.argmax(axis=1), -1)

    def summary(self) -> tuple[str, ...]:
        """Operator, the largest eigenvalue, overlap, convergence."""
        subject = f"{self.operator}, n={self.size:,}"
        if not self.eigenvalues.size:
            return subject, "no eigenvalues"
        top = f"λ₁ = {with_error(self.max, float(self.data_stderr[0]), source='data')}"
        turned = f"overlap {number(self.overlap)} with step {self.earlier_step}" if self.angles.size else "the first"
        return subject, top, turned, f"{int(self.converged.sum())} of {self.converged.size} converged"
