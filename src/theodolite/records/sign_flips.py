"""How restless the gradients of single quantities are: how often they change sign, and how often two objectives disagree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float

from theodolite.records.estimate import Estimate
from theodolite.records.record import Record
from theodolite.records.text import number, plural

# GAQAT tunes window and threshold; these are where to start.
THRESHOLD = 0.25


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SignFlips(Record):
    """Gradients of m scalars (scales of quantisers, or any) over K steps of training, of one or two objectives.

    Args:
        names: of the scalars.
        task: their gradients of the task's loss, in the order of the steps.
        smooth: the same of a second objective, such as the sharpness part of SAM; None without.
    """

    kind: ClassVar[str] = "sign flips"
    lengths: ClassVar[Mapping[str, str]] = {"names": "m"}

    names: tuple[str, ...]
    task: Float[np.ndarray, "K m"]
    smooth: Float[np.ndarray, "K m"] | None = None

    @property
    def disorder(self) -> dict[str, Estimate]:
        """Share of the steps at which the gradient of the task changes sign: ½ for noise, 1 where it alternates.

        The error is that of as many independent flips, as they are for noise of either sign: half the width of Wilson's interval
        at one standard error, which a rate of 0 or 1 has too.

        References:
            Wilson, "Probable inference, the law of succession, and statistical inference" (1927).
        """
        return self._named(flip_rates(self.task), len(self.task) - 1)

    @property
    def smooth_disorder(self) -> dict[str, Estimate]:
        """The same of the second objective.

        Raises:
            ValueError: there is none.
        """
        return self._named(flip_rates(self._second), len(self.task) - 1)

    @property
    def conflicts(self) -> dict[str, Estimate]:
        """Share of the steps at which the two objectives pull a scalar to opposite sides; NaN where a gradient is.

        Raises:
            ValueError: there is no second objective.
        """
        with np.errstate(invalid="ignore"):
            agreement = np.sign(self.task) * np.sign(self._second)
        opposed = np.where(np.isnan(agreement), np.nan, agreement < 0)
        return self._named(opposed.mean(axis=0) if len(opposed) else np.full(len(self.names), np.nan), len(opposed))

    @property
    def cosines(self) -> Float[np.ndarray, " K"]:
        """Cosine between the gradients of the two objectives over all scalars, at each step.

        Raises:
            ValueError: there is no second objective.
        """
        second = self._second
        with np.errstate(all="ignore"):
            lengths = np.linalg.norm(self.task, axis=1) * np.linalg.norm(second, axis=1)
            return np.asarray((self.task * second).sum(axis=1) / lengths)

    def frozen(self, *, threshold: float = THRESHOLD) -> Bool[np.ndarray, " m"]:
        """Scalars whose task gradient is to be left out for the next K steps: those of low disorder, which one objective drags.

        Args:
            threshold: disorder below which a scalar is frozen; GAQAT tunes it together with K.
        """
        with np.errstate(invalid="ignore"):
            return np.asarray(flip_rates(self.task) < threshold)

    def summary(self) -> tuple[str, ...]:
        """Scalars, steps, disorder."""
        subject = f"{plural(len(self.names), 'scalar')} over {plural(len(self.task), 'step')}"
        rates = flip_rates(self.task)
        if not np.isfinite(rates).any():
            return subject, "no flips to count"
        return subject, f"disorder {number(float(np.nanmean(rates)))} on average, {int(self.frozen().sum())} frozen"

    @property
    def _second(self) -> Float[np.ndarray, "K m"]:
        if self.smooth is None:
            raise ValueError("Expected gradients of a second objective, found those of the task alone. Give smooth=.")
        return self.smooth

    def _named(self, rates: Float[np.ndarray, " m"], count: int) -> dict[str, Estimate]:
        # Wilson's with z = 1. √(p(1 − p)/K) would be certain of a rate that has been 0 or 1 over few steps.
        errors = np.sqrt(rates * (1 - rates) * count + 0.25) / (count + 1) if count > 0 else np.full(len(rates), np.nan)
        return {name: Estimate(*pair) for name, *pair in zip(self.names, rates.tolist(), errors.tolist(), strict=True)}


def flip_rates(stream: Float[np.ndarray, "K m"]) -> Float[np.ndarray, " m"]:
    """δ = Σ 1[sgn g_{k+1} ≠ sgn g_k]/(K − 1) of every column; NaN with fewer than two steps.

    Example:
        >>> flip_rates(np.array([[1.0, 1.0], [-2.0, 3.0], [1.0, 2.0]])).tolist()
        [1.0, 0.0]

    References:
        "GAQAT: gradient-adaptive quantization-aware training for domain generalization" (2024).
    """
    if len(stream) < 2:
        return np.full(stream.shape[1], np.nan)
    with np.errstate(invalid="ignore"):
        signs = np.sign(stream)
        rates = (signs[1:] != signs[:-1]).mean(axis=0)
    return np.where(np.isnan(stream).any(axis=0), np.nan, rates)
