"""The image of random vectors, the part of an operator that exchangeable estimators know exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from theodolite.errors import OperatorError
from theodolite.linalg.counts import refuse_fractions
from theodolite.linalg.operator import LinearOperator, bytes_in_words, finite_product, refuse_sharded
from theodolite.linalg.probes import Probes

LEAST_PROBES = 2  # of what a dependent sketch leaves; a single one has no standard error
DEPENDENT = 1e2  # in units of rounding: directions of a sketch below this share of the largest are none


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Sketch:
    """Random vectors, an orthonormal basis of their image, and the image of that.

    Args:
        Omega: the vectors, one a column.
        Q: the basis of AΩ.
        R: AΩ = QR, unless the columns of AΩ depend on each other.
        Z: AQ.
        dependent: whether they do, to rounding.
        products: operator-vector products.
    """

    Omega: Float[Tensor, "n s"]
    Q: Float[Tensor, "n r"]
    R: Float[np.ndarray, "r s"]
    Z: Float[Tensor, "n r"]
    dependent: bool
    products: int


def sketched(A: LinearOperator, *, products: int, signs: bool = False, seed: int, memory: int) -> Sketch:
    """The sketch that half of the products make and the others multiply.

    Args:
        A: square.
        products: to spend, an even number; an odd one is left over.
        signs: whether to take the signs of the random vectors alone.
        seed: of the vectors.
        memory: bytes that must hold it.

    Raises:
        OperatorError: A is not square, or products or memory make no sense.
        NonFiniteError: a product is not finite.
    """
    Omega = sketch_vectors(A, products // 2, products=products, seed=seed, memory=memory)
    if signs:
        Omega = signs_of(Omega)
    Q, R, dependent = _orthogonal(finite_product(A, Omega, before=0))
    Z = finite_product(A, Q, before=Omega.shape[1])
    return Sketch(Omega=Omega, Q=Q, R=R, Z=Z, dependent=dependent, products=Omega.shape[1] + Q.shape[1])


def sketch_vectors(
    A: LinearOperator, count: int, *, products: int, least: int = 4, seed: int, memory: int
) -> Float[Tensor, "n s"]:
    """Gaussian vectors for a sketch, one a column, if the question can be answered."""
    if A.shape[0] != A.shape[1]:
        raise OperatorError(f"Only a square operator has a trace and a diagonal, found {A!r}.")
    refuse_sharded(A, what="a sketch", way_out="take hutchinson, hutchpp or diagonal, which need inner products alone")
    refuse_fractions(products=products)
    n = A.shape[0]
    if products < least or count > n:
        raise OperatorError(
            f"A sketch of {A!r} takes {least} products or more and no more vectors than {n}, found {products=}, which is "
            f"{count} vectors. " + ("A.dense() is exact for as many products." if count > n else "Raise products.")
        )
    needed = 4 * count * n * A.dtype.itemsize
    if needed > memory:
        raise OperatorError(
            f"A sketch of {count} vectors of {A!r} takes {bytes_in_words(needed)}, found memory={bytes_in_words(memory)}. "
            "Take fewer products or raise memory; hutchinson needs only a few vectors at once."
        )
    return Probes(A, seed=seed).draw(count).T


def _orthogonal(Y: Float[Tensor, "n s"]) -> tuple[Float[Tensor, "n r"], Float[np.ndarray, "r s"], bool]:
    """An orthonormal basis Q of the columns of Y with Y = Q R, and whether they depend on each other to rounding.

    If so Q holds their largest directions alone, few enough to leave two of the products meant for them: n small
    eigenvalues below rounding of the largest may sum to several per cent of the trace, and only probes see them.
    """
    Q, R = torch.linalg.qr(Y)
    U, sizes, _ = torch.linalg.svd(R.double())
    tiny = sizes <= DEPENDENT * torch.finfo(Y.dtype).eps * sizes[0]
    if not bool(tiny.any()):
        return Q, small(R), False
    U = U[:, ~tiny][:, : Y.shape[1] - LEAST_PROBES]
    return Q @ U.to(Q), small(U.T @ R.double()), True


def fresh_probes(A: LinearOperator, *, after: int, count: int, seed: int) -> Float[Tensor, "n m"]:
    """The Gaussian vectors that follow those of a sketch of the same seed, one a column."""
    stream = Probes(A, seed=seed)
    for _ in range(after):
        stream.draw(1)
    return stream.draw(count).T


def exchange_directions(R: Float[np.ndarray, "s s"]) -> Float[np.ndarray, "s s"]:
    """Unit columns sᵢ, each orthogonal to all columns of R but the i-th: Q(I − sᵢsᵢᵀ)Qᵀ is the sketch without vector i."""
    S = np.linalg.inv(R).T
    directions: np.ndarray = S / np.linalg.norm(S, axis=0)
    return directions


def signs_of(vectors: Float[Tensor, "n s"]) -> Float[Tensor, "n s"]:
    """±1 for every entry."""
    return torch.where(vectors >= 0, 1.0, -1.0).to(vectors)


def small(matrix: Tensor) -> Float[np.ndarray, "..."]:
    """A small matrix on the host in double precision."""
    return matrix.double().cpu().numpy()
