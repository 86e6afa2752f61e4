"""What a Gram matrix of per-sample gradients says of their magnitude, noise and alignment, with errors from the same matrix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Float

from theodolite.records.estimate import Estimate
from theodolite.records.jackknife import jackknife_stderr

# Sub-matrices that a statistic of the whole matrix is computed on: the error itself is then good to 1/√(2·64) = 9 %.
PIECES = 64

Gram = Float[np.ndarray, "b b"]
Statistic = Callable[[Gram], float]


@final
@dataclass(frozen=True)
class Moments:
    """All that most statistics need, for one matrix or for many that leave a sample out.

    Args:
        count: number of samples B.
        trace: tr G, the summed squared norms.
        total: 1ᵀG1 = B²‖ḡ‖².
    """

    count: float
    trace: Float[np.ndarray, "*shape"]
    total: Float[np.ndarray, "*shape"]


def moments(gram: Gram) -> Moments:
    """Moments of the whole matrix."""
    return Moments(float(len(gram)), np.asarray(np.trace(gram)), np.asarray(gram.sum()))


def moments_without(gram: Gram) -> Moments:
    """Moments without each sample."""
    own = np.diagonal(gram)
    return Moments(len(gram) - 1.0, np.trace(gram) - own, gram.sum() - 2 * gram.sum(axis=1) + own)


def mean_square(m: Moments) -> Float[np.ndarray, "*shape"]:
    """‖ḡ‖², biased upward by tr Σ/B as an estimate of |𝒢|²."""
    return np.asarray(m.total / m.count**2)


def second_moment(m: Moments) -> Float[np.ndarray, "*shape"]:
    """tr G/B = mean ‖g_i‖²."""
    return np.asarray(m.trace / m.count)


def covariance_trace(m: Moments) -> Float[np.ndarray, "*shape"]:
    """tr Σ̂ = (tr G − B‖ḡ‖²)/(B − 1)."""
    return np.asarray((m.trace - m.total / m.count) / (m.count - 1))


def signal_square(m: Moments) -> Float[np.ndarray, "*shape"]:
    """|𝒢|² without bias: the mean of the entries off the diagonal, which may be negative."""
    return np.asarray((m.total - m.trace) / (m.count * (m.count - 1)))


def noise_scale(m: Moments) -> Float[np.ndarray, "*shape"]:
    """B_simple = tr Σ̂/|𝒢|², infinite where |𝒢|² is not positive."""
    signal = signal_square(m)
    return np.asarray(
        np.where(
            signal > 0, covariance_trace(m) / np.where(signal > 0, signal, 1.0), np.where(signal <= 0, np.inf, signal)
        )
    )


def signal_to_noise(m: Moments) -> Float[np.ndarray, "*shape"]:
    """‖ḡ‖²/tr Σ̂."""
    return np.asarray(mean_square(m) / covariance_trace(m))


def norm_test(m: Moments) -> Float[np.ndarray, "*shape"]:
    """√(tr Σ̂/(B‖ḡ‖²)): relative error of the mean gradient."""
    return np.asarray(np.sqrt(np.maximum(covariance_trace(m), 0.0) / (m.count * mean_square(m))))


def coherence(m: Moments) -> Float[np.ndarray, "*shape"]:
    """1ᵀG1/(B tr G): 1/B for orthogonal gradients, 1 for equal ones."""
    return np.asarray(m.total / (m.count * m.trace))


def diversity(m: Moments) -> Float[np.ndarray, "*shape"]:
    """tr G/1ᵀG1 = Σ‖g_i‖²/‖Σg_i‖²."""
    return np.asarray(m.trace / m.total)


def inner_test(gram: Gram) -> float:
    """√(Var⟨g_i, ḡ⟩/(B‖ḡ‖⁴)): relative error of the mean gradient along itself."""
    slopes = gram.mean(axis=1)
    return float(np.sqrt(slopes.var(ddof=1) / len(gram)) / slopes.mean())


def orthogonality_test(gram: Gram) -> float:
    """√(Σ‖g_i − ⟨g_i, ḡ⟩ḡ/‖ḡ‖²‖²/((B − 1)B‖ḡ‖²)): relative error of the mean gradient across itself."""
    count, slopes = len(gram), gram.mean(axis=1)
    square = slopes.mean()
    across = np.trace(gram) - np.square(slopes).sum() / square
    return float(np.sqrt(max(across, 0.0) / (count - 1) / (count * square)))


def confusion(gram: Gram) -> float:
    """η = −min ⟨g_i, g_j⟩ over pairs; positive where two gradients oppose each other."""
    return -float(pairs(gram).min(initial=np.inf))


def negative_fraction(gram: Gram) -> float:
    """Share of the pairs whose gradients oppose each other."""
    return float((pairs(gram) < 0).mean())


def mean_cosine(gram: Gram) -> float:
    """Mean cosine over pairs, of those whose gradients do not vanish; NaN without any."""
    found = _known(pairs(cosines(gram)))
    return float(found.mean()) if found.size else float("nan")


def min_cosine(gram: Gram) -> float:
    """Smallest cosine over pairs."""
    found = _known(pairs(cosines(gram)))
    return float(found.min()) if found.size else float("nan")


def slopes_of_others(gram: Gram) -> Float[np.ndarray, " b"]:
    """Mean of ⟨g_i, g_j⟩ over the others j: how fast a step along −ḡ lowers the loss of i, without its own share of the step."""
    return np.asarray((gram.sum(axis=1) - np.diagonal(gram)) / (len(gram) - 1))


def destructive_interference(changes: Float[np.ndarray, " b"]) -> float:
    """1 − |Σ Δ_i|/Σ |Δ_i|: 0 where all losses move one way, 1 where gains pay for losses; 0 where nothing moves."""
    moved = np.abs(changes).sum()
    return float(1 - abs(changes.sum()) / moved) if moved != 0 else 0.0


def zero_sum(gram: Gram) -> float:
    """Destructive interference of the losses under a step along −ḡ, self term left out."""
    return destructive_interference(slopes_of_others(gram))


def norm_interference(gram: Gram) -> float:
    """1 − ‖Σg_i‖/Σ‖g_i‖: how much of the gradients' length is lost in adding them."""
    return float(1 - np.sqrt(max(gram.sum(), 0.0)) / np.sqrt(np.diagonal(gram)).sum())


def effective_rank(gram: Gram) -> float:
    """(tr F)²/tr F² of the empirical Fisher, whose nonzero eigenvalues are those of G/B."""
    return float(np.trace(gram) ** 2 / np.square(gram).sum())


def outlier_share(gram: Gram) -> float:
    """max ‖g_i‖²/Σ‖g_i‖²."""
    return float(np.diagonal(gram).max() / np.trace(gram))


def cosines(gram: Gram) -> Gram:
    """Cosines between gradients, NaN for one that vanishes."""
    lengths = np.sqrt(np.diagonal(gram))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(
            gram / np.where(lengths > 0, lengths, np.nan)[:, None] / np.where(lengths > 0, lengths, np.nan)
        )


def _known(values: Float[np.ndarray, " p"]) -> Float[np.ndarray, " f"]:
    return np.asarray(values[np.isfinite(values)])


def pairs(matrix: Gram) -> Float[np.ndarray, " p"]:
    """The entries above the diagonal."""
    return np.asarray(matrix[np.triu_indices(len(matrix), k=1)])


def centred(gram: Gram) -> Gram:
    """Gram matrix of the deviations g_i − ḡ."""
    rows = gram.mean(axis=1)
    return np.asarray(gram - rows[:, None] - rows + rows.mean())


def of_moments(statistic: Callable[[Moments], Float[np.ndarray, "*shape"]], gram: Gram) -> Estimate:
    """A statistic of the moments with its error by leaving out one sample at a time."""
    if len(gram) < 2:
        return Estimate(float("nan"), float("nan"))
    with np.errstate(all="ignore"):  # no gradient, or none but noise, is a reading
        whole, without = statistic(moments(gram)), statistic(moments_without(gram))
    stderr = jackknife_stderr(without, whole=whole, weights=np.ones(len(gram)))
    return Estimate(float(whole), float(stderr), len(gram) - 1)


def of_matrix(statistic: Statistic, gram: Gram) -> Estimate:
    """A statistic of the matrix with its error from sub-matrices that leave samples out, 64 times at most."""
    count = len(gram)
    if count < 2:
        return Estimate(float("nan"), float("nan"))
    pieces = np.array_split(np.arange(count), min(count, PIECES))
    without = np.full(len(pieces), np.nan)
    with np.errstate(all="ignore"):
        whole = statistic(gram)
        if count > 2:
            rest = (np.delete(np.arange(count), piece) for piece in pieces)
            without[:] = [statistic(gram[np.ix_(kept, kept)]) for kept in rest]
    stderr = jackknife_stderr(without, whole=np.asarray(whole), weights=np.array([float(len(p)) for p in pieces]))
    return Estimate(whole, float(stderr), len(pieces) - 1)
