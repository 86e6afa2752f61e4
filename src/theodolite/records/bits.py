"""How many bits it takes to find a hypothesis of low loss by chance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, final, get_args

import numpy as np
from jaxtyping import Float
from scipy.special import betaincinv, gammaincc, gammaln, hyp1f1, log_ndtr

from theodolite.records.text import number, plural

Shape = Literal["counted", "chi2", "lognormal"]
FAR = 6.0  # standard deviations below the mean, beyond which a fitted tail is a guess


@final
@dataclass(frozen=True)
class Bits:
    """−log₂ P(loss ≤ target).

    Args:
        value: infinite where no hypothesis was counted below the target.
        low: lower end of its interval.
        high: upper end.
        target: the loss that is asked for.
        shape: how the probability was found.
        hypotheses: behind it.
        level: coverage of the interval.
        deviations: how many standard deviations the target lies below the mean loss, of the logarithms for ``"lognormal"``.
    """

    value: float
    low: float
    high: float
    target: float
    shape: Shape
    hypotheses: int
    level: float
    deviations: float

    @property
    def probability(self) -> float:
        """P(loss ≤ target); 0 where it is too small for a number."""
        return float(2.0**-self.value)

    @property
    def extrapolated(self) -> bool:
        """Whether a fitted tail is asked for more than six standard deviations from where it was fitted."""
        return self.shape != "counted" and self.deviations > FAR

    def __str__(self) -> str:
        interval = f"{self.level:.0%} interval {number(self.low)} to {number(self.high)}"
        far = f", EXTRAPOLATED {number(self.deviations)} standard deviations" if self.extrapolated else ""
        return (
            f"{number(self.value)} bits to a loss of {number(self.target)} ({self.shape}, {interval}, "
            f"{plural(self.hypotheses, 'sample')}){far}"
        )


def bits(
    losses: Float[np.ndarray, " s"],
    *,
    target: float,
    shape: Shape = "counted",
    level: float = 0.95,
    seed: int = 0,
    draws: int = 1000,
) -> Bits:
    """Bits of inductive bias that a loss of ``target`` takes beyond drawing a hypothesis as these were drawn.

    The difference of two classes of hypotheses at one target is what choosing between them encodes.

    Args:
        losses: of hypotheses drawn at random, or of networks trained from random seeds that fit the training data.
        target: such as the loss of the best trained model.
        shape: ``"counted"`` counts losses at most the target, with the Clopper–Pearson interval; ``"chi2"`` fits a scaled χ² by
            mean and variance, for squared losses; ``"lognormal"`` fits the logarithms, for other losses. Fitted ones reach
            below every loss, on the strength of their shape, which nothing here tests; their interval is from resampled losses.
        level: coverage of the interval.
        seed: of resampling.
        draws: resampled sets of losses.

    Raises:
        ValueError: too few losses, or losses or a target that the shape does not allow.

    Example:
        >>> found = bits(np.arange(1.0, 9.0), target=2.0)
        >>> found.value, round(found.low, 2), round(found.high, 2)
        (2.0, 0.62, 4.97)

    References:
        Boopathy et al., "Towards exact computation of inductive bias" (2024); Clopper & Pearson, "The use of confidence or
        fiducial limits illustrated in the case of the binomial" (1934).
    """
    _refuse(losses, target, shape, level)
    values = np.log(losses) if shape == "lognormal" else losses
    place = math.log(target) if shape == "lognormal" else target
    spread = float(values.std(ddof=1)) if np.isfinite(values).all() else 0.0
    deviations = float(np.float64(values.mean() - place) / spread) if spread else math.nan
    if shape == "counted":
        value, low, high = _counted(int((losses <= target).sum()), losses.size, level)
    else:
        chosen = np.random.default_rng(seed).integers(losses.size, size=(draws, losses.size))
        value = float(_fitted(losses[None], target, shape)[0])
        ends = np.quantile(_fitted(losses[chosen], target, shape), [(1 - level) / 2, (1 + level) / 2], method="nearest")
        low, high = float(ends[0]), float(ends[1])
    return Bits(value, low, high, target, shape, losses.size, level, deviations)


def gaussian_bits(residual: Float[np.ndarray, " t"], covariance: Float[np.ndarray, "t t"], *, target: float) -> float:
    """Bits to a mean squared error of ``target`` under Gaussian predictions, as of a Gaussian process that fits the training data.

    The mean of t squares of N(residual, covariance) is taken as the scaled χ² of the same mean and variance; this is exact
    for a residual of zero and a covariance that is a multiple of the identity.

    Args:
        residual: mean prediction less target on each test point.
        covariance: of the predictions.
        target: mean squared error.

    Example:
        >>> round(gaussian_bits(np.zeros(20), 0.3 * np.eye(20), target=0.1), 6)
        8.729215

    References:
        Boopathy et al., "Towards exact computation of inductive bias" (2024).
    """
    points = residual.size
    mean = (residual @ residual + np.trace(covariance)) / points
    variance = (2 * np.vdot(covariance, covariance) + 4 * residual @ covariance @ residual) / points**2
    return float(_chi2_bits(np.array([mean]), np.array([variance]), target)[0])


def log_chi2(x: Float[np.ndarray, " d"], degrees: Float[np.ndarray, " d"]) -> Float[np.ndarray, " d"]:
    """Logarithm of the distribution function of χ², also where the function itself is below the smallest number."""
    shape, at = degrees / 2, x / 2
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        # P(s, x) = xˢ e⁻ˣ/Γ(s+1) · ₁F₁(1; s+1; x), which converges fast below the mean
        below = shape * np.log(at) - at - gammaln(shape + 1) + np.log(hyp1f1(1.0, shape + 1, np.minimum(at, shape)))
        above = np.log1p(-gammaincc(shape, at))
    return np.where(at < shape, below, above)


def _refuse(losses: Float[np.ndarray, " s"], target: float, shape: Shape, level: float) -> None:
    if shape not in get_args(Shape):
        raise ValueError(f"Expected shape to be one of {', '.join(map(repr, get_args(Shape)))}, found {shape!r}.")
    if not 0 < level < 1:
        raise ValueError(f"Expected a coverage between 0 and 1, for example 0.95; found level={level!r}.")
    if losses.size < 2 or np.isnan(losses).any():
        raise ValueError(
            f"Expected at least 2 losses, none of them NaN, found {losses.size} of which {int(np.isnan(losses).sum())} are NaN. "
            "Say what a loss that is NaN counts as, infinity for instance, or leave it out."
        )
    if shape != "counted" and not (np.isfinite(losses).all() and losses.min() > 0 and target > 0):
        raise ValueError(
            f"Expected losses and target to be positive and finite with shape={shape!r}, found losses from "
            f"{number(float(losses.min()))} to {number(float(losses.max()))} and target={target!r}. Use shape='counted'."
        )
    if shape != "counted" and np.ptp(losses) == 0:
        raise ValueError(
            f"Expected losses that differ, to fit shape={shape!r}; found {losses.size} of {number(losses[0])}."
        )


def _counted(count: int, size: int, level: float) -> tuple[float, float, float]:
    tail = (1 - level) / 2
    low = float(betaincinv(count, size - count + 1, tail)) if count else 0.0
    high = float(betaincinv(count + 1, size - count, 1 - tail)) if count < size else 1.0
    value, most, least = (-math.log2(p) if p else math.inf for p in (count / size, low, high))
    return value + 0.0, least + 0.0, most


def _fitted(losses: Float[np.ndarray, "d s"], target: float, shape: Shape) -> Float[np.ndarray, " d"]:
    """Bits for each row."""
    if shape == "chi2":
        return _chi2_bits(losses.mean(axis=1), losses.var(axis=1, ddof=1), target)
    logs = np.log(losses)
    with np.errstate(divide="ignore"):  # resampled losses may all be one
        return np.asarray(-log_ndtr((math.log(target) - logs.mean(axis=1)) / logs.std(axis=1, ddof=1)) / math.log(2))


def _chi2_bits(
    mean: Float[np.ndarray, " d"], variance: Float[np.ndarray, " d"], target: float
) -> Float[np.ndarray, " d"]:
    """a = var/(2 mean) and ν = 2 mean²/var give a·χ²_ν both moments."""
    with np.errstate(divide="ignore"):
        scale, degrees = variance / (2 * mean), 2 * mean**2 / variance
        return np.asarray(-log_chi2(target / scale, degrees) / math.log(2))
