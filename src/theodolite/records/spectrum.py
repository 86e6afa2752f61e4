"""Extreme eigenpairs of a symmetric operator, with their residuals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float

from theodolite.records.estimate import Estimate
from theodolite.records.record import Record
from theodolite.records.text import subscript, with_error


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Spectrum(Record):
    """Extreme eigenpairs of a Hessian or GGN.

    Args:
        eigenvalues: in descending order.
        residuals: ‖Hv − λv‖ / max(|λ|, 1e-3·radius) of each returned pair, recomputed with one more product each.
        converged: whether the residual is at most ``tol``.
        data_stderr: standard error of each eigenvalue as an estimate for the distribution that the data were drawn
            from: the delete-one-chunk jackknife, by weight, of vᵀHv with the eigenvector v held, as first-order
            perturbation theory allows (too large where eigenvalues lie closer together than their errors); NaN where the
            problem has a single chunk.
        eigenvectors: one a row, unit length, parameters flattened in the order of ``parameters``; None if dropped.
        tol: the relative residual that was asked for.
        which: ``"largest"``, ``"smallest"`` or ``"both"`` ends.
        operator: what was decomposed, ``"hessian"`` or ``"ggn"``.
        size: number of parameters n.
        parameters: name and shape of each parameter.
        trace: trace of the operator, NaN if it was not estimated.
        trace_stderr: its standard error.
        radius: largest |Ritz value| of the run, which is the scale of small eigenvalues' residuals; NaN where it is not
            known, then the largest |λ| returned takes its place.
    """

    kind: ClassVar[str] = "spectrum"

    eigenvalues: Float[np.ndarray, " k"]
    residuals: Float[np.ndarray, " k"]
    converged: Bool[np.ndarray, " k"]
    data_stderr: Float[np.ndarray, " k"]
    eigenvectors: Float[np.ndarray, "k n"] | None = None
    tol: float
    which: str = "largest"
    operator: str = "hessian"
    size: int
    parameters: tuple[tuple[str, tuple[int, ...]], ...] = ()
    trace: float = float("nan")
    trace_stderr: float = float("nan")
    radius: float = float("nan")

    @property
    def max(self) -> float:
        """Largest eigenvalue λ₁.

        Raises:
            ValueError: only the smallest were asked for.
        """
        return float(self.eigenvalues[self._end("largest")])

    @property
    def min(self) -> float:
        """Smallest eigenvalue λₙ.

        Raises:
            ValueError: only the largest were asked for.
        """
        return float(self.eigenvalues[self._end("smallest")])

    @property
    def all_converged(self) -> bool:
        """Whether every pair met the tolerance."""
        return bool(self.converged.all())

    @property
    def error(self) -> Float[np.ndarray, " k"]:
        """Bound of the algorithm's error: an eigenvalue lies within residual · max(|λ|, 1e-3·radius) = ‖Hv − λv‖.

        References:
            Parlett, The Symmetric Eigenvalue Problem (1980), theorem 4.5.1.
        """
        size = np.abs(self.eigenvalues)
        radius = float(size.max(initial=0.0)) if np.isnan(self.radius) else self.radius
        return np.asarray(self.residuals * np.maximum(size, 1e-3 * radius))

    @property
    def max_learning_rate(self) -> Estimate:
        """Largest learning rate for which gradient descent is stable, 2/λ₁, with the data's error carried over.

        Infinite where no direction curves upwards.

        Raises:
            ValueError: only the smallest eigenvalues were asked for.
        """
        sharpness, stderr = self.max, float(self.data_stderr[self._end("largest")])
        if sharpness <= 0:
            return Estimate(float("inf"), float("nan"))
        return Estimate(2 / sharpness, 2 * stderr / sharpness**2, self.data_degrees)

    @property
    def re(self) -> float:
        """How far from convex: −λₙ/λ₁, 0 where the smallest eigenvalue is not negative, infinite where none is positive.

        Signed, unlike |λₙ/λ₁|, which calls the convex spectrum (0.5, 1, 2) as non-convex as (−0.5, 1, 2).

        Raises:
            ValueError: not both ends were asked for.

        References:
            Gabdullin, Investigating generalization capabilities of neural networks by means of loss landscapes and
            Hessian analysis (2024), arXiv:2412.10146.
        """
        if self.min >= 0:
            return 0.0
        return -self.min / self.max if self.max > 0 else float("inf")

    def summary(self) -> tuple[str, ...]:
        """Operator, the extreme eigenvalue, convergence."""
        subject = f"{self.operator}, n={self.size:,}"
        if not self.eigenvalues.size:
            return subject, "no eigenvalues"
        index = -1 if self.which == "smallest" else 0
        name = f"λ{'ₙ' if self.which == 'smallest' else subscript(1)}"
        reading = (
            f"{name} = {with_error(float(self.eigenvalues[index]), float(self.data_stderr[index]), source='data')}"
        )
        reached = int(self.converged.sum())
        state = f"{reached} of {self.converged.size} converged"
        if not self.all_converged:
            worst = float(self.residuals[~self.converged].max())
            state = f"NOT CONVERGED: {state}, residuals up to {worst:.1g} > tol {self.tol:.1g}"
        return subject, f"{reading}, residual {float(self.residuals[index]):.1g}", state

    def _end(self, end: str) -> int:
        """Index of an extreme eigenvalue, refused where that end was not computed."""
        if self.which not in (end, "both") or not self.eigenvalues.size:
            raise ValueError(
                f"This spectrum holds {self.eigenvalues.size} eigenvalues from the end which={self.which!r} and does not "
                f"know the {end}; measure it with which='both'."
            )
        return 0 if end == "largest" else -1
