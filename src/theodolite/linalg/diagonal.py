"""Stochastic estimates of the diagonal, with standard errors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from theodolite.errors import OperatorError
from theodolite.linalg.counts import refuse_fractions
from theodolite.linalg.lanczos import Eigenpairs
from theodolite.linalg.operator import LinearOperator, finite_product
from theodolite.linalg.precision import widened
from theodolite.linalg.probes import Probes
from theodolite.linalg.sketch import exchange_directions, fresh_probes, signs_of, sketched
from theodolite.linalg.trace import block_size, projected_out

STRIP = 1 << 14  # rows whose double precision copies are held at once


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class DiagonalEstimate:
    """The diagonal of an operator with the standard error of each entry.

    Args:
        value: the estimate.
        stderr: its standard errors, NaN with a single probe; errors of different entries are correlated.
        degrees: their degrees of freedom, None where they are exact.
        products: operator-vector products.
    """

    value: Float[Tensor, " n"]
    stderr: Float[Tensor, " n"]
    degrees: int | None
    products: int

    def __repr__(self) -> str:
        errors = f"standard errors ≤ {float(self.stderr.max()):.2g}"
        return f"<DiagonalEstimate: {len(self.value)} entries, {errors}, {self.products} products>"


def diagonal(
    A: LinearOperator, *, probes: int, seed: int = 0, deflate: Eigenpairs | None = None, memory: int = 2**30
) -> DiagonalEstimate:
    """The diagonal as the mean of z ⊙ Az over random signs z, less what known eigenpairs explain exactly.

    The variance of entry i is Σ_{j≠i} a_ij² of what is not explained: a diagonal operator takes one probe.

    Cost: one product a probe.

    Args:
        A: symmetric.
        probes: number of random vectors.
        seed: of the probes.
        deflate: eigenpairs of A as ``lanczos`` found them, converged or not: on their span A is known.
        memory: bytes for a block of probes and its products.

    Raises:
        OperatorError: A is not symmetric, there are no probes, or the pairs are of another size.
        NonFiniteError: a product is not finite.

    Example:
        >>> import torch
        >>> from theodolite.linalg import Diagonal, diagonal
        >>> diagonal(Diagonal(torch.arange(4.0)), probes=1).value.tolist()
        [0.0, 1.0, 2.0, 3.0]

    References:
        Bekas, Kokiopoulou, Saad (2007), An estimator for the diagonal of a matrix.
    """
    if not A.symmetric:
        raise OperatorError(f"The diagonal by probes is that of a symmetric operator, {A!r} does not claim to be.")
    refuse_fractions(probes=probes)
    if probes < 1:
        raise OperatorError(f"The diagonal takes at least one probe, found probes={probes}.")
    A = widened(A)
    values, V = projected_out(A, deflate)
    exact = ((V**2).T @ values.to(V)).double()
    spread = _Spread(exact)
    for Z in Probes(A, seed=seed, distribution="rademacher").blocks(probes, size=block_size(A, memory)):
        Y = Z - V.T @ A.dots.project(V, Z)
        AY = finite_product(A, Y, before=spread.count)
        # E z yᵀ = I − P, and off the span both PA(I − P) and its transpose have the same diagonal: hence AY + PAY.
        spread.add((Z * (AY + V.T @ A.dots.project(V, AY))).double())
    return DiagonalEstimate(
        value=exact + spread.mean,
        stderr=spread.stderr(),
        degrees=probes - 1 if probes > 1 else None,
        products=spread.count,
    )


def xdiag(A: LinearOperator, *, products: int, seed: int = 0, memory: int = 4 * 2**30) -> DiagonalEstimate:
    """The diagonal by XDiag: exact on the sketch of all vectors but one, tested by that one; the mean over which one.

    As in ``xtrace`` the standard error is the geometric mean of the samples' spread, which understates it as they share
    their sketches, and of the delete-one jackknife.

    Cost: ``products`` products, an even number; 2n·products numbers of memory.

    Args:
        A: symmetric.
        products: how many to spend, at least 4; an odd one is left over.
        seed: of the vectors.
        memory: bytes for the sketch and its products, which must fit.

    Raises:
        OperatorError: A is not symmetric, products < 4, more than n vectors are asked for, or memory is too small.
        NonFiniteError: a product is not finite.

    Example:
        >>> import torch
        >>> from theodolite.linalg import Diagonal, xdiag
        >>> A = Diagonal(1 / torch.arange(1.0, 201, dtype=torch.float64) ** 2)
        >>> found = xdiag(A, products=40)
        >>> float((found.value - A.entries).norm() / A.entries.norm()) < 0.05
        True

    References:
        Epperly, Tropp, Webber (2024), XTrace: making the most of every sample in stochastic trace estimation.
    """
    if not A.symmetric:
        raise OperatorError(f"XDiag is written for symmetric operators, {A!r} does not claim to be.")
    A = widened(A)
    # Signs: the square of no entry is left to chance.
    sketch = sketched(A, products=products, signs=True, seed=seed, memory=memory)
    Omega, Q, R, Z = sketch.Omega, sketch.Q, sketch.R, sketch.Z
    whole = (Q * Z).sum(dim=1).double()
    if sketch.dependent:
        return _sketch_and_rest(A, Q, whole, vectors=Omega.shape[1], seed=seed)
    blocks = zip(Q.split(STRIP), Z.split(STRIP), Omega.split(STRIP), strict=True)
    strips = [_exchangeable(rows.double(), images.double(), signs.double(), R) for rows, images, signs in blocks]
    mean, stderr = (torch.cat(parts) for parts in zip(*strips, strict=True))
    return DiagonalEstimate(value=whole + mean, stderr=stderr, degrees=Omega.shape[1] - 1, products=sketch.products)


def _exchangeable(
    Q: Float[Tensor, "m s"], Z: Float[Tensor, "m s"], Omega: Float[Tensor, "m s"], R: Float[np.ndarray, "s s"]
) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
    """What the vectors add to diag(QQᵀA) on some rows, in the mean, and the standard error of that.

    Sample i is ℓᵢ ⊙ (σᵢωᵢ − fᵢ): of Aωᵢ only the direction ℓᵢ = Qsᵢ that ωᵢ alone brought is unknown to the others, with
    fᵢ = Aℓᵢ and σᵢ = ℓᵢᵀAωᵢ. Without vector j that direction is (sᵢ − g sⱼ)/√(1 − g²), g = sᵢᵀsⱼ, so that the jackknife
    takes a few products of small matrices instead of s sketches.
    """
    s, S = len(R), exchange_directions(R)
    directions, seen = torch.from_numpy(S).to(Q), torch.from_numpy((S * R).sum(axis=0)).to(Q)
    L, F = Q @ directions, Z @ directions
    parts = seen * Omega - F
    samples = L * parts
    cosines = S.T @ S
    np.fill_diagonal(cosines, 0.0)
    square = torch.from_numpy((1 - np.eye(s)) / (1 - cosines**2)).to(Q)
    g = torch.from_numpy(cosines).to(Q)
    deleted = (
        samples @ square + (L @ (g * square)) * F - L * (parts @ (g * square)) - L * F * (g**2 * square).sum(dim=0)
    )
    deleted = deleted / (s - 1) - L * F
    jackknife = ((s - 1) * deleted.var(dim=1, correction=0)).sqrt()
    spread = samples.std(dim=1) / math.sqrt(s)
    return samples.mean(dim=1), (spread * jackknife).sqrt()


def _sketch_and_rest(
    A: LinearOperator, Q: Float[Tensor, "n r"], known: Float[Tensor, " n"], *, vectors: int, seed: int
) -> DiagonalEstimate:
    """diag(QQᵀA) and, by the products that are left, the mean of w ⊙ (I − QQᵀ)Aw over random signs w."""
    probes = fresh_probes(A, after=vectors, count=vectors - Q.shape[1], seed=seed)
    signs = signs_of(probes)
    image = finite_product(A, signs, before=vectors + Q.shape[1])
    for _ in range(2):  # one projection leaves rounding of what it removed
        image = image - Q @ (Q.T @ image)
    rest = _Spread(known)
    rest.add((signs * image).double())
    return DiagonalEstimate(value=known + rest.mean, stderr=rest.stderr(), degrees=rest.count - 1, products=2 * vectors)


@final
class _Spread:
    """Mean and standard error of columns that come in blocks, without the cancellation of a sum of squares."""

    def __init__(self, like: Float[Tensor, " n"]) -> None:
        self.count, self.mean, self._squares = 0, torch.zeros_like(like), torch.zeros_like(like)

    def add(self, samples: Float[Tensor, "n b"]) -> None:
        b, of_block = samples.shape[1], samples.mean(dim=1)
        gap, count = of_block - self.mean, self.count + b
        self._squares += ((samples - of_block[:, None]) ** 2).sum(dim=1) + gap**2 * (self.count * b / count)
        self.mean, self.count = self.mean + gap * (b / count), count

    def stderr(self) -> Float[Tensor, " n"]:
        if self.count < 2:
            return torch.full_like(self.mean, torch.nan)
        return (self._squares / (self.count - 1) / self.count).sqrt()
