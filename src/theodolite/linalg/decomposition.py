"""One Krylov run, all numbers: eigenpairs, trace, traces of blocks, Frobenius norm and spectral density."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from theodolite.errors import OperatorError
from theodolite.linalg import vectors
from theodolite.linalg.basis import Basis
from theodolite.linalg.counts import refuse_fractions
from theodolite.linalg.deflation import deflated_rule
from theodolite.linalg.integrals import Integral, integrate
from theodolite.linalg.iteration import iterate
from theodolite.linalg.krylov import Krylov
from theodolite.linalg.lanczos import Eigenpairs, eigenpairs
from theodolite.linalg.operator import LinearOperator, finite_product
from theodolite.linalg.probes import Probes
from theodolite.linalg.quadrature import Quadrature
from theodolite.linalg.selection import Which
from theodolite.linalg.trace import TraceEstimate, exact_trace, trace_estimate

PROBE_STREAM = 1 << 32  # added to the seed: probes must not depend on the start vector
WORK_BLOCKS = 6


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Decomposition:
    """What one Lanczos run and a few probes of its complement say about a symmetric operator.

    Args:
        pairs: the asked eigenpairs.
        trace: with its error, and those of the asked diagonal blocks.
        square: the trace of A², which is ‖A‖_F².
        quadrature: the spectral measure: resolved eigenvalues one by one, the rest as the run's start vector samples it.
            None after a warm start, which is no random sample.
        products: operator-vector products, of the run and of the probes.
    """

    pairs: Eigenpairs
    trace: TraceEstimate
    square: TraceEstimate
    quadrature: Quadrature | None
    products: int

    def __repr__(self) -> str:
        return f"<Decomposition: {self.pairs!r}, {self.trace!r}, {self.products} products>"

    @property
    def frobenius(self) -> tuple[float, float]:
        """‖A‖_F and its standard error, to first order."""
        norm = math.sqrt(self.square.value)
        return norm, self.square.stderr / (2 * norm) if norm > 0 else self.square.stderr

    def integrate(self, f: Callable[[Tensor], Tensor]) -> Integral:
        """The trace of f(A), its standard error and the bias of the steps, as ``integrate`` gives them.

        Raises:
            OperatorError: the run had a warm start, or f is not elementwise.
        """
        if self.quadrature is None:
            raise OperatorError(
                "The trace of a function needs a random start vector, this run was given start=. "
                "Decompose without start, or use slq(A, deflate=decomposition.pairs)."
            )
        return integrate(self.quadrature, f)

    def log_det(self, damping: float) -> Integral:
        """log det(A₊ + δI), with A₊ the positive part of A: Σ log(max(λ, 0) + δ).

        Where δ lies far below the bulk of the spectrum the bias is large; more steps reduce it.

        Args:
            damping: δ > 0.

        Raises:
            OperatorError: damping is not positive, or the run had a warm start.
        """
        if not damping > 0:
            raise OperatorError(f"log det(A₊ + δI) needs a damping δ > 0, found {damping}.")
        return self.integrate(lambda values: (values.clamp(min=0) + damping).log())


def decompose(
    A: LinearOperator,
    *,
    k: int,
    which: Which = "largest",
    tol: float = 1e-3,
    steps: int = 100,
    probes: int = 12,
    parts: Sequence[slice] = (),
    seed: int = 0,
    start: Float[Tensor, "*j n"] | None = None,
    max_products: int | None = None,
    memory: int = 4 * 2**30,
    verify: bool = False,
    on_step: Callable[[int, float], None] | None = None,
) -> Decomposition:
    """Eigenpairs, trace, traces of blocks, Frobenius norm and spectral measure from one Lanczos run.

    The run gives A on its basis Q exactly. Random signs projected off Q give what is left: with B = (I − QᵀQ)A(I − QᵀQ), a
    probe y has E yᵀAy = tr B, and with QᵀQ A y at hand the same product gives unbiased samples of every diagonal block's
    trace and of ‖A‖_F². All are exact where the basis spans the space or the range.

    Cost: ``steps`` products, more if the pairs take more, and one for each probe; O(n·j²) for j steps of
    reorthogonalisation.

    Args:
        A: symmetric.
        k: number of pairs.
        which: as for ``lanczos``.
        tol: as for ``lanczos``.
        steps: least number of Lanczos steps, fewer if the space closes or the memory does not hold as many vectors.
        probes: random vectors for the complement of the basis.
        parts: slices of 0..n; for each, the trace of that diagonal block.
        seed: of the start vector and the probes.
        start: as for ``lanczos``; the spectral measure needs a random start and is left out with it.
        max_products: stop the Lanczos run after so many, converged or not.
        memory: bytes for the basis, beyond which it is restarted. What is left then is still a basis with A known on it.
            Probes run in blocks that fit beside it.
        verify: as for ``lanczos``; the spectral measure is that of the steps before the first fresh vector.
        on_step: as for ``lanczos``, called for the products of the run.

    Raises:
        OperatorError: A is not symmetric, there are no probes, or an argument makes no sense.
        NonFiniteError: a product or the start vector is not finite.

    Example:
        >>> import torch
        >>> from theodolite.linalg import Diagonal, decompose
        >>> A = Diagonal(torch.arange(500.0, dtype=torch.float64))
        >>> found = decompose(A, k=3, steps=60, parts=[slice(0, 250)])
        >>> abs(found.trace.value - 124_750) < 3 * found.trace.stderr, found.products >= 72
        (True, True)

    References:
        Chen, Hallman (2023), Krylov-aware stochastic trace estimation.
        Chen, Trogdon, Ubaru (2021), Analysis of stochastic Lanczos quadrature for spectrum approximation.
    """
    refuse_fractions(probes=probes)
    if probes < 1:
        raise OperatorError(f"The complement of the basis needs at least one probe, found probes={probes}.")
    run = iterate(
        A,
        k=k,
        which=which,
        tol=tol,
        steps=steps,
        seed=seed,
        start=start,
        max_products=max_products,
        memory=memory,
        verify=verify,
        on_step=on_step,
    )
    pairs = eigenpairs(run, k=k, which=which, tol=tol)
    stream = Probes(run.krylov.operator, seed=seed + PROBE_STREAM, distribution="rademacher")
    trace, square = _traces(run.krylov, stream, probes=probes, parts=parts, memory=memory)
    return Decomposition(
        pairs=pairs,
        trace=trace,
        square=square,
        quadrature=deflated_rule(run, trace=trace, square=square) if start is None else None,
        products=trace.products,
    )


def _traces(
    krylov: Krylov, stream: Probes, *, probes: int, parts: Sequence[slice], memory: int
) -> tuple[TraceEstimate, TraceEstimate]:
    """Traces of A, of its diagonal blocks, and of A²: exact on the basis, sampled on its complement."""
    A, T, basis = krylov.operator, krylov.T, krylov.basis
    exact = torch.cat(
        [torch.tensor([float(T.trace()), float((T**2).sum())], dtype=torch.float64), basis.block_traces(T, parts)]
    )
    if krylov.exhausted:
        trace, square = exact[:2].tolist()
        return (
            exact_trace(trace, parts=exact[2:], products=krylov.products),
            exact_trace(square, products=krylov.products),
        )
    row = A.vector_bytes
    size = max(1, (memory - len(basis) * row) // (WORK_BLOCKS * row))
    samples: list[Tensor] = []
    done = krylov.products
    for Z in stream.blocks(probes, size=size):
        samples.append(_complement_samples(A, basis, Z, parts=parts, before=done))
        done += Z.shape[1]
    estimates = exact[:, None] + torch.cat(samples, dim=1)
    return (
        trace_estimate(estimates[0], parts=estimates[2:], products=done),
        trace_estimate(estimates[1], products=done),
    )


def _complement_samples(
    A: LinearOperator, basis: Basis, Z: Float[Tensor, "n b"], *, parts: Sequence[slice], before: int
) -> Float[Tensor, "p b"]:
    """What each probe adds to the traces of A, of A² and of the blocks.

    With y = (I − P)z and P = QᵀQ, the trace of A outside the basis is E yᵀAy; that of A² is E 2‖PAy‖² + ‖(I − P)Ay‖², as the
    off-diagonal blocks count twice; that of a diagonal block l is E y_l·(Ay + PAy)_l for the same reason.
    """
    Y, _ = basis.orthogonalise(Z)
    AY = finite_product(A, Y, before=before)
    outside, coefficients = basis.orthogonalise(AY)
    square = 2 * vectors.norm(coefficients) ** 2 + A.dots.norm(outside) ** 2
    twice = 2 * AY - outside
    here = [A.dots.within(part) for part in parts]
    rows = A.dots.sum(torch.stack([vectors.dot(Y, AY), *(vectors.dot(Y[part], twice[part]) for part in here)]).double())
    return torch.cat([rows[:1], square[None], rows[1:]]).cpu()
