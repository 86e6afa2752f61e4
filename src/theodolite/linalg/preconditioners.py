"""Preconditioners from known or sketched eigenpairs."""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from theodolite.errors import OperatorError
from theodolite.linalg.lanczos import Eigenpairs
from theodolite.linalg.operator import LinearOperator, finite_product
from theodolite.linalg.precision import given_dtype, product_rounding, widened
from theodolite.linalg.sketch import DEPENDENT, sketch_vectors
from theodolite.linalg.vectors import project


@final
class SpectralPreconditioner(LinearOperator):
    """c·Uᵀ Λ⁻¹ U + (I − UᵀU) M (I − UᵀU): the inverse where eigenpairs are known, M where they are not.

    Symmetric and positive definite for any orthonormal U; with eigenvectors of A it makes all their eigenvalues c.

    Args:
        values: positive eigenvalues Λ of the matrix that is to be solved with.
        vectors: orthonormal U, one a row.
        to: c > 0; inside the spectrum that M leaves to the rest is best.
        rest: M, symmetric positive definite; the identity by default.
    """

    def __init__(
        self,
        values: Float[Tensor, " k"],
        vectors: Float[Tensor, "k n"],
        *,
        to: float,
        rest: LinearOperator | None = None,
    ) -> None:
        n = vectors.shape[1]
        if len(values) != len(vectors) or not bool((values > 0).all()) or not to > 0:
            raise OperatorError(
                f"A preconditioner takes a positive eigenvalue for each vector and a positive target, found "
                f"{len(vectors)} vectors, values {values.tolist()[:4]} and to={to}. Damp the operator."
            )
        if rest is not None and (rest.shape != (n, n) or not rest.symmetric):
            raise OperatorError(f"The rest is preconditioned by a symmetric operator of size {n}, found {rest!r}.")
        super().__init__(shape=(n, n), dtype=vectors.dtype, device=vectors.device, symmetric=True)
        self.values, self.vectors, self.rest = values, vectors, rest
        self._factors = (to / values).to(vectors)[:, None]

    def _matmat(self, V: Float[Tensor, "n k"]) -> Float[Tensor, "m k"]:
        inside = project(self.vectors, V)
        outside = V - self.vectors.T @ inside
        if self.rest is not None:
            outside = self.rest @ outside
            outside = outside - self.vectors.T @ project(self.vectors, outside)
        return outside + self.vectors.T @ (self._factors * inside)


def deflating(pairs: Eigenpairs, *, damping: float = 0.0, rest: LinearOperator | None = None) -> SpectralPreconditioner:
    """A preconditioner for A + δI that spares the solver the known eigenpairs of A.

    Cost: no products; 4k·n operations each time it is applied.

    Args:
        pairs: eigenpairs of A; those that have converged and have λ + δ > 0 are used.
        damping: δ.
        rest: a preconditioner for what is left, for instance a Kronecker-factored one; the identity by default.

    Raises:
        OperatorError: no pair can be used.

    Example:
        >>> import torch
        >>> from theodolite.linalg import Diagonal, cg, deflating, lanczos
        >>> A = Diagonal(torch.cat([torch.tensor([900.0, 400.0, 100.0]), torch.linspace(1, 2, 97)]).double())
        >>> b = torch.ones(100, dtype=torch.float64)
        >>> known = deflating(lanczos(A, k=3, tol=1e-6))
        >>> cg(A, b, preconditioner=known).products < cg(A, b).products
        True

    References:
        Saad, Yeung, Erhel, Guyomarc'h (2000), A deflated version of the conjugate gradient algorithm.
    """
    usable = pairs.converged & (pairs.values + damping > 0)
    if not bool(usable.any()):
        raise OperatorError(
            f"Deflation needs a converged pair with λ + δ > 0, found λ={pairs.values.tolist()[:4]}, "
            f"converged={pairs.converged.tolist()[:4]} and δ={damping}."
        )
    values = pairs.values[usable] + damping
    # Alone, the rest begins below the smallest known value; a preconditioner for it gathers it around 1.
    to = float(values.min()) if rest is None else 1.0
    return SpectralPreconditioner(values, pairs.vectors[usable.to(pairs.vectors.device)], to=to, rest=rest)


def nystrom(
    A: LinearOperator, *, rank: int, damping: float, seed: int = 0, memory: int = 4 * 2**30
) -> SpectralPreconditioner:
    """The randomized Nyström preconditioner for A + δI with a positive semidefinite A.

    With a rank of about twice the effective dimension tr A(A + δI)⁻¹ conjugate gradients take a constant number of steps.

    Cost: ``rank`` products in one block; rank·n numbers are kept.

    Args:
        A: symmetric and positive semidefinite.
        rank: vectors of the sketch.
        damping: δ > 0.
        seed: of the sketch.
        memory: bytes for the sketch and its products.

    Raises:
        OperatorError: A is not symmetric or not semidefinite, rank, damping or memory make no sense.
        NonFiniteError: a product is not finite.

    Example:
        >>> import torch
        >>> from theodolite.linalg import Diagonal, cg, nystrom
        >>> A = Diagonal(1 / torch.arange(1.0, 201, dtype=torch.float64) ** 2)
        >>> b = torch.ones(200, dtype=torch.float64)
        >>> sketched = nystrom(A, rank=30, damping=1e-3)
        >>> cg(A.shift(1e-3), b, preconditioner=sketched).products < cg(A.shift(1e-3), b).products / 2
        True

    References:
        Frangella, Tropp, Udell (2023), Randomized Nyström preconditioning.
    """
    if not A.symmetric or not damping > 0:
        raise OperatorError(f"Nyström needs a symmetric operator and a damping δ > 0, found {A!r} and {damping=}.")
    A = widened(A)
    Omega, _ = torch.linalg.qr(sketch_vectors(A, rank, products=rank, least=1, seed=seed, memory=memory))
    Y = finite_product(A, Omega, before=0)
    forms, W = torch.linalg.eigh((Omega.T @ Y + Y.T @ Omega).double() / 2)
    rounding = max(DEPENDENT * torch.finfo(A.dtype).eps, product_rounding(A)) * float(forms.abs().max())
    if float(forms[0]) < -rounding:
        raise OperatorError(
            f"Nyström needs a positive semidefinite operator, {A!r} has negative curvature {float(forms[0]):.3g} on its "
            "sketch. Use GGN, or minres with deflating(pairs)."
        )
    kept = forms > rounding
    # A⟨Ω⟩ = B Bᵀ; directions that rounding cannot tell from null ones are left out instead of shifted.
    B = Y @ (W[:, kept] / forms[kept].sqrt()).to(Y)
    U, sizes, _ = torch.linalg.svd(B, full_matrices=False)
    values = sizes.double().cpu() ** 2 + damping
    to = float(values.min()) if len(values) else damping
    return SpectralPreconditioner(values, U.T.contiguous().to(given_dtype(A)), to=to)
