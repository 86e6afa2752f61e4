"""Magnitude, noise and alignment of per-sample gradients, read off their Gram matrix."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from jaxtyping import Float

from theodolite.records import gram as of
from theodolite.records import noise
from theodolite.records.estimate import Estimate


class GramReadings(ABC):
    """What has a Gram matrix of per-sample gradients, and so all that follows from one.

    Standard errors are those of the data: samples are left out of the same matrix.
    """

    @property
    @abstractmethod
    def finite_gram(self) -> Float[np.ndarray, "f f"]:
        """Dot products of the gradients that are finite, scaled so that their mean is the gradient."""

    @property
    def mean_square(self) -> Estimate:
        """‖ḡ‖² of the samples in the Gram matrix."""
        return of.of_moments(of.mean_square, self.finite_gram)

    @property
    def second_moment(self) -> Estimate:
        """Mean of ‖g_i‖², the trace of the empirical Fisher and the numerator of Takeuchi's criterion (TIC)."""
        return of.of_moments(of.second_moment, self.finite_gram)

    def takeuchi(self, trace: Estimate) -> Estimate:
        """tr C/tr H: Takeuchi's information criterion by traces, from the trace of the Hessian on the same data.

        Args:
            trace: of the Hessian, such as ``trace(problem).estimate``.

        References:
            Takeuchi (1976); Thomas et al., "On the interplay between noise and curvature" (2020).
        """
        moment = self.second_moment
        value = moment.value / trace.value if trace.value else float("nan")
        relative = np.hypot(moment.stderr / (moment.value or np.nan), trace.stderr / (trace.value or np.nan))
        return Estimate(value, float(abs(value) * relative), moment.degrees)

    @property
    def covariance_trace(self) -> Estimate:
        """tr Σ of per-sample gradients."""
        return of.of_moments(of.covariance_trace, self.finite_gram)

    @property
    def signal_square(self) -> Estimate:
        """|𝒢|² of the population, without bias: negative values say that noise dominates."""
        return of.of_moments(of.signal_square, self.finite_gram)

    @property
    def noise_dominated(self) -> bool:
        """Whether the gradient is not told from zero: |𝒢|² less two standard errors is not positive."""
        found = self.signal_square
        return not found.value - 2 * found.stderr > 0

    @property
    def noise_scale(self) -> Estimate:
        """B_simple = tr Σ/|𝒢|², also an estimate of the critical batch size; infinite where |𝒢|² ≤ 0.

        Its standard error is that of a ratio and too small where noise dominates: use ``noise_scale_interval``.

        References:
            McCandlish et al., "An empirical model of large-batch training" (2018).
        """
        return of.of_moments(of.noise_scale, self.finite_gram)

    def noise_scale_interval(self, level: float = 0.95) -> tuple[float, float]:
        """Confidence interval of the noise scale, unbounded above where the gradient is not told from zero."""
        return noise.noise_scale_interval(self.finite_gram, level=level)

    def trade_off(self, sizes: Float[np.ndarray, " s"]) -> tuple[Float[np.ndarray, " s"], Float[np.ndarray, " s"]]:
        """Steps and samples to a given loss by batch size, over the least possible, with the noise scale as critical size."""
        return noise.trade_off(self.noise_scale.value, sizes)

    @property
    def gsnr(self) -> Estimate:
        """Signal to noise ‖ḡ‖²/tr Σ of one sample's gradient."""
        return of.of_moments(of.signal_to_noise, self.finite_gram)

    @property
    def norm_test(self) -> Estimate:
        """√(tr Σ/(B‖ḡ‖²)): the batch is large enough at tolerance θ if this is at most θ (Byrd et al., 2012)."""
        return of.of_moments(of.norm_test, self.finite_gram)

    @property
    def inner_test(self) -> Estimate:
        """√(Var⟨g_i, ḡ⟩/(B‖ḡ‖⁴)), the inner-product test (Bollapragada, Byrd & Nocedal, 2017)."""
        return of.of_matrix(of.inner_test, self.finite_gram)

    @property
    def orthogonality_test(self) -> Estimate:
        """√(tr Σ_⊥/(B‖ḡ‖²)) with the covariance across ḡ, the orthogonality test of the same paper."""
        return of.of_matrix(of.orthogonality_test, self.finite_gram)

    @property
    def coherence(self) -> Estimate:
        """1ᵀG1/(B tr G): 1/B for orthogonal gradients, 1 for equal ones."""
        return of.of_moments(of.coherence, self.finite_gram)

    @property
    def diversity(self) -> Estimate:
        """Σ‖g_i‖²/‖Σg_i‖² (Yin et al., 2018)."""
        return of.of_moments(of.diversity, self.finite_gram)

    @property
    def confusion(self) -> Estimate:
        """η = −min ⟨g_i, g_j⟩ (Sankararaman et al., 2020); an extreme, whose error is rough."""
        return of.of_matrix(of.confusion, self.finite_gram)

    @property
    def negative_fraction(self) -> Estimate:
        """Share of the pairs of samples whose gradients oppose each other."""
        return of.of_matrix(of.negative_fraction, self.finite_gram)

    @property
    def mean_cosine(self) -> Estimate:
        """Mean cosine between the gradients of two samples."""
        return of.of_matrix(of.mean_cosine, self.finite_gram)

    @property
    def min_cosine(self) -> Estimate:
        """Smallest cosine between the gradients of two samples; an extreme, whose error is rough."""
        return of.of_matrix(of.min_cosine, self.finite_gram)

    @property
    def zero_sum(self) -> Estimate:
        """Destructive interference 1 − |ΣΔ_i|/Σ|Δ_i| of the losses under a step along −ḡ of the other samples.

        With the self term, which every step along −ḡ contains, interference is hidden.

        References:
            Mircea et al., "Training dynamics underlying language model scaling laws: loss deceleration and zero-sum learning"
            (2025).
        """
        return of.of_matrix(of.zero_sum, self.finite_gram)

    @property
    def norm_interference(self) -> Estimate:
        """1 − ‖Σg_i‖/Σ‖g_i‖."""
        return of.of_matrix(of.norm_interference, self.finite_gram)

    @property
    def fisher_eigenvalues(self) -> Float[np.ndarray, " f"]:
        """Eigenvalues of the empirical Fisher Σ g_i g_iᵀ/B, descending; all others are zero."""
        gram = self.finite_gram
        return np.linalg.eigvalsh(gram)[::-1] / max(len(gram), 1)

    @property
    def covariance_eigenvalues(self) -> Float[np.ndarray, " f"]:
        """Eigenvalues of the covariance of per-sample gradients, descending, the last one zero."""
        gram = self.finite_gram
        return np.linalg.eigvalsh(of.centred(gram))[::-1] / max(len(gram) - 1, 1)

    @property
    def effective_rank(self) -> Estimate:
        """(tr F)²/tr F² of the empirical Fisher; its error knows of the samples, not of the bias at B below the rank."""
        return of.of_matrix(of.effective_rank, self.finite_gram)

    @property
    def outlier_share(self) -> Estimate:
        """Largest share of one sample in tr G; an extreme, whose error is rough."""
        return of.of_matrix(of.outlier_share, self.finite_gram)
