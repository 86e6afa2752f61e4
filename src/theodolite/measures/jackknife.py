"""Standard errors by leaving one chunk of the data out at a time."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def jackknife_stderr(left_out: Float[np.ndarray, "c *shape"]) -> Float[np.ndarray, "*shape"]:
    """Standard error of an estimate from its values with each of c chunks left out; NaN with a single chunk.

    References:
        Efron, Stein, "The jackknife estimate of variance" (1981).
    """
    chunks = left_out.shape[0]
    if chunks < 2:
        return np.full(left_out.shape[1:], np.nan)
    deviations = left_out - left_out.mean(axis=0)
    return np.asarray(np.sqrt((chunks - 1) / chunks * np.square(deviations).sum(axis=0)))
