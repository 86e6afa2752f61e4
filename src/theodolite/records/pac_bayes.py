"""The gradient-norm term of a PAC-Bayes bound."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float
from scipy.special import logsumexp

from theodolite.records.estimate import Estimate
from theodolite.records.jackknife import jackknife_stderr
from theodolite.records.record import Record
from theodolite.records.text import number, plural, with_error


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class PacBayes(Record):
    """What the gradient of the loss in its inputs says of the gap between test and training loss.

    Args:
        exponents: (σ_x²λ/2)·∫₀^{λ/m} E_x[‖∇_xℓ‖²e^{−αℓ}]/M(α) dα of every draw of parameters from the prior.
        gradient_squares: E_x‖∇_xℓ‖² of every draw.
        losses: mean loss of every draw.
        temperature: λ.
        noise: σ_x, local standard deviation of the inputs.
        samples: m.
        prior_scale: standard deviation of the prior around its centre.
    """

    kind: ClassVar[str] = "pac-bayes"

    exponents: Float[np.ndarray, " k"]
    gradient_squares: Float[np.ndarray, " k"]
    losses: Float[np.ndarray, " k"]
    temperature: float
    noise: float
    samples: int
    prior_scale: float

    @property
    def gradient_norm(self) -> Estimate:
        """E_w E_x‖∇_xℓ‖², its error over draws of the parameters; NaN with one draw."""
        count = len(self.gradient_squares)
        stderr = self.gradient_squares.std(ddof=1) / math.sqrt(count) if count > 1 else math.nan
        return Estimate(float(self.gradient_squares.mean()) if count else math.nan, float(stderr), max(count - 1, 1))

    @property
    def complexity(self) -> Estimate:
        """C ≤ ln E_w exp(exponent), the term of the bound, its error over draws.

        The largest exponents decide it: where they differ by more than a few units the draws underestimate it, whatever its error.
        """
        count = len(self.exponents)
        if not count:
            return Estimate(math.nan, math.nan)
        whole = _log_mean_exp(self.exponents)
        if count < 2:
            return Estimate(whole, math.nan)
        without = np.array([_log_mean_exp(np.delete(self.exponents, i)) for i in range(count)])
        stderr = jackknife_stderr(without, whole=np.asarray(whole), weights=np.ones(count))
        return Estimate(whole, float(stderr), count - 1)

    def crude(self, largest_loss: float) -> float:
        """(σ_x²λ²/2m)·γ·e^{λb/m} with γ = the largest E_x‖∇_xℓ‖² of a draw, for losses of at most b."""
        reach = self.temperature / self.samples
        return float(
            0.5 * self.noise**2 * self.temperature * reach * self.gradient_squares.max() * np.exp(reach * largest_loss)
        )

    def bound(self, empirical_loss: float, *, divergence: float, confidence: float = 0.95) -> Estimate:
        """A plug-in estimate of the bound E_qL_S + (KL + ln(1/δ) + C)/λ on the expected loss of a posterior; no certificate.

        The bound holds with probability 1 − δ for the true C. Here C has the means over the inputs of the same data, and the mean
        over the prior of the draws, which underestimates it where few exponents decide; the confidence covers neither.

        Args:
            empirical_loss: of the posterior on the data.
            divergence: KL(q‖p).
            confidence: 1 − δ.

        Raises:
            ValueError: the confidence is not between 0 and 1; at 1 the bound is infinite.
        """
        if not 0 < confidence < 1:
            raise ValueError(f"Expected a confidence between 0 and 1, for example 0.95, found {confidence}.")
        term = self.complexity
        value = empirical_loss + (divergence - math.log(1 - confidence) + term.value) / self.temperature
        return Estimate(value, term.stderr / self.temperature, term.degrees)

    def summary(self) -> tuple[str, ...]:
        """Draws, gradient norm, term of the bound."""
        norm, term = self.gradient_norm, self.complexity
        return (
            f"{plural(len(self.exponents), 'draw')}, {plural(self.samples, 'sample')}, λ = {number(self.temperature)}",
            f"E‖∇ₓℓ‖² = {with_error(norm.value, norm.stderr, source='draws')}",
            f"C ≤ {with_error(term.value, term.stderr, source='draws')}",
        )


def _log_mean_exp(values: Float[np.ndarray, " k"]) -> float:
    return float(logsumexp(values) - math.log(len(values)))
