"""Sharpness of random batches by their size, and the law λ + κ/𝔟 that it follows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int

from theodolite.records.estimate import Estimate
from theodolite.records.record import Record
from theodolite.records.text import number, with_error


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class BatchSharpness(Record):
    """Largest Hessian eigenvalue of random batches of several sizes.

    Per-sample Hessians are the whole one plus noise, which pushes the largest eigenvalue of a batch up. To first order in the
    noise by κ/𝔟, with 𝔟 = B/(1 − B/N) for batches of B samples drawn without replacement from N.

    Args:
        sizes: samples in a batch, B, ascending.
        sharpness: largest eigenvalue of each of r random batches of each size.
        converged: whether each reached its tolerance.
        whole: largest eigenvalue on all samples.
        whole_stderr: its standard error from the data, for a population that they are a sample of; NaN with one chunk.
        samples: number of samples N.
        operator: ``"hessian"`` or ``"ggn"``.
        size: number of parameters n.
    """

    kind: ClassVar[str] = "batch sharpness"

    sizes: Int[np.ndarray, " s"]
    sharpness: Float[np.ndarray, "s r"]
    converged: Bool[np.ndarray, "s r"]
    whole: float
    whole_stderr: float
    samples: int
    operator: str = "hessian"
    size: int

    @property
    def effective_sizes(self) -> Float[np.ndarray, " s"]:
        """𝔟 = B/(1 − B/N), infinite for the whole data."""
        return _effective(self.sizes.astype(np.float64), self.samples)

    @property
    def means(self) -> tuple[Estimate, ...]:
        """Mean sharpness of each size, with its standard error over batches."""
        return tuple(_mean(row) for row in self.sharpness)

    @property
    def law(self) -> tuple[Estimate, Estimate]:
        """λ and κ of λ_B = λ + κ/𝔟, by least squares weighted with the errors over batches.

        Where the means scatter about the line by more than their errors, which they do when a size is too small for the law
        to hold to first order, the errors of the fit are enlarged by as much. NaN with fewer than three sizes.

        References:
            Granziol, Zohren & Roberts, "Learning rates as a function of batch size: a random matrix theory approach to neural
            network training" (2022).
        """
        value, covariance, degrees = self._fit()
        errors = np.sqrt(np.diag(covariance))
        level, slope = (Estimate(float(value[i]), float(errors[i]), degrees) for i in (0, 1))
        return level, slope

    @property
    def critical_size(self) -> Estimate:
        """Effective batch size κ/λ at which the noise doubles the sharpness; learning rates saturate well above it.

        Below it the largest eigenvalue is noise alone and the law does not hold. NaN where λ is not positive.
        """
        (level, slope), covariance, degrees = self._fit()
        if not level > 0:
            return Estimate(math.nan, math.nan)
        gradient = np.array([-slope / level**2, 1 / level])
        return Estimate(float(slope / level), float(np.sqrt(gradient @ covariance @ gradient)), degrees)

    def predicted(self, size: float | int) -> Estimate:
        """Sharpness of a batch of that many samples by the fitted law.

        Raises:
            ValueError: a batch is of 1 to N samples.
        """
        if not 1 <= size <= self.samples:
            raise ValueError(f"Expected a batch of 1 to all {self.samples:,} samples, found size={size}.")
        value, covariance, degrees = self._fit()
        row = np.array([1.0, float(1 / _effective(np.array([size], dtype=np.float64), self.samples)[0])])
        return Estimate(float(row @ value), float(np.sqrt(row @ covariance @ row)), degrees)

    def max_learning_rate(self, size: float | int) -> Estimate:
        """Largest stable learning rate of gradient descent on batches of that many samples, 2/λ_B by the fitted law.

        Raises:
            ValueError: a batch is of 1 to N samples.
        """
        sharpness = self.predicted(size)
        if not sharpness.value > 0:
            return Estimate(math.inf if sharpness.value <= 0 else math.nan, math.nan)
        return Estimate(2 / sharpness.value, 2 * sharpness.stderr / sharpness.value**2, sharpness.degrees)

    def summary(self) -> tuple[str, ...]:
        """Operator, the law, the critical size."""
        level, slope = self.law
        state = f"{int(self.converged.sum())} of {self.converged.size} converged"
        if not self.converged.all():
            state = f"NOT CONVERGED: {state}"
        return (
            f"{self.operator}, n={self.size:,}, N={self.samples:,}",
            f"λ_B = {with_error(level.value, level.stderr)} + {with_error(slope.value, slope.stderr)}/𝔟",
            f"λ₁ of all = {with_error(self.whole, self.whole_stderr, source='data')}",
            f"critical size {number(self.critical_size.value)}",
            state,
        )

    def _fit(self) -> tuple[Float[np.ndarray, " 2"], Float[np.ndarray, "2 2"], int | None]:
        """λ, κ, their covariance, and its degrees of freedom: the sizes less two."""
        means = np.array([mean.value for mean in self.means])
        errors = np.array([mean.stderr for mean in self.means])
        inverse = 1 / self.effective_sizes
        usable = np.isfinite(means) & np.isfinite(errors) & np.isfinite(inverse)
        if np.unique(inverse[usable]).size < 3:
            return np.full(2, np.nan), np.full((2, 2), np.nan), None
        # Batches that happen to agree to the last digit would else weigh without bound.
        weights = 1 / np.maximum(errors[usable], 1e-6 * np.abs(means[usable]).max() + np.finfo(np.float64).tiny)
        rows = np.stack([weights, weights * inverse[usable]], axis=1)
        covariance = np.linalg.pinv(rows.T @ rows)
        value = covariance @ rows.T @ (weights * means[usable])
        degrees = int(usable.sum()) - 2
        misfit = float(np.square(rows @ value - weights * means[usable]).sum()) / degrees
        return value, covariance * max(1.0, misfit), degrees


def _effective(sizes: Float[np.ndarray, " s"], samples: int) -> Float[np.ndarray, " s"]:
    with np.errstate(all="ignore"):
        return np.asarray(sizes / (1 - sizes / samples)) if samples else np.full(sizes.shape, np.nan)


def _mean(values: Float[np.ndarray, " r"]) -> Estimate:
    """Mean and standard error over batches."""
    count = values.size
    if count < 2:
        return Estimate(float(values[0]) if count else math.nan, math.nan)
    with np.errstate(all="ignore"):
        return Estimate(float(values.mean()), float(values.std(ddof=1)) / math.sqrt(count), count - 1)
