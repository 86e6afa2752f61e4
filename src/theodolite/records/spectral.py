"""What quadrature rules of a spectrum say of its shape: moments, shares, signs, bulk, dimension."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal

import numpy as np
from jaxtyping import Float

from theodolite.records.estimate import Estimate
from theodolite.records.rules import Rules, quantile

ZERO = 1e-6  # nodes below this share of the largest are zero: products in single precision carry 1e-7
ONE_SIGNED = 0.5  # from here on one sign outweighs the other three to one
NORMAL = 1.4826  # the standard deviation of a normal distribution in units of its median absolute deviation

SpectrumType = Literal["mainly positive", "mainly negative", "quasi-singular"]


class Spectral(ABC):
    """Everything that follows from nodes and weights of the spectral density, one rule for each random probe.

    Errors are over probes; the bias of rules with too few nodes is not in them.
    """

    @abstractmethod
    def rules(self) -> Rules:
        """The rules.

        Raises:
            ValueError: they were not measured.
        """

    def moment(self, p: int) -> Estimate:
        """Spectral moment tr(Hᵖ)/n, the mean over the eigenvalues of λᵖ."""
        return self._mean(lambda nodes: nodes**p)

    def integral(self, f: Callable[[Float[np.ndarray, "m s"]], Float[np.ndarray, "m s"]]) -> Estimate:
        """tr f(H) = Σ f(λ).

        Args:
            f: a function of eigenvalues, elementwise.
        """
        mean, size = self._mean(f), self.rules().size
        return Estimate(size * mean.value, size * mean.stderr, mean.degrees)

    def mass(self, lower: float, upper: float) -> Estimate:
        """Share of the eigenvalues with lower ≤ λ < upper.

        A rule knows the weight below a threshold to within that of the two nodes beside it, whatever the spectrum is; the
        error of a smooth one is added in squares to that of the probes.

        Raises:
            ValueError: lower is above upper.

        References:
            Akhiezer, "The classical moment problem" (1965), inequalities of Chebyshev, Markov and Stieltjes.
        """
        if not lower <= upper:
            raise ValueError(f"mass(lower, upper) expects lower ≤ upper; found {lower} and {upper}.")
        counted, rules = self._mean(lambda nodes: (nodes >= lower) & (nodes < upper)), self.rules()
        stderr = np.sqrt(counted.stderr**2 + sum(rules.blur(each) ** 2 for each in (lower, upper)))
        return Estimate(counted.value, float(stderr), counted.degrees)

    @property
    def negative_mass(self) -> Estimate:
        """Share of the eigenvalues below zero, which is to say below −1e-6·|λ|max; NaN where a node is."""
        largest = float(np.abs(self.rules().nodes).max(initial=0.0))
        return Estimate(np.nan, np.nan) if np.isnan(largest) else self.mass(-np.inf, -ZERO * largest)

    def K(self, p: float = 1.0) -> Estimate:
        """Negative against positive part of the spectrum, ∫_{λ<0}|λ|ᵖdμ / ∫_{λ>0}λᵖdμ.

        With p = 1 the negative share of the trace against its positive one. The error is that of a ratio of means over
        probes, to first order. 0 without negative nodes, infinite without positive ones.
        """
        rules = self.rules()
        negative, positive = (np.maximum(sign * rules.nodes, 0) ** p for sign in (-1, 1))
        if not (rules.weights * negative).any():
            return rules.mean(negative)
        if not (rules.weights * positive).any():
            return Estimate(float("inf"), float("nan"))
        return rules.ratio(negative, positive)

    @property
    def balance(self) -> Estimate:
        """Σλ / Σ|λ|: 1 where no eigenvalue is negative, −1 where none is positive, 0 where the signs cancel.

        NaN where all nodes are zero. The error is that of a ratio of means over probes, to first order.
        """
        rules = self.rules()
        whole = np.abs(rules.nodes)
        return rules.ratio(rules.nodes, whole) if rules.mean(whole).value > 0 else Estimate(np.nan, np.nan)

    @property
    def type(self) -> SpectrumType:
        """Which sign outweighs the other three to one in Σ|λ|; quasi-singular where neither does, or all are zero.

        Criteria of convexity (``re``, ``K``, ``Kh``) and of flatness (trace, sharpness) rank minima: they say little where
        the spectrum is not mainly positive, at a point where curvature cancels or that is not near a minimum.
        """
        balance = self.balance.value
        if balance >= ONE_SIGNED:
            return "mainly positive"
        return "mainly negative" if balance <= -ONE_SIGNED else "quasi-singular"

    @property
    def median_magnitude(self) -> float:
        """Median of |λ|. What lies below the distance of the nodes next to zero is not resolved."""
        return quantile(np.abs(self.rules().nodes), self.rules().weights, 0.5)

    @property
    def bulk(self) -> tuple[float, float]:
        """Centre and scale of the bulk: median of the spectrum, and 1.4826 times its median absolute deviation.

        The scale is no finer than the nodes near the centre lie.

        References:
            Sagun, Evci, Guney, Dauphin, Bottou, "Empirical analysis of the Hessian of over-parametrized neural networks"
            (2017).
        """
        nodes, weights = self.rules().nodes, self.rules().weights
        centre = quantile(nodes, weights, 0.5)
        return centre, NORMAL * quantile(np.abs(nodes - centre), weights, 0.5)

    def effective_dimension(self, damping: float) -> Estimate:
        """How many directions the data determine against a prior: Σ λ₊/(λ₊ + δ) over the positive eigenvalues.

        Args:
            damping: δ, curvature of the prior.

        Raises:
            ValueError: δ is not positive.

        References:
            MacKay, "Bayesian interpolation" (1992).
        """
        _refuse_undamped(damping, "effective_dimension")
        return self.integral(lambda nodes: np.maximum(nodes, 0) / (np.maximum(nodes, 0) + damping))

    def log_det(self, damping: float) -> Estimate:
        """log det(H₊ + δI), negative eigenvalues set to zero, in nats.

        With δ far below the bulk it takes 60 Lanczos steps and more: compare rules of different steps.

        Args:
            damping: δ.

        Raises:
            ValueError: δ is not positive.
        """
        _refuse_undamped(damping, "log_det")
        return self.integral(lambda nodes: np.log(np.maximum(nodes, 0) + damping))

    def _mean(self, f: Callable[[Float[np.ndarray, "m s"]], np.ndarray]) -> Estimate:
        """Mean of f over the eigenvalues."""
        rules = self.rules()
        return rules.mean(f(rules.nodes).astype(np.float64))


def _refuse_undamped(damping: float, name: str) -> None:
    if not damping > 0:
        raise ValueError(f"{name}(damping) expects a positive δ, found {damping!r}.")
