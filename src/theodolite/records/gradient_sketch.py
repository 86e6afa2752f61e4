"""Sketches of per-sample gradients, and their dot products with the errors of the sketch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int

from theodolite.records import gram as of
from theodolite.records.estimate import Estimate
from theodolite.records.record import Record
from theodolite.records.text import number, plural, with_error


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class GradientSketch(Record):
    """Dot products of the gradients of many samples, on several ranks, some exact and the others from sketches.

    A sketch maps the gradient of n parameters to d numbers, in r independent ways, so that inner products of sketches have those
    of the gradients as their mean, with the variance (‖x‖²‖y‖² + ⟨x, y⟩² − 2Σ x_j²y_j²)/(rd). The last term is not known across
    ranks and left out, so that ``stderrs`` are upper bounds, far too large for gradients with few large entries; ``spreads`` are
    read off the repeats instead.

    Args:
        gram: dot products of gradients, scaled so that their mean is the gradient of the problem.
        stderrs: standard errors of the dot products from the sketch, 0 where they are exact.
        sketches: of every sample, with every repeat's own map.
        indices: places of the samples in the data of their rank.
        ranks: the rank that each sample lies on.
        coverage: smallest and largest share of a parameter's gradient that the samples explain, 1 where all is captured.
        parameters: names of the parameters, in order.
        size: number of parameters n.
    """

    kind: ClassVar[str] = "gradient_sketch"

    gram: Float[np.ndarray, "b b"]
    stderrs: Float[np.ndarray, "b b"]
    sketches: Float[np.ndarray, "b r d"]
    indices: Int[np.ndarray, " b"]
    ranks: Int[np.ndarray, " b"]
    coverage: tuple[float, ...] = ()
    parameters: tuple[str, ...] = ()
    size: int

    @property
    def width(self) -> int:
        """Numbers in the sketches of one sample, r·d."""
        return int(np.prod(self.sketches.shape[1:]))

    @property
    def exact(self) -> Bool[np.ndarray, "b b"]:
        """Which dot products are exact."""
        return np.asarray(self.stderrs == 0)

    @property
    def finite(self) -> Bool[np.ndarray, " b"]:
        """Whether the gradient of each sample is finite."""
        return np.asarray(np.isfinite(np.diagonal(self.gram)))

    @property
    def sample_norms(self) -> Float[np.ndarray, " b"]:
        """‖g_i‖, exact."""
        with np.errstate(invalid="ignore"):
            return np.asarray(np.sqrt(np.maximum(np.diagonal(self.gram), 0.0)))

    @property
    def cosines(self) -> Float[np.ndarray, "b b"]:
        """Cosines between gradients, NaN for one that vanishes; from sketches they may exceed 1."""
        return of.cosines(self.gram)

    @property
    def cosine_stderrs(self) -> Float[np.ndarray, "b b"]:
        """Their standard errors from the sketch; norms are exact."""
        lengths = self.sample_norms
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(self.stderrs / np.multiply.outer(lengths, lengths))

    @property
    def spreads(self) -> Float[np.ndarray, "b b"]:
        """Standard errors of the dot products as the repeats show them, with r − 1 degrees of freedom; 0 where they are exact."""
        found = spread_of(self._repeats)
        found[self.exact] = 0.0
        return found

    @property
    def agreement(self) -> float:
        """√(Σ spread²/Σ stderr²) over the dot products that are sketched: about 1 or less where the stated errors hold.

        NaN where all are exact, or a single repeat was made.
        """
        sketched = np.triu(~self.exact, k=1) & np.isfinite(self.stderrs)
        if not sketched.any():
            return float("nan")
        return float(np.sqrt(np.square(self.spreads[sketched]).sum() / np.square(self.stderrs[sketched]).sum()))

    # ------------------------------------------------------------------------------------------------- readings of the whole

    def reading(self, statistic: Callable[[Float[np.ndarray, "f f"]], float]) -> Estimate:
        """A statistic of the Gram matrix with the errors of samples and sketch together.

        The first is that of leaving samples out, the second from the statistic of every repeat alone; their degrees of freedom
        are joined after Welch and Satterthwaite. Extremes such as the largest eigenvalue of a sketched matrix are biased
        upwards, which no error tells.

        Args:
            statistic: of a Gram matrix of the gradients that are finite.
        """
        kept = np.ix_(self.finite, self.finite)
        of_samples = of.of_matrix(statistic, self.gram[kept])
        if self.exact[kept].all():
            return of_samples
        with np.errstate(all="ignore"):
            drawn = np.array([statistic(gram[kept]) for gram in self._repeats])
        of_sketch = float(spread_of(drawn))
        if not of_sketch > 0:
            return Estimate(of_samples.value, of_samples.stderr if of_sketch == 0 else float("nan"), of_samples.degrees)
        return Estimate(of_samples.value, float(np.hypot(of_samples.stderr, of_sketch)), _joined(of_samples, drawn))

    @property
    def mean_square(self) -> Estimate:
        """‖ḡ‖² of the samples."""
        return self.reading(lambda gram: float(of.mean_square(of.moments(gram))))

    @property
    def signal_square(self) -> Estimate:
        """|𝒢|² of the population, without bias."""
        return self.reading(lambda gram: float(of.signal_square(of.moments(gram))))

    @property
    def covariance_trace(self) -> Estimate:
        """tr Σ of per-sample gradients."""
        return self.reading(lambda gram: float(of.covariance_trace(of.moments(gram))))

    @property
    def noise_scale(self) -> Estimate:
        """tr Σ/|𝒢|², as of a ``Gradients`` record."""
        return self.reading(lambda gram: float(of.noise_scale(of.moments(gram))))

    @property
    def mean_cosine(self) -> Estimate:
        """Mean cosine between the gradients of two samples."""
        return self.reading(of.mean_cosine)

    def summary(self) -> tuple[str, ...]:
        """Samples, ranks, width, how much is exact, the largest error, and whether the repeats agree with it."""
        count, parts = len(self.gram), len(np.unique(self.ranks))
        subject = f"{plural(count, 'sample')} on {plural(parts, 'rank')}, n={self.size:,}"
        if not count:
            return subject, "no samples"
        found = [f"{plural(self.width, 'number')} a sketch", f"{self.exact.mean():.0%} of dot products exact"]
        if not self.exact.all():
            errors = self.cosine_stderrs[~self.exact]
            known = errors[np.isfinite(errors)]
            found.append(f"cosines to ± {number(float(known.max())) if known.size else '?'}")
            found.append(f"repeats show {number(self.agreement)} of the stated error")
        scale = self.noise_scale
        return subject, *found, f"noise scale {with_error(scale.value, scale.stderr)}"

    @property
    def _repeats(self) -> Float[np.ndarray, "r b b"]:
        """The Gram matrix of every repeat alone, with exact entries where they are known."""
        wide = np.moveaxis(self.sketches.astype(np.float64, copy=False), 1, 0)
        with np.errstate(all="ignore"):
            return np.where(self.exact, self.gram, wide @ np.swapaxes(wide, 1, 2))


def sketch_variance(
    dots: Float[np.ndarray, "*shape"], squares: Float[np.ndarray, "*shape"], width: int
) -> Float[np.ndarray, "*shape"]:
    """Variance of inner products of sketches, (‖x‖²‖y‖² + ⟨x, y⟩²)/(rd), from estimates of ⟨x, y⟩.

    An estimate's square exceeds ⟨x, y⟩² by this variance V itself on average, so that (‖x‖²‖y‖² + estimate²)/(rd + 1) has the
    mean V.

    Args:
        dots: estimates of ⟨x, y⟩.
        squares: ‖x‖²‖y‖².
        width: r·d.
    """
    return np.asarray((squares + np.square(dots)) / (width + 1))


def spread_of(drawn: Float[np.ndarray, "r *shape"]) -> Float[np.ndarray, "*shape"]:
    """Standard error of a mean over repeats, NaN for a single one."""
    if len(drawn) < 2:
        return np.full(drawn.shape[1:], np.nan)
    with np.errstate(all="ignore"):
        return np.asarray(drawn.std(axis=0, ddof=1) / np.sqrt(len(drawn)))


def _joined(of_samples: Estimate, drawn: Float[np.ndarray, " r"]) -> int:
    """Degrees of freedom of the two errors together."""
    first, second = of_samples.stderr**2, float(spread_of(drawn)) ** 2
    below = first**2 / max(of_samples.degrees or 1, 1) + second**2 / (len(drawn) - 1)
    found = (first + second) ** 2 / below if below > 0 else 1.0
    return max(int(found), 1) if np.isfinite(found) else 1
