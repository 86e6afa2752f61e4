"""Means and standard errors by leaving one chunk of the data out at a time."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def means_without(
    totals: Float[np.ndarray, "c *shape"], *, weights: Float[np.ndarray, " c"], divisor: float
) -> Float[np.ndarray, "c *shape"]:
    """Means over the data without each chunk.

    What is left keeps the denominator that its share of the weight has in the whole: of a criterion that sums, 1 in all, too.

    Args:
        totals: the sum of each chunk, along the first axis.
        weights: of each chunk.
        divisor: what the sum of all is divided by: the summed weights, 1 for a criterion that sums.

    Returns:
        One mean a chunk; NaN where nothing else weighs.

    Example:
        >>> means_without(np.array([2.0, 6.0]), weights=np.array([1.0, 3.0]), divisor=4.0).tolist()
        [2.0, 2.0]
    """
    whole = weights.sum()
    rest = np.where(whole > weights, (whole - weights) / (whole or 1.0) * divisor, np.nan)
    with np.errstate(all="ignore"):  # NaN and infinity are readings
        return np.asarray((totals.sum(axis=0) - totals) / rest.reshape(-1, *[1] * (totals.ndim - 1)))


def jackknife_stderr(
    left_out: Float[np.ndarray, "c *shape"],
    *,
    whole: Float[np.ndarray, "*shape"],
    weights: Float[np.ndarray, " c"],
) -> Float[np.ndarray, "*shape"]:
    """Standard error of an estimate from its values without each of c chunks of unequal weight.

    With h = Σw/w_c, the pseudo-value of chunk c is τ_c = hθ − (h−1)θ₍c₎ and θ_J = Cθ − Σ (1−1/h)θ₍c₎; the variance is
    1/C Σ (τ_c − θ_J)²/(h_c − 1). For equal weights this is the usual (C−1)/C Σ (θ₍c₎ − mean)², which is wrong where the
    last batch is small: on 200 samples and 1 it makes the error of a mean eight times too large. Every chunk adds
    about as much to the sum whatever its weight, so that it has C − 1 degrees of freedom.

    Args:
        left_out: the estimate without each chunk.
        whole: the estimate from all chunks.
        weights: of the chunks in the estimate; those without weight count for nothing.

    Returns:
        The error; NaN with fewer than two chunks of any weight, and where a value is not finite.

    Example:
        >>> chunks = np.array([1.0, 2.0, 6.0])  # means of three chunks of equal weight
        >>> error = jackknife_stderr((9.0 - chunks) / 2, whole=np.array(3.0), weights=np.ones(3))
        >>> bool(np.isclose(error, chunks.std(ddof=1) / np.sqrt(3)))
        True

    References:
        Busing, Meijer & van der Leeden, "Delete-m jackknife for unequal m" (1999).
    """
    counted = weights > 0
    if counted.sum() < 2:
        return np.full(left_out.shape[1:], np.nan)
    h = weights[counted].sum() / weights[counted]
    with np.errstate(all="ignore"):  # NaN and infinity are readings
        # τ − θ = (h−1)(θ − θ₍c₎), and θ_J − θ = Σ (τ − θ)/h: differences first, as (h−1) enlarges what rounding leaves.
        pseudo = np.moveaxis(whole - left_out[counted], 0, -1) * (h - 1)
        deviations = pseudo - (pseudo / h).sum(axis=-1, keepdims=True)
        return np.asarray(np.sqrt((np.square(deviations) / (h - 1)).mean(axis=-1)))
