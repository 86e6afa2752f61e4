"""The thick-restart Lanczos iteration: a Krylov space that grows until the asked pairs are good."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from theodolite.errors import NonFiniteError, OperatorError
from theodolite.linalg.counts import refuse_fractions
from theodolite.linalg.krylov import Krylov, Ritz
from theodolite.linalg.operator import LinearOperator, bytes_in_words
from theodolite.linalg.precision import widened
from theodolite.linalg.probes import Probes
from theodolite.linalg.selection import StoppingRule, Which, order

EXTRA_STEPS = 6
EXTRA_ROWS = 3
NOVELTY = 0.1  # weight of the random part of a warm start


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Iteration:
    """What the iteration left.

    Args:
        krylov: the decomposition at its end.
        ritz: its Ritz pairs.
        first: Ritz pairs of the first Krylov space, before any restart or fresh vector: the quadrature of the start.
        coarse: those of its first half.
        settled: whether it ended by its stopping rule.
        restarts: thick restarts.
    """

    krylov: Krylov
    ritz: Ritz
    first: Ritz
    coarse: Ritz
    settled: bool
    restarts: int


def iterate(
    A: LinearOperator,
    *,
    k: int,
    which: Which,
    tol: float,
    steps: int = 0,
    seed: int = 0,
    start: Float[Tensor, "*j n"] | None = None,
    max_products: int | None = None,
    memory: int,
    verify: bool = False,
    on_step: Callable[[int, float], None] | None = None,
) -> Iteration:
    """Run Lanczos as ``lanczos`` states it, and for at least ``steps`` steps unless the space closes or memory ends."""
    A = widened(A)
    n = size_of_sensible(A, k=k, which=which, tol=tol)
    refuse_fractions(steps=steps, max_products=max_products)
    limit = max(10 * k + 200, steps) if max_products is None else max_products
    if limit < k:
        raise OperatorError(f"{k} eigenpairs take at least {k} products, found max_products={max_products}.")
    capacity = rows_in_memory(A, k + EXTRA_ROWS, memory)
    # More steps than memory holds refine no quadrature: that of the first space is final at its restart.
    least = min(steps, capacity, limit)
    spans = least == n  # then copies of repeated eigenvalues are all found within the steps
    probes = Probes(A, seed=seed)
    krylov = Krylov(A, start=_start_vector(A, start, probes), draw=lambda: probes.draw(1)[0], capacity=capacity)
    rule = StoppingRule(k=k, which=which, tol=tol, fair_steps=min(n, k + EXTRA_STEPS), verify=verify)
    first: tuple[Ritz, Ritz] | None = None
    restarts, settled, done = 0, False, False
    while not done:
        krylov.advance()
        done = krylov.exhausted or krylov.products >= limit
        full = len(krylov) == capacity
        enough = krylov.products >= least
        due = krylov.products == least or len(krylov) % _check_interval(len(krylov)) == 0
        if done or full or krylov.invariant or due:
            ritz = krylov.ritz()
            settled = rule.settles(krylov, ritz) or krylov.exhausted
            done = done or (settled and (enough or (krylov.invariant and not spans)))
            if first is None and (done or full or krylov.invariant):
                first = ritz, krylov.leading_ritz(max(1, len(krylov) // 2))
        if on_step is not None:
            on_step(krylov.products, rule.worst)
        if full and not done:
            krylov.restart(order(ritz.values, which)[: k + (capacity - k) // 2])
            restarts += 1
    assert first is not None
    return Iteration(krylov=krylov, ritz=ritz, first=first[0], coarse=first[1], settled=settled, restarts=restarts)


def size_of_sensible(A: LinearOperator, *, k: int, which: str, tol: float) -> int:
    """The size of A, if the question can be answered."""
    if not A.symmetric:
        raise OperatorError(
            f"Lanczos needs a symmetric operator, {A!r} does not claim to be. Pass symmetric=True where it was made."
        )
    n = A.size
    refuse_fractions(k=k)
    if not 1 <= k <= n:
        raise OperatorError(f"{A!r} has {n} eigenpairs, found k={k}; ask for 1 to {n}.")
    if which not in get_args(Which):
        raise OperatorError(f"which is one of {', '.join(map(repr, get_args(Which)))}, found {which!r}.")
    if not tol > 0:
        raise OperatorError(f"tol is a positive relative residual, found {tol}.")
    return n


def rows_in_memory(A: LinearOperator, least: int, memory: int) -> int:
    """Rows of a basis that fit, and are no fewer than ``least`` or all."""
    n, row = A.size, A.vector_bytes
    needed = min(n, least)
    if memory < needed * row:
        raise OperatorError(
            f"The eigenpairs asked of {A!r} need a basis of at least {needed} vectors of {bytes_in_words(row)} each, "
            f"{bytes_in_words(needed * row)} in all, found memory={bytes_in_words(memory)}. Raise memory or lower k."
        )
    return min(n, memory // row)


def _start_vector(A: LinearOperator, start: Tensor | None, probes: Probes) -> Float[Tensor, " n"]:
    random = probes.draw(1)[0]
    if start is None:
        return random
    # Relative to one unit row: the sum of opposite rows may vanish, the random part then starts alone.
    return checked_start(A, start).to(random).sum(dim=0) + NOVELTY * random / float(A.dots.norm(random))


def checked_start(A: LinearOperator, start: Float[Tensor, "*j n"]) -> Float[Tensor, "j n"]:
    """The rows of a warm start with unit length, refused if they make no sense."""
    n = A.shape[0]
    if start.ndim not in (1, 2) or start.shape[-1] != n or start.numel() == 0:
        raise OperatorError(f"start has the shape ({n},) or (j, {n}) for {A!r}, found {tuple(start.shape)}.")
    rows = start.reshape(-1, n)
    norms = A.dots.norm(rows.T)
    if not bool(torch.isfinite(norms).all()):
        raise NonFiniteError(f"start has NaN or infinite entries; its rows have norms {norms.tolist()}.")
    if float(norms.min()) == 0:
        raise OperatorError(f"start has a row of zeros; its rows have norms {norms.tolist()}.")
    return rows / norms.to(rows)[:, None]


def _check_interval(j: int) -> int:
    """Every step at first; later a check costs O(j³) on the host, and one in 32 steps of delay is cheap."""
    return max(1, j // 32)
