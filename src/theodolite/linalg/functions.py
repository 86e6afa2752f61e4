"""A function of a symmetric operator times a vector, by Lanczos."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from theodolite.errors import NonFiniteError, OperatorError
from theodolite.linalg.counts import refuse_fractions
from theodolite.linalg.krylov import Krylov, Ritz
from theodolite.linalg.operator import LinearOperator, bytes_in_words
from theodolite.linalg.precision import product_rounding, widened

DEFAULT_STEPS = 500
WORK_VECTORS = 3
BELOW_ROUNDING = 0.1  # of it, where a remaining error is not worth more products
LAG = 2  # checks between the approximations compared; over one, errors were up to 6 times too small on plateaus


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class FunctionProduct:
    """f(A) v with how far to trust it.

    Args:
        x: the product.
        error: estimate of ‖x − f(A)v‖ / ‖x‖, rounding in the dtype of A included; infinite where f is not finite within
            rounding of the spectrum, as an inverse root near zero.
        converged: whether it is at most the tolerance.
        products: operator-vector products.
    """

    x: Float[Tensor, " n"]
    error: float
    converged: bool
    products: int

    def __repr__(self) -> str:
        converged = "converged" if self.converged else "not converged"
        return f"<FunctionProduct: {len(self.x)}, error {self.error:.3g}, {converged}, {self.products} products>"


def funm_multiply(
    A: LinearOperator,
    v: Float[Tensor, " n"],
    f: Callable[[Tensor], Tensor],
    *,
    tol: float = 1e-6,
    max_products: int | None = None,
    memory: int = 4 * 2**30,
) -> FunctionProduct:
    """f(A) v for a symmetric A and an f without jumps or kinks on its spectrum: the square root, its inverse, the exponential.

    The approximation ‖v‖ Qᵀ f(T) e₁ from a Krylov space is the best up to a factor of 2 that polynomials of its degree allow.
    Its error is estimated from the last two differences between approximations a fifth of the steps apart, as if they fell
    geometrically; it is no less than what f does with Ritz values moved by rounding, below which the iteration stops. Where
    the Krylov space closes they are moved by their residuals.

    A jump or a kink, as of the sign, of |λ| or of a projector on a half-line, is not seen while no Ritz value lies beyond it: with
    one eigenvalue of −1 below 300 of 1 to 10, |A| v seemed converged after 5 products and was 1 % off. Neither error nor
    convergence can be trusted then; ``lanczos(A, k=1, which="smallest")`` tells whether there is spectrum on the other side.

    Cost: one product a step; steps grow with √(condition number) for inverse roots and with √(spectral range) for the
    exponential. All steps' vectors are kept.

    Args:
        A: symmetric.
        v: the vector.
        f: a function of eigenvalues, elementwise on a float64 tensor, for instance ``torch.exp`` or ``torch.rsqrt``.
        tol: relative error to reach.
        max_products: stop after so many; None allows 500.
        memory: bytes for the basis; the iteration stops where it is full.

    Returns:
        The product. Not converging is reported in it, not raised.

    Raises:
        OperatorError: A is not symmetric, v or an argument does not fit, or f is not finite on the spectrum.
        NonFiniteError: v or a product is not finite.

    Example:
        >>> import torch
        >>> from theodolite.linalg import Diagonal, funm_multiply
        >>> A = Diagonal(torch.tensor([1.0, 4.0, 16.0], dtype=torch.float64))
        >>> found = funm_multiply(A, torch.ones(3, dtype=torch.float64), torch.rsqrt)
        >>> [round(value, 9) for value in found.x.tolist()]
        [1.0, 0.5, 0.25]

    References:
        Druskin, Knizhnerman (1989), Two polynomial methods of calculating functions of symmetric matrices.
        Amsel, Chen, Greenbaum, Musco, Musco (2024), Nearly optimal approximation of matrix functions by the Lanczos method.
    """
    limit = _limit(A, v, tol=tol, max_products=max_products, memory=memory)
    A, given = widened(A), v.dtype
    v = v.to(A.dtype)
    norm = float(A.dots.norm(v))
    if norm == 0:
        return FunctionProduct(x=torch.zeros_like(v, dtype=given), error=0.0, converged=True, products=0)
    krylov = Krylov(A, start=v, draw=v.clone, capacity=limit)
    history: list[np.ndarray] = []
    error, closed, settled, check = math.inf, False, False, 1
    while not settled and krylov.products < limit:
        krylov.advance()
        closed = krylov.invariant
        if closed or krylov.products in (check, limit):
            # A check costs O(j³) on the host; a tenth more steps between two of them is cheap.
            check += max(1, check // 10)
            ritz = krylov.ritz()
            history.append(_coordinates(krylov, ritz, f))
            rest = 0.0 if closed else _rest(history)
            rounding = max(krylov.rounding, product_rounding(A) * float(np.abs(ritz.values).max()))
            floor = _condition(
                ritz, f, moved=np.maximum(ritz.bounds, rounding) if closed else np.full(len(ritz.bounds), rounding)
            )
            error = _relative(max(rest, floor), to=history[-1])
            settled = closed or error <= tol or (math.isfinite(floor) and rest <= BELOW_ROUNDING * floor)
    x = norm * krylov.basis.combine(history[-1][:, None])[0]
    return FunctionProduct(x=x.to(given), error=error, converged=error <= tol, products=krylov.products)


def _limit(A: LinearOperator, v: Tensor, *, tol: float, max_products: int | None, memory: int) -> int:
    """How many steps there may be, if the question can be answered."""
    if not A.symmetric:
        raise OperatorError(f"Functions by Lanczos need a symmetric operator, {A!r} does not claim to be.")
    n = A.shape[0]
    if v.shape != (n,) or v.dtype != A.dtype or v.device != A.device:
        raise OperatorError(
            f"f(A)v with {A!r} takes a vector of shape ({n},) of its dtype and device, found {tuple(v.shape)} of "
            f"{v.dtype} on {v.device}."
        )
    if not A.dots.is_finite(v):
        raise NonFiniteError(f"v has {int((~torch.isfinite(v)).sum())} entries that are NaN or infinite.")
    refuse_fractions(max_products=max_products)
    if not tol > 0:
        raise OperatorError(f"tol is a positive relative error, found {tol}.")
    rows = memory // A.vector_bytes - WORK_VECTORS
    steps = min(A.size, DEFAULT_STEPS if max_products is None else max_products, rows)
    if steps < 1:
        raise OperatorError(
            f"f(A)v needs at least one step and memory for {WORK_VECTORS + 1} vectors of "
            f"{bytes_in_words(A.vector_bytes)}, found max_products={max_products} and "
            f"memory={bytes_in_words(memory)}."
        )
    return steps


def _coordinates(krylov: Krylov, ritz: Ritz, f: Callable[[Tensor], Tensor]) -> Float[np.ndarray, " j"]:
    """f(T) e₁."""
    values = f(torch.from_numpy(ritz.values))
    if values.shape != ritz.values.shape or not bool(torch.isfinite(values).all()):
        raise OperatorError(
            f"f should be elementwise and finite on the spectrum of {krylov.operator!r}; at the Ritz values "
            f"{ritz.values.min():.6g} to {ritz.values.max():.6g} it returned {values.tolist()[:4]}. "
            "Shift or clamp, for instance with A.shift(δ) for an inverse root of a semidefinite operator."
        )
    found: np.ndarray = ritz.coordinates @ (values.numpy() * ritz.coordinates[0])
    return found


def _condition(ritz: Ritz, f: Callable[[Tensor], Tensor], *, moved: Float[np.ndarray, " j"]) -> float:
    """How far f(T)e₁ goes when each Ritz value is moved up or down; infinite where f is not finite there."""
    at = f(torch.from_numpy(ritz.values)).numpy()
    sides = [np.abs(f(torch.from_numpy(ritz.values + sign * moved)).numpy() - at) for sign in (-1.0, 1.0)]
    weights = np.abs(ritz.coordinates[0])
    # maximum, unlike fmax, keeps NaN: f may not be defined beyond the spectrum.
    shifts = np.maximum(*sides)[weights > 0] * weights[weights > 0]
    found = float(np.linalg.norm(shifts))
    return found if math.isfinite(found) else math.inf


def _relative(error: float, *, to: Float[np.ndarray, " j"]) -> float:
    scale = float(np.linalg.norm(to))
    return error / scale if scale > 0 else (0.0 if error == 0 else math.inf)


def _rest(history: list[np.ndarray]) -> float:
    """The error of the last coordinates; their basis is orthonormal, so differences need no vectors."""
    if len(history) <= 2 * LAG:
        return math.inf
    if not history[-1].any():
        return 0.0  # f vanishes on all Ritz values
    last, before = _distance(history[-1], history[-1 - LAG]), _distance(history[-1 - LAG], history[-1 - 2 * LAG])
    # With ratio q the sum of all later differences is last·q/(1 − q); the last one itself guards against a lucky ratio.
    return last / (1 - last / before) if last < before else math.inf


def _distance(later: Float[np.ndarray, " j"], earlier: Float[np.ndarray, " i"]) -> float:
    return float(np.linalg.norm(later - np.pad(earlier, (0, len(later) - len(earlier)))))
