"""Extreme eigenpairs of a symmetric operator by thick-restart Lanczos."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from theodolite.errors import NonFiniteError, OperatorError
from theodolite.linalg import vectors
from theodolite.linalg.krylov import Krylov, Ritz
from theodolite.linalg.operator import LinearOperator, bytes_in_words
from theodolite.linalg.probes import Probes
from theodolite.linalg.selection import StoppingRule, Which, chosen_pairs, order, radius, relative_bounds

EXTRA_STEPS = 6
EXTRA_ROWS = 3
NOVELTY = 0.1  # weight of the random part of a warm start


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Eigenpairs:
    """Eigenpairs with how far to trust each, and the quadrature that the same products give.

    Args:
        values: eigenvalues in descending order, float64 on the CPU.
        vectors: unit eigenvectors, one a row, in the dtype and on the device of the operator.
        residuals: estimates of ‖Av − λv‖ / max(|λ|, 1e-3·radius).
        converged: whether the residual is at most the tolerance.
        settled: whether the iteration ended by its stopping rule. If not, the pairs are as good as their residuals,
            but others that belong among them may be missing.
        radius: largest |Ritz value| of the run, an estimate of the spectral radius from below.
        products: operator-vector products.
        restarts: thick restarts.
        nodes: Ritz values of the first Krylov space, ascending.
        weights: their squared first components, which sum to 1. Σ w f(node) approximates vᵀf(A)v for the unit start
            vector v; times n it is one sample of the trace of f(A) if v was random.
    """

    values: Float[Tensor, " k"]
    vectors: Float[Tensor, "k n"]
    residuals: Float[Tensor, " k"]
    converged: Bool[Tensor, " k"]
    settled: bool
    radius: float
    products: int
    restarts: int
    nodes: Float[Tensor, " s"]
    weights: Float[Tensor, " s"]


def lanczos(
    A: LinearOperator,
    *,
    k: int,
    which: Which = "largest",
    tol: float = 1e-3,
    seed: int = 0,
    start: Float[Tensor, "*j n"] | None = None,
    max_products: int | None = None,
    memory: int = 4 * 2**30,
    verify: bool = False,
    on_step: Callable[[int, float], None] | None = None,
) -> Eigenpairs:
    """Extreme eigenpairs of a symmetric operator.

    The iteration stops when the residual estimates of the k asked pairs have been at most ``tol`` during the last tenth
    of the steps, and not before k + 6 products. The tenth is for a wanted eigenvalue that the space has yet to discover
    while the next one poses in its place with a small residual: on six model spectra, 60 seeds each, it costs 10 % more
    products and avoids 85 % of such errors.

    When the space turns out invariant (repeated eigenvalues, low rank), the iteration goes on from a fresh random
    vector orthogonal to it, and stops only when such a vector brought nothing new among the k. Without such a
    breakdown, one vector sees one copy of an exactly repeated eigenvalue until rounding brings the others;
    ``verify=True`` starts a fresh vector after convergence as well.

    Cost: about 2k to 4k products at tol 1e-3 on Hessians, O(n·j²) for j steps of reorthogonalisation.

    Args:
        A: symmetric.
        k: number of pairs.
        which: the algebraically largest or smallest, both ends (the larger half, rounded up, from the top), or the
            largest in magnitude.
        tol: relative residual; residuals of eigenvalues below 1e-3 of the largest are relative to that.
        seed: of the start vector and the fresh vectors.
        start: a vector (n,) or block (j, n), for instance the eigenvectors of an earlier checkpoint. The first vector
            is the sum of its unit rows plus a tenth of a random one: the sum of j eigenvectors spans all of them after
            j products, as many as Rayleigh-Ritz on the rows would take before it learns anything new, and the random
            part finds what the rows miss. Spares up to half the products, the less the eigenvectors moved.
            Nodes and weights then belong to that vector, not to a random one.
        max_products: stop after so many, converged or not; None allows 10·k + 200.
        memory: bytes for the basis, beyond which it is restarted with the best Ritz vectors. A few vectors of work
            space and the k results come on top.
        verify: check for further copies of repeated eigenvalues: the same number of steps again, as often as copies come.
        on_step: called after each product with the products so far and the worst relative residual among the asked
            pairs (infinity before the first check).

    Returns:
        The pairs. Those that did not converge are marked, not raised.

    Raises:
        OperatorError: A is not symmetric, or k, max_products, memory or start make no sense.
        NonFiniteError: a product or the start vector is not finite.

    Example:
        >>> import torch
        >>> from theodolite.linalg import Diagonal, lanczos
        >>> A = Diagonal(torch.arange(100.0, dtype=torch.float64) ** 2)
        >>> found = lanczos(A, k=3, tol=1e-8)
        >>> [round(value, 6) for value in found.values.tolist()], bool(found.converged.all())
        ([9801.0, 9604.0, 9409.0], True)

    References:
        Lanczos (1950), An iteration method for the solution of the eigenvalue problem.
        Wu, Simon (2000), Thick-restart Lanczos method for large symmetric eigenvalue problems.
    """
    n = _size_of_sensible(A, k=k, which=which, tol=tol)
    limit = 10 * k + 200 if max_products is None else max_products
    if limit < k:
        raise OperatorError(f"{k} eigenpairs take at least {k} products, found max_products={max_products}.")
    capacity = _rows_in_memory(A, k, memory)
    probes = Probes(A, seed=seed)
    krylov = Krylov(A, start=_start_vector(A, start, probes), draw=lambda: probes.draw(1)[0], capacity=capacity)
    rule = StoppingRule(k=k, which=which, tol=tol, fair_steps=min(n, k + EXTRA_STEPS), verify=verify)
    quadrature: tuple[Tensor, Tensor] | None = None
    restarts, settled, done = 0, False, False
    while not done:
        krylov.advance()
        done = krylov.exhausted or krylov.products >= limit
        full = len(krylov) == capacity
        if done or full or krylov.invariant or len(krylov) % _check_interval(len(krylov)) == 0:
            ritz = krylov.ritz()
            settled = rule.settles(krylov, ritz) or krylov.exhausted
            done = done or settled
            if quadrature is None and (done or full or krylov.invariant):
                quadrature = _quadrature(ritz)
        if on_step is not None:
            on_step(krylov.products, rule.worst)
        if full and not done:
            krylov.restart(order(ritz.values, which)[: k + (capacity - k) // 2])
            restarts += 1
    assert quadrature is not None
    chosen = chosen_pairs(ritz, k, which)
    relative = relative_bounds(ritz, chosen)
    return Eigenpairs(
        values=torch.from_numpy(ritz.values[chosen]),
        vectors=krylov.basis.combine(ritz.coordinates[:, chosen]),
        residuals=torch.from_numpy(relative),
        converged=torch.from_numpy(relative <= tol),
        settled=settled,
        radius=radius(ritz),
        products=krylov.products,
        restarts=restarts,
        nodes=quadrature[0],
        weights=quadrature[1],
    )


def _size_of_sensible(A: LinearOperator, *, k: int, which: str, tol: float) -> int:
    """The size of A, if the question can be answered."""
    if not A.symmetric:
        raise OperatorError(
            f"Lanczos needs a symmetric operator, {A!r} does not claim to be. Pass symmetric=True where it was made."
        )
    n = A.shape[0]
    if not 1 <= k <= n:
        raise OperatorError(f"{A!r} has {n} eigenpairs, found k={k}; ask for 1 to {n}.")
    if which not in get_args(Which):
        raise OperatorError(f"which is one of {', '.join(map(repr, get_args(Which)))}, found {which!r}.")
    if not tol > 0:
        raise OperatorError(f"tol is a positive relative residual, found {tol}.")
    return n


def _rows_in_memory(A: LinearOperator, k: int, memory: int) -> int:
    n, row = A.shape[0], A.shape[0] * A.dtype.itemsize
    needed = min(n, k + EXTRA_ROWS)
    if memory < needed * row:
        raise OperatorError(
            f"{k} eigenpairs of {A!r} need a basis of at least {needed} vectors of {bytes_in_words(row)} each, "
            f"{bytes_in_words(needed * row)} in all, found memory={bytes_in_words(memory)}. Raise memory or lower k."
        )
    return min(n, memory // row)


def _start_vector(A: LinearOperator, start: Tensor | None, probes: Probes) -> Float[Tensor, " n"]:
    random = probes.draw(1)[0]
    if start is None:
        return random
    n = A.shape[0]
    if start.ndim not in (1, 2) or start.shape[-1] != n or start.numel() == 0:
        raise OperatorError(f"start has the shape ({n},) or (j, {n}) for {A!r}, found {tuple(start.shape)}.")
    rows = start.reshape(-1, n).T.to(random)
    norms = vectors.norm(rows)
    if not bool(torch.isfinite(norms).all()):
        raise NonFiniteError(f"start has NaN or infinite entries; its rows have norms {norms.tolist()}.")
    if float(norms.min()) == 0:
        raise OperatorError(f"start has a row of zeros; its rows have norms {norms.tolist()}.")
    warm = (rows / norms.to(rows)).sum(dim=1)
    # Relative to one unit row: the sum of opposite rows may vanish, the random part then starts alone.
    return warm + NOVELTY * random / float(vectors.norm(random))


def _check_interval(j: int) -> int:
    """Every step at first; later a check costs O(j³) on the host, and one in 32 steps of delay is cheap."""
    return max(1, j // 32)


def _quadrature(ritz: Ritz) -> tuple[Tensor, Tensor]:
    """Gauss nodes and weights for the spectral measure of the start vector."""
    return torch.from_numpy(ritz.values.copy()), torch.from_numpy(ritz.coordinates[0] ** 2)
