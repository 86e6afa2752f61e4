"""Stochastic Lanczos quadrature: the spectral density of a symmetric operator from a few random vectors."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import final

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from theodolite.errors import OperatorError
from theodolite.linalg.basis import NOISE
from theodolite.linalg.counts import refuse_fractions
from theodolite.linalg.lanczos import Eigenpairs
from theodolite.linalg.operator import LinearOperator, bytes_in_words, finite_product
from theodolite.linalg.precision import product_rounding, widened
from theodolite.linalg.probes import Distribution, Probes
from theodolite.linalg.resolution import are_resolved
from theodolite.linalg.trace import projected_out

WORK_VECTORS = 4


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Quadrature:
    """A spectral measure: known eigenvalues, and one Gauss rule for each probe that samples the others.

    Σ w f(node) approximates vᵀ f(A) v for a unit probe v orthogonal to the eigenvectors of the known eigenvalues, exactly
    for polynomials of degree < 2s. Over random v its mean is the mean of f over the eigenvalues that are not known.

    Args:
        nodes: Ritz values, ascending, float64 on the CPU; NaN-padded where the Krylov space closed early.
        weights: rows sum to 1; 0 where padded.
        size: n of the operator.
        products: operator-vector products.
        known: eigenvalues that are counted once each and left out of the rules.
        uniform: whether the probes are uniform on the unit sphere, so that even one has a known error.
        converged: nodes that are eigenvalues, with however many copies; None where that was not kept.
        coarse_nodes: as nodes, after half the steps.
        coarse_weights: their weights, negative where a rule was corrected for known eigenvalues.
    """

    nodes: Float[Tensor, "m s"]
    weights: Float[Tensor, "m s"]
    size: int
    products: int
    known: Float[Tensor, " c"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    uniform: bool = False
    converged: Bool[Tensor, "m s"] | None = None
    coarse_nodes: Float[Tensor, "m h"] | None = None
    coarse_weights: Float[Tensor, "m h"] | None = None

    def __repr__(self) -> str:
        rules, steps = self.nodes.shape
        known = f"{len(self.known)} of {self.size} eigenvalues known"
        return f"<Quadrature: {rules} rules of {steps} nodes, {known}, {self.products} products>"

    @property
    def unknown(self) -> int:
        """Number of eigenvalues that the rules stand for."""
        return self.size - len(self.known)


def slq(
    A: LinearOperator,
    *,
    probes: int,
    steps: int,
    seed: int = 0,
    distribution: Distribution = "gaussian",
    deflate: Eigenpairs | None = None,
    memory: int = 2**30,
) -> Quadrature:
    """Gauss quadrature rules for the spectral measures of random unit vectors.

    All probes advance together, one block product a step, each with full reorthogonalisation against its own basis. Known
    eigenpairs are counted exactly and projected out of the probes and of every product, which leaves the error of the rest;
    an error of their vectors enters to second order.

    Cost: probes·steps products at most.

    Args:
        A: symmetric.
        probes: number m of random vectors.
        steps: Lanczos steps s of each; no more than n are taken.
        seed: of the probes. The rules of 10 probes are the first 10 of 20, whatever the memory.
        distribution: ``"gaussian"`` normalised to the unit sphere, or ``"rademacher"`` signs over √n.
        deflate: eigenpairs of A, of which the converged ones are deflated.
        memory: bytes for the bases; probes that do not fit together run one group after the other.

    Raises:
        OperatorError: A is not symmetric, or probes, steps or memory make no sense.
        NonFiniteError: a product is not finite.

    Example:
        >>> import torch
        >>> from theodolite.linalg import Diagonal, integrate, slq
        >>> A = Diagonal(torch.linspace(1, 2, 50, dtype=torch.float64))
        >>> rule = slq(A, probes=10, steps=8, seed=0)
        >>> log_det, stderr, _ = integrate(rule, torch.log)
        >>> abs(log_det - float(A.entries.log().sum())) < 3 * stderr
        True

    References:
        Golub, Welsch (1969), Calculation of Gauss quadrature rules.
        Ubaru, Chen, Saad (2017), Fast estimation of tr(f(A)) via stochastic Lanczos quadrature.
    """
    if not A.symmetric:
        raise OperatorError(f"Quadrature needs a symmetric operator, {A!r} does not claim to be.")
    refuse_fractions(probes=probes, steps=steps)
    if probes < 1 or steps < 1:
        raise OperatorError(f"Quadrature needs at least one probe and one step, found {probes=}, {steps=}.")
    A = widened(A)
    n = A.size
    known, fixed = projected_out(A, deflate)
    if deflate is not None:
        known, fixed = known[deflate.converged], fixed[deflate.converged.to(fixed.device)]
    if len(known) == n:
        empty = torch.zeros(probes, 0, dtype=torch.float64)
        return Quadrature(nodes=empty, weights=empty, size=n, products=0, known=known)
    length = min(steps, n - len(known))
    together = _probes_in_memory(A, length, memory)
    stream = Probes(A, seed=seed, distribution=distribution)
    nodes = torch.full((probes, length), torch.nan, dtype=torch.float64)
    weights = torch.zeros(probes, length, dtype=torch.float64)
    coarse_nodes, coarse_weights = nodes[:, : max(1, length // 2)].clone(), weights[:, : max(1, length // 2)].clone()
    converged = torch.zeros(probes, length, dtype=torch.bool)
    products, eps = 0, max(torch.finfo(A.dtype).eps, product_rounding(A))
    for first in range(0, probes, together):
        starts = stream.draw(min(together, probes - first))
        diagonals, couplings, lengths = _tridiagonals(A, starts, fixed=fixed, steps=length, products_before=products)
        for row, s in enumerate(lengths.tolist(), start=first):
            alphas, betas, half = diagonals[:, row - first], couplings[:, row - first], min(s, coarse_nodes.shape[1])
            nodes[row, :s], weights[row, :s], converged[row, :s] = _gauss(alphas[:s], betas[:s], eps=eps)
            coarse_nodes[row, :half], coarse_weights[row, :half], _ = _gauss(alphas[:half], betas[:half], eps=eps)
        products += int(lengths.sum())
    return Quadrature(
        nodes=nodes,
        weights=weights,
        size=n,
        products=products,
        known=known,
        uniform=distribution == "gaussian",
        converged=converged,
        coarse_nodes=coarse_nodes,
        coarse_weights=coarse_weights,
    )


def _probes_in_memory(A: LinearOperator, length: int, memory: int) -> int:
    one = (length + WORK_VECTORS) * A.vector_bytes
    if memory < one:
        raise OperatorError(
            f"{length} Lanczos steps with {A!r} keep {bytes_in_words(one)} for each probe, found "
            f"memory={bytes_in_words(memory)}. Raise memory or take fewer steps."
        )
    return memory // one


def _gauss(
    alphas: Float[Tensor, " s"], betas: Float[Tensor, " s"], *, eps: float
) -> tuple[Float[Tensor, " s"], Float[Tensor, " s"], Bool[Tensor, " s"]]:
    """Nodes and weights of the rule with this Jacobi matrix, and which nodes are eigenvalues by their residuals."""
    theta, S = eigh_tridiagonal(alphas.numpy(), betas[:-1].numpy())
    slack = float(betas[-1]) * np.abs(S[-1]) + NOISE * eps * float(np.abs(theta).max())
    return torch.from_numpy(theta), torch.from_numpy(S[0] ** 2), torch.from_numpy(are_resolved(theta, slack))


def _tridiagonals(
    A: LinearOperator,
    starts: Float[Tensor, "m n"],
    *,
    fixed: Float[Tensor, "c n"],
    steps: int,
    products_before: int,
) -> tuple[Float[Tensor, "s m"], Float[Tensor, "s m"], Tensor]:
    """Diagonals and couplings of m Lanczos runs, and how many steps each took before its space closed.

    All stay orthogonal to the rows of ``fixed``.
    """
    m, n = starts.shape
    Q = starts.new_empty(m, steps, n)
    for _ in range(2):
        starts = starts - A.dots.project(fixed, starts.T).T @ fixed
    current = starts / A.dots.norm(starts.T).to(starts)[:, None]
    diagonals = torch.zeros(steps, m, dtype=torch.float64)
    couplings = torch.zeros(steps, m, dtype=torch.float64)
    lengths = torch.zeros(m, dtype=torch.int64)
    scale = torch.zeros(m, dtype=torch.float64)
    active = torch.ones(m, dtype=torch.bool)
    for j in range(steps):
        Q[:, j] = current
        running = active.nonzero()[:, 0].to(starts.device)
        w = torch.zeros_like(current)
        w[running] = finite_product(A, current[running].T, before=products_before + int(lengths.sum())).T
        lengths += active
        alpha = torch.zeros(m, dtype=w.dtype, device=w.device)
        for _ in range(2):
            coefficients = A.dots.project(Q[:, : j + 1], w[:, :, None])[:, :, 0]
            w = w - (coefficients[:, None, :] @ Q[:, : j + 1])[:, 0]
            w = w - A.dots.project(fixed, w.T).T @ fixed
            alpha = alpha + coefficients[:, j]
        diagonals[j], couplings[j] = torch.stack([alpha.double(), A.dots.norm(w.T)]).cpu()
        scale = torch.maximum(scale, diagonals[j].abs() + couplings[j])
        active &= couplings[j] > NOISE * torch.finfo(w.dtype).eps * scale
        if not bool(active.any()):
            break
        # A run whose space closed goes on as zeros, without products.
        current = w / torch.where(active, couplings[j], math.inf).to(w)[:, None]
    return diagonals, couplings, lengths
