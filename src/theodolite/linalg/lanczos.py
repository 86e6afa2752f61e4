"""Extreme eigenpairs of a symmetric operator by thick-restart Lanczos."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, final, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from theodolite.errors import NonFiniteError, OperatorError
from theodolite.linalg import vectors
from theodolite.linalg.krylov import Krylov, Ritz
from theodolite.linalg.operator import LinearOperator, bytes_in_words
from theodolite.linalg.probes import Probes

Which = Literal["largest", "smallest", "both", "magnitude"]

EXTRA_STEPS = 6
EXTRA_ROWS = 3
SMALL = 1e-3  # eigenvalues below this share of the largest are judged against it
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

    The iteration stops when the residual estimates of the k asked pairs are at most ``tol`` in two checks in a row,
    between which the values moved by no more than that, and not before k + 6 products: a wanted eigenvalue that the
    space has not yet discovered shows as a jump. When the space turns out invariant (repeated eigenvalues, low rank),
    the iteration goes on from a fresh random vector orthogonal to it, and stops only when such a vector brought
    nothing new among the k. Without such a breakdown one vector sees one copy of an exactly repeated eigenvalue,
    until rounding brings the others; ``verify=True`` starts a fresh vector after convergence as well.

    Cost: about 2k to 4k products at tol 1e-3 on Hessians, O(n·j²) for j steps of reorthogonalisation.

    Args:
        A: symmetric.
        k: number of pairs.
        which: the algebraically largest or smallest, both ends (the larger half, rounded up, from the top), or the
            largest in magnitude.
        tol: relative residual; residuals of eigenvalues below 1e-3 of the largest are relative to that.
        seed: of the start vector and the fresh vectors.
        start: a vector (n,) or block (j, n), for instance the eigenvectors of an earlier checkpoint. The start is the
            sum of the unit rows plus a tenth of a random vector: if the rows span an invariant space, j products find
            all of it again, while Rayleigh-Ritz on them would cost j products before anything new is learned; the
            random part finds what the rows miss. Nodes and weights then belong to that start, not to a random one.
        max_products: stop after so many, converged or not; None allows 10·k + 200.
        memory: bytes for the basis, beyond which it is restarted with the best Ritz vectors. A few vectors of work
            space and the k results come on top.
        verify: check for further copies of repeated eigenvalues; about doubles the products.
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
    krylov = Krylov(A, start=_start_vector(A, start, probes), draw=lambda: probes.draw(1)[0])
    rule = _StoppingRule(k=k, which=which, tol=tol, fair_steps=min(n, k + EXTRA_STEPS), verify=verify)
    quadrature: tuple[Tensor, Tensor] | None = None
    restarts, done = 0, False
    while not done:
        krylov.advance()
        done = krylov.exhausted or krylov.products >= limit
        full = len(krylov) == capacity
        if done or full or krylov.invariant or len(krylov) % _check_interval(len(krylov)) == 0:
            ritz = krylov.ritz()
            done = rule.settles(krylov, ritz) or done
            if quadrature is None and (done or full or krylov.invariant):
                quadrature = _quadrature(ritz)
        if on_step is not None:
            on_step(krylov.products, rule.worst)
        if full and not done:
            krylov.restart(_order(ritz.values, which)[: k + (capacity - k) // 2])
            restarts += 1
    assert quadrature is not None
    chosen = _chosen(ritz, k, which)
    relative = _relative_bounds(ritz, chosen)
    return Eigenpairs(
        values=torch.from_numpy(ritz.values[chosen]),
        vectors=krylov.basis.combine(ritz.coordinates[:, chosen]),
        residuals=torch.from_numpy(relative),
        converged=torch.from_numpy(relative <= tol),
        radius=_radius(ritz),
        products=krylov.products,
        restarts=restarts,
        nodes=quadrature[0],
        weights=quadrature[1],
    )


@final
class _StoppingRule:
    """When the asked pairs are good enough and nothing is left to discover, as ``lanczos`` states it."""

    def __init__(self, *, k: int, which: Which, tol: float, fair_steps: int, verify: bool) -> None:
        self.worst = math.inf
        self._k, self._which, self._tol = k, which, tol
        self._fair_steps, self._verify = fair_steps, verify
        self._passed_values: np.ndarray | None = None  # at the last check, if it passed
        self._values_before_block: np.ndarray | None = None

    def settles(self, krylov: Krylov, ritz: Ritz) -> bool:
        """Whether to stop; may ask the decomposition for a fresh block instead."""
        chosen = _chosen(ritz, self._k, self._which)
        if len(chosen) < self._k:
            return False
        values, tolerances = ritz.values[chosen], self._tol * _denominators(ritz, chosen)
        self.worst = float(_relative_bounds(ritz, chosen).max())
        passed = self.worst <= self._tol
        settled = passed and _agree(values, self._passed_values, tolerances)
        self._passed_values = values if passed else None
        ended = krylov.invariant or (settled and krylov.block_steps >= self._fair_steps)
        if not ended:
            return False
        first_is_enough = not krylov.invariant and not self._verify
        if krylov.blocks == 1 and first_is_enough:
            return True
        if krylov.blocks > 1 and passed and _agree(values, self._values_before_block, tolerances):
            return True
        self._values_before_block = values
        self._fair_steps = max(self._fair_steps, krylov.block_steps)
        krylov.drop_residual()
        return False


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


def _order(values: Float[np.ndarray, " j"], which: Which) -> Int[np.ndarray, " j"]:
    """Positions in ascending values, the most wanted first."""
    ascending = np.arange(len(values))
    if which == "smallest":
        return ascending
    if which == "magnitude":
        return np.argsort(-np.abs(values), kind="stable")
    descending = ascending[::-1].copy()
    if which == "largest":
        return descending
    return np.stack([descending, ascending], axis=1).ravel()[: len(values)]


def _chosen(ritz: Ritz, k: int, which: Which) -> Int[np.ndarray, " k"]:
    """Positions of the asked pairs, values descending."""
    return np.sort(_order(ritz.values, which)[:k])[::-1].copy()


def _radius(ritz: Ritz) -> float:
    return float(np.abs(ritz.values).max())


def _denominators(ritz: Ritz, chosen: Int[np.ndarray, " k"]) -> Float[np.ndarray, " k"]:
    denominators: np.ndarray = np.maximum(np.abs(ritz.values[chosen]), SMALL * _radius(ritz))
    return denominators


def _relative_bounds(ritz: Ritz, chosen: Int[np.ndarray, " k"]) -> Float[np.ndarray, " k"]:
    denominators = _denominators(ritz, chosen)
    # The zero operator has bounds and denominators 0: its pairs are exact.
    relative: np.ndarray = np.divide(
        ritz.bounds[chosen], denominators, out=np.zeros(len(chosen)), where=denominators > 0
    )
    return relative


def _agree(values: np.ndarray, before: np.ndarray | None, tolerances: np.ndarray) -> bool:
    return before is not None and bool((np.abs(values - before) <= tolerances).all())


def _quadrature(ritz: Ritz) -> tuple[Tensor, Tensor]:
    """Gauss nodes and weights for the spectral measure of the start vector."""
    return torch.from_numpy(ritz.values.copy()), torch.from_numpy(ritz.coordinates[0] ** 2)
