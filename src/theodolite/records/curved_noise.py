"""The gradient noise scale weighted by curvature, and the learning rates it allows by batch size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float
from scipy.special import stdtrit

from theodolite.records.estimate import Estimate
from theodolite.records.noise import trade_off
from theodolite.records.record import Record
from theodolite.records.text import number, plural


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class CurvedNoise(Record):
    """tr(HΣ)/(𝒢ᵀH𝒢), from random combinations z = Σ ε_i(g_i − ḡ)/√(N − 1), whose covariance is that of the gradients.

    Errors are those of the combinations; the data is taken as it is.

    Args:
        curvatures: zᵀHz of every combination, whose mean is tr(HΣ).
        squares: ‖z‖² of every combination, whose mean is tr Σ.
        slope_curvature: ḡᵀHḡ.
        slope_square: ‖ḡ‖².
        samples: number of samples N.
        operator: ``"hessian"`` or ``"ggn"``.
        size: number of parameters n.
    """

    kind: ClassVar[str] = "curved noise"

    curvatures: Float[np.ndarray, " k"]
    squares: Float[np.ndarray, " k"]
    slope_curvature: float
    slope_square: float
    samples: int
    operator: str = "hessian"
    size: int

    @property
    def noise_curvature(self) -> Estimate:
        """tr(HΣ)."""
        return _mean(self.curvatures)

    @property
    def signal_curvature(self) -> Estimate:
        """𝒢ᵀH𝒢 without the bias tr(HΣ)/N of ḡᵀHḡ."""
        noise = self.noise_curvature
        count = max(self.samples, 1)
        return Estimate(self.slope_curvature - noise.value / count, noise.stderr / count, noise.degrees)

    @property
    def signal_square(self) -> float:
        """|𝒢|² without the bias tr Σ/N of ‖ḡ‖²."""
        return self.slope_square - _mean(self.squares).value / max(self.samples, 1)

    @property
    def noise_scale(self) -> Estimate:
        """B_noise = tr(HΣ)/(𝒢ᵀH𝒢): the batch size beyond which larger ones pay off ever less; infinite where 𝒢ᵀH𝒢 ≤ 0."""
        noise, signal = self.noise_curvature, self.signal_curvature
        if not signal.value > 0:
            return Estimate(math.inf if signal.value <= 0 else math.nan, math.nan, noise.degrees)
        # Numerator and denominator have one error: d(a/(s − a/N)) = (s/(s − a/N)²) da.
        stderr = noise.stderr * abs(self.slope_curvature) / signal.value / signal.value
        return Estimate(noise.value / signal.value, stderr, noise.degrees)

    @property
    def max_learning_rate(self) -> float:
        """ε_max = |𝒢|²/(𝒢ᵀH𝒢), the best rate of plain gradient descent without noise; NaN where there is no such curvature."""
        curvature = self.signal_curvature.value
        return self.signal_square / curvature if curvature > 0 else math.nan

    def best_learning_rate(self, batch: float | int) -> float:
        """ε_max/(1 + B_noise/B): the rate that lowers the quadratic model most in one step of stochastic gradient descent."""
        return self.max_learning_rate / (1 + self.noise_scale.value / batch)

    def best_improvement(self, batch: float | int) -> float:
        """½|𝒢|⁴/(𝒢ᵀH𝒢)/(1 + B_noise/B): expected decrease of the loss in that step."""
        return 0.5 * self.signal_square * self.best_learning_rate(batch)

    def trade_off(self, sizes: Float[np.ndarray, " s"]) -> tuple[Float[np.ndarray, " s"], Float[np.ndarray, " s"]]:
        """Steps and samples to a given loss by batch size, over the least possible."""
        return trade_off(self.noise_scale.value, sizes)

    def summary(self) -> tuple[str, ...]:
        """Operator, samples, noise scale, best rate."""
        found = self.noise_scale
        reach = float(stdtrit(found.degrees, 0.975)) * found.stderr if found.degrees else math.nan
        return (
            f"{self.operator}, n={self.size:,}, {plural(self.samples, 'sample')}",
            f"B_noise = {number(found.value)} ± {number(reach)} (95 %, {plural(len(self.curvatures), 'probe')})",
            f"ε_max = {number(self.max_learning_rate)}",
        )


def _mean(values: Float[np.ndarray, " k"]) -> Estimate:
    count = values.size
    stderr = values.std(ddof=1) / math.sqrt(count) if count > 1 else math.nan
    return Estimate(float(values.mean()) if count else math.nan, float(stderr), count - 1 if count > 1 else None)
