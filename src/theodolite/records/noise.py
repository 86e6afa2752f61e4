"""The gradient noise scale: its confidence interval, its form from two batch sizes, and what it says of batch sizes."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float
from scipy.special import stdtrit

from theodolite.records.gram import Gram, covariance_trace, moments, moments_without, signal_square


def noise_scale_interval(gram: Gram, *, level: float = 0.95) -> tuple[float, float]:
    """Confidence interval of tr Σ/|𝒢|², by Fieller: all ratios that numerator and denominator do not contradict together.

    An interval of the ratio itself is wrong where the denominator is close to zero; this one is then unbounded above, which is
    what a gradient lost in noise says.

    Args:
        gram: of b gradients.
        level: its coverage.

    Returns:
        Lower end, at least zero, and upper end; NaN with fewer than three samples.

    Example:
        >>> draws = np.random.default_rng(0).standard_normal((64, 16)) + 1.0  # tr Σ = |𝒢|² = 16
        >>> low, high = noise_scale_interval(draws @ draws.T)
        >>> low < 1 < high
        True

    References:
        Fieller, "Some problems in interval estimation" (1954); McCandlish et al., "An empirical model of large-batch
        training" (2018).
    """
    if not 0 < level < 1:
        raise ValueError(f"Expected a level between 0 and 1, for example 0.95; found {level!r}.")
    count = len(gram)
    if count < 3:
        return math.nan, math.nan
    whole, without = moments(gram), moments_without(gram)
    noise, signal = float(covariance_trace(whole)), float(signal_square(whole))
    replicas = np.stack([covariance_trace(without), signal_square(without)])
    deviations = replicas - replicas.mean(axis=1, keepdims=True)
    (of_noise, shared), (_, of_signal) = ((count - 1) / count * deviations @ deviations.T).tolist()
    reach = float(stdtrit(count - 1, (1 + level) / 2)) ** 2
    # (noise − ρ·signal)² ≤ reach·Var(noise − ρ·signal) is a·ρ² − 2b·ρ + c ≤ 0.
    a = signal * signal - reach * of_signal
    b = noise * signal - reach * shared
    c = noise * noise - reach * of_noise
    root = math.sqrt(max(b * b - a * c, 0.0))
    if not math.isfinite(a + b + c):
        return math.nan, math.nan
    if a > 0 and signal > 0:
        return max((b - root) / a, 0.0), (b + root) / a
    # The signal is not told from zero: all ratios above the positive root, if the noise is told from zero.
    return (c / (b + root) if c > 0 and b + root > 0 else 0.0), math.inf


def two_batch_noise_scale(
    small: Float[np.ndarray, " k"] | float, large: Float[np.ndarray, " k"] | float, *, sizes: tuple[int, int]
) -> tuple[float, float, float]:
    """Noise scale from mean squared gradient norms at two batch sizes, as data-parallel training has them for nothing.

    Numerator and denominator are averaged separately over k steps, then divided: the ratio of one step is biased and may
    be negative.

    Args:
        small: ‖g‖² of batches of the smaller size, one for each step.
        large: ‖g‖² of the larger.
        sizes: the two sizes, ascending.

    Returns:
        tr Σ, |𝒢|² and their ratio, infinite where |𝒢|² is not positive.

    Raises:
        ValueError: the sizes are not ascending.

    Example:
        >>> two_batch_noise_scale(5.0, 2.0, sizes=(1, 4))  # |𝒢|² + tr Σ = 5, |𝒢|² + tr Σ/4 = 2
        (4.0, 1.0, 4.0)

    References:
        McCandlish et al. (2018), appendix A.1.
    """
    b, B = sizes
    if not 0 < b < B:
        raise ValueError(f"Expected sizes (b, B) with 0 < b < B, found {sizes}.")
    of_small, of_large = float(np.mean(small)), float(np.mean(large))
    signal = (B * of_large - b * of_small) / (B - b)
    noise = (of_small - of_large) / (1 / b - 1 / B)
    return noise, signal, noise / signal if signal > 0 else math.inf


def trade_off(
    critical: float, sizes: Float[np.ndarray, " s"]
) -> tuple[Float[np.ndarray, " s"], Float[np.ndarray, " s"]]:
    """Steps and samples that a batch size takes to a given loss, over the least possible: 1 + B_crit/B and 1 + B/B_crit.

    (S/S_min − 1)(E/E_min − 1) = 1: at the critical batch size both are twice the least.

    Args:
        critical: critical batch size, as the noise scale estimates it up to a factor.
        sizes: batch sizes.

    Example:
        >>> steps, samples = trade_off(32.0, np.array([8.0, 32.0, 128.0]))
        >>> steps.tolist(), samples.tolist()
        ([5.0, 2.0, 1.25], [1.25, 2.0, 5.0])

    References:
        McCandlish et al. (2018), equations 2.11 and 2.12.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(1 + critical / sizes), np.asarray(1 + sizes / critical)
