"""Block Lanczos: several vectors share each pass over the data."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from theodolite.errors import OperatorError
from theodolite.linalg import vectors
from theodolite.linalg.basis import NOISE, Basis, orthonormal_rows
from theodolite.linalg.counts import refuse_fractions
from theodolite.linalg.iteration import EXTRA_STEPS, NOVELTY, checked_start, rows_in_memory, size_of_sensible
from theodolite.linalg.krylov import Ritz
from theodolite.linalg.lanczos import Eigenpairs
from theodolite.linalg.operator import LinearOperator, finite_product, refuse_sharded
from theodolite.linalg.precision import given_dtype, product_rounding, widened
from theodolite.linalg.probes import Probes
from theodolite.linalg.selection import PATIENCE, Which, chosen_pairs, order, radius, relative_bounds


def block_lanczos(
    A: LinearOperator,
    *,
    k: int,
    block: int,
    which: Which = "largest",
    tol: float = 1e-3,
    seed: int = 0,
    start: Float[Tensor, "*j n"] | None = None,
    max_products: int | None = None,
    memory: int = 4 * 2**30,
    on_step: Callable[[int, float], None] | None = None,
) -> Eigenpairs:
    """Extreme eigenpairs of a symmetric operator with b vectors in each product, for data that is expensive to read.

    A block of 4 takes about twice the products of ``lanczos`` in half to a third of the passes, and finds every eigenvalue
    that is repeated up to b times. Directions in which the space closes are replaced by random ones.

    Cost: b products a pass.

    Args:
        A: symmetric.
        k: number of pairs.
        block: b, vectors in each product.
        which: as for ``lanczos``.
        tol: as for ``lanczos``.
        seed: of the random vectors.
        start: a vector (n,) or block (j, n), as for ``lanczos``: its rows are summed in b groups.
        max_products: stop before more, converged or not; None allows (10·k + 200)·b.
        memory: bytes for the basis, beyond which it is restarted with the best Ritz vectors.
        on_step: called after each pass with the products so far and the worst relative residual.

    Returns:
        The pairs, as ``lanczos`` gives them; nodes and weights are the mean over the vectors of the first block.

    Raises:
        OperatorError: A is not symmetric, or k, block, max_products, memory or start make no sense.
        NonFiniteError: a product or the start is not finite.

    Example:
        >>> import torch
        >>> from theodolite.linalg import Diagonal, block_lanczos
        >>> A = Diagonal(torch.tensor([3.0, 3.0, 2.0] + [1.0] * 50, dtype=torch.float64))
        >>> found = block_lanczos(A, k=3, block=4)
        >>> [round(value, 6) for value in found.values.tolist()], found.products // 4
        ([3.0, 3.0, 2.0], 3)

    References:
        Golub, Underwood (1977), The block Lanczos method for computing eigenvalues.
    """
    refuse_sharded(A, what="blocks", way_out="take lanczos")
    A = widened(A)
    n = size_of_sensible(A, k=k, which=which, tol=tol)
    refuse_fractions(block=block, max_products=max_products)
    limit = (10 * k + 200) * block if max_products is None else max_products
    if not 1 <= block <= n or limit < max(k, block):
        raise OperatorError(
            f"{k} eigenpairs of {A!r} in blocks take a width from 1 to {n} and at least {max(k, block)} products, found "
            f"{block=} and {max_products=}."
        )
    capacity = rows_in_memory(A, k + 2 * block, memory)
    run = _BlockKrylov(A, width=block, capacity=capacity, probes=Probes(A, seed=seed), start=start)
    quadrature: tuple[Tensor, Tensor] | None = None
    passed_since: int | None = None
    restarts, worst, settled, done = 0, math.inf, False, False
    while not done:
        run.advance()
        ritz, chosen = run.ritz(), None
        if len(run) >= k:
            chosen = chosen_pairs(ritz, k, which)
            worst = float(relative_bounds(ritz, chosen).max())
        passed_since = (run.products if passed_since is None else passed_since) if worst <= tol else None
        fair = run.products >= min(n, k + EXTRA_STEPS)
        patient = passed_since is not None and run.products - passed_since >= math.floor(PATIENCE * len(run))
        settled = run.exhausted or (fair and patient)
        done = settled or run.products + block > limit
        if on_step is not None:
            on_step(run.products, worst)
        full = not done and not run.has_room
        if quadrature is None and (done or full):
            weights = (ritz.coordinates[: run.first_width] ** 2).mean(axis=0)
            quadrature = torch.from_numpy(ritz.values.copy()), torch.from_numpy(weights)
        if full:
            run.restart(order(ritz.values, which)[: k + (capacity - k - block) // 2])
            restarts += 1
    assert quadrature is not None
    chosen = chosen_pairs(ritz, k, which)
    relative = relative_bounds(ritz, chosen, rounding=product_rounding(A))
    return Eigenpairs(
        values=torch.from_numpy(ritz.values[chosen]),
        vectors=run.basis.combine(ritz.coordinates[:, chosen]).to(given_dtype(A)),
        residuals=torch.from_numpy(relative),
        converged=torch.from_numpy(relative <= tol),
        settled=settled,
        radius=radius(ritz),
        products=run.products,
        restarts=restarts,
        nodes=quadrature[0],
        weights=quadrature[1],
    )


@final
class _BlockKrylov:
    """A Krylov space that grows by a block of vectors at a time, with full reorthogonalisation.

    T = Q A Qᵀ is filled from the coefficients of that, so that restarts and random vectors need no case of their own.
    """

    def __init__(
        self, operator: LinearOperator, *, width: int, capacity: int, probes: Probes, start: Tensor | None
    ) -> None:
        self.operator, self._width, self._capacity, self._probes = operator, width, capacity, probes
        self.basis = Basis(operator.shape[0], capacity=capacity, dtype=operator.dtype, device=operator.device)
        self.T, self.products, self._rounding = np.zeros((0, 0)), 0, 0.0
        self._next = orthonormal_rows(_first_block(operator, width, probes, start))
        self._outside = np.zeros((0, 0))  # Rᵀ of the last block, whose residual is Q_next R
        self.first_width = len(self._next)

    def __len__(self) -> int:
        return len(self.basis)

    @property
    def exhausted(self) -> bool:
        """Whether the basis spans the whole space."""
        return len(self) == self.operator.shape[0]

    @property
    def has_room(self) -> bool:
        """Whether the next block fits the memory."""
        return len(self) + len(self._next) <= self._capacity

    def advance(self) -> None:
        """Multiply and add the next block."""
        for row in self._next:
            self.basis.append(row)
        W = finite_product(self.operator, self._next.T.contiguous(), before=self.products)
        self.products += W.shape[1]
        outside, coefficients = self.basis.orthogonalise(W)
        columns = coefficients.double().cpu().numpy()
        self._rounding = max(self._rounding, torch.finfo(W.dtype).eps * float(vectors.norm(W).max()))
        j, b = columns.shape
        T = np.zeros((j, j))
        T[: j - b, : j - b] = self.T
        T[:, j - b :] = columns
        T[j - b :, : j - b] = columns[: j - b].T
        T[j - b :, j - b :] = (columns[j - b :] + columns[j - b :].T) / 2
        self.T = T
        self._continue(outside)

    def restart(self, keep: Int[np.ndarray, " p"]) -> None:
        """Shrink the basis to chosen Ritz vectors; the next block still holds all their residuals."""
        values, S = np.linalg.eigh(self.T)
        self.basis.compress(S[:, keep])
        self.T = np.diag(values[keep])

    def ritz(self) -> Ritz:
        """Eigenpairs of the projected matrix with the norms of their residuals."""
        values, S = np.linalg.eigh(self.T)
        last = S[len(self) - self._outside.shape[1] :]
        bounds = np.linalg.norm(self._outside @ last, axis=0) + self._rounding
        return Ritz(values=values, coordinates=S, bounds=bounds)

    def _continue(self, outside: Float[Tensor, "n b"]) -> None:
        """The next block: an orthonormal basis of what lies outside, filled up with random vectors where that is less."""
        n, b = outside.shape
        if self.exhausted:
            self._outside, self._next = np.zeros((0, b)), outside.T[:0]
            return
        Q, R = torch.linalg.qr(outside)
        U, sizes, V = torch.linalg.svd(R.double())
        self._outside = (sizes[:, None] * V).cpu().numpy()
        kept = sizes > NOISE * self._rounding
        rows = (Q @ U[:, kept].to(Q)).T
        room = min(self._width, n - len(self))
        if len(rows) < room:
            fresh, _ = self.basis.orthogonalise(self._probes.draw(room - len(rows)).T)
            rows = torch.cat([rows, fresh.T])
        # Small residuals have lost their orthogonality to the basis to rounding.
        again, _ = self.basis.orthogonalise(rows.T)
        self._next = orthonormal_rows(again.T)[:room]


def _first_block(A: LinearOperator, width: int, probes: Probes, start: Tensor | None) -> Float[Tensor, "b n"]:
    """Random vectors, or the rows of a start in as many groups, each with a random part."""
    random = probes.draw(width)
    if start is None:
        return random
    rows = checked_start(A, start).to(random)
    sums = torch.zeros_like(random)
    sums.index_add_(0, torch.arange(len(rows), device=rows.device) % width, rows)
    # As in lanczos, relative to one unit row: opposite rows may cancel.
    return sums + NOVELTY * random / vectors.norm(random.T).to(random)[:, None]
