"""How far apart two subspaces lie, each given by orthonormal rows."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def cosines(A: Float[np.ndarray, "j n"], B: Float[np.ndarray, "k n"]) -> Float[np.ndarray, " m"]:
    """Cosines of the principal angles, descending, one for each dimension of the smaller subspace.

    References:
        Björck, Golub, "Numerical methods for computing angles between linear subspaces" (1973).
    """
    found: np.ndarray = np.linalg.svd(A.astype(np.float64) @ B.astype(np.float64).T, compute_uv=False)
    return np.asarray(np.clip(found, 0.0, 1.0))


def overlap(A: Float[np.ndarray, "j n"], B: Float[np.ndarray, "k n"]) -> float:
    """Mean squared cosine of the principal angles: 1 where one subspace contains the other.

    Two random subspaces of dimensions j ≤ k in n dimensions overlap by k/n on average.
    """
    found = cosines(A, B)
    return float(np.square(found).mean()) if found.size else float("nan")
