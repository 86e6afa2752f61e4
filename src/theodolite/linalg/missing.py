"""A short search for extreme eigenvalues that a Lanczos run has missed, such as further copies of a repeated one."""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor

from theodolite.linalg.lanczos import Eigenpairs, lanczos
from theodolite.linalg.operator import LinearOperator
from theodolite.linalg.selection import Which

PRODUCTS = 8
MARGIN = 0.1  # residuals of the found pairs couple what was moved to the rest, which lifts it a little


class Deflated(LinearOperator):
    """A − Vᵀ diag(λ − c) V: the operator with known eigenvalues λ moved to c, all else as it was.

    Args:
        operator: A, symmetric.
        values: λ, eigenvalues of A.
        vectors: V, their orthonormal eigenvectors, one a row.
        to: c.
    """

    def __init__(
        self, operator: LinearOperator, values: Float[Tensor, " k"], vectors: Float[Tensor, "k n"], *, to: float
    ) -> None:
        super().__init__(
            shape=operator.shape,
            dtype=operator.dtype,
            device=operator.device,
            symmetric=operator.symmetric,
            dots=operator.dots,
        )
        self.operator, self.basis = operator, vectors
        self._shifts = (values - to).to(vectors)[:, None]

    def _matmat(self, V: Float[Tensor, "n k"]) -> Float[Tensor, "m k"]:
        return self.operator @ V - self.basis.T @ (self._shifts * self.dots.project(self.basis, V))


def misses_eigenvalues(A: LinearOperator, found: Eigenpairs, *, which: Which, seed: int = 0) -> bool:
    """Whether eigenvalues beyond the innermost found one are certainly missing among those found.

    One vector sees one copy of an exactly repeated eigenvalue, as in the Hessian of the squared error of a linear layer with
    several outputs. With what was found moved out of the way, a few Lanczos steps from a fresh random vector approach the
    ends of what is left from inside: a Ritz value beyond a found eigenvalue proves that one was missed. That none lies there
    proves nothing, but copies of well-separated eigenvalues show within these steps.

    Cost: at most 8 products.

    Args:
        A: the operator.
        found: pairs of it.
        which: as they were asked for, ``"largest"``, ``"smallest"`` or ``"both"``.
        seed: of the fresh vector.
    """
    n, k = A.size, len(found.values)
    ends = 2 if which == "both" else 1
    if n - k < ends:
        return False
    top = {"largest": k, "smallest": 0, "both": (k + 1) // 2}[which]
    # The mean over a random vector lies inside the spectrum, where moved eigenvalues are in nobody's way. That over a warm start
    # lies among the found ones, and would itself be taken for a missed one.
    inside = float((found.weights * found.nodes).sum())
    high = float(found.values[top - 1]) - MARGIN * found.radius if top > 0 else math.inf
    low = float(found.values[top]) + MARGIN * found.radius if top < k else -math.inf
    inside = min(max(inside, low), high) if low <= high else (low + high) / 2
    rest = Deflated(A, found.values, found.vectors, to=inside)
    outside = lanczos(rest, k=ends, which=which, tol=1e-12, seed=seed + 1, max_products=min(PRODUCTS, n))
    slack = 1e-6 * found.radius
    above = top > 0 and bool(outside.values[0] > found.values[top - 1] + slack)
    below = top < k and bool(outside.values[-1] < found.values[top] - slack)
    return above or below
