"""The sharpness that one half of the data finds, on the other half."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from theodolite.linalg import lanczos
from theodolite.measures.subject import operator_of
from theodolite.problem import Problem
from theodolite.records import Cost

TOL = 1e-2  # the quotient of a vector with this residual is off by its square


def held_out_quotient(
    problem: Problem,
    operator: str,
    *,
    which: Literal["largest", "smallest"],
    start: Float[Tensor, "*j n"],
    seed: int,
) -> tuple[float, Cost]:
    """Mean of v_AᵀH_Bv_A and v_BᵀH_Av_B, with the extreme eigenvectors of random halves A and B of the data.

    A vector that was chosen on other data has no upward bias, but lies below λ₁ as it is not the best one: with b/N the
    bias of λ₁ on N samples, the quotient of a vector from N/2 of them is 2b/N too small, to first order.

    Cost: what 10 to 20 products on all the data take, in products on halves of it, and what it is worth in gradients.

    Args:
        problem: the whole.
        operator: its name.
        which: the end.
        start: eigenvector of the whole, where the search in the halves begins.
        seed: of the halves.

    Raises:
        DataError: the data cannot be halved.
    """
    halves = problem.split_halves(seed=seed)
    operators = [operator_of(half, operator) for half in halves]
    vectors = [
        lanczos(H, k=1, which=which, tol=TOL, start=start, seed=seed, memory=half.memory).vectors[0]
        for H, half in zip(operators, halves, strict=True)
    ]
    # Each half counts as much as the other: both quotients are of the same kind.
    quotients = [
        float((vector.double() * (H @ vector).double()).sum())
        for H, vector in zip(operators, reversed(vectors), strict=True)
    ]
    spent = sum((H.cost for H in operators), Cost())
    shares = [half.samples / problem.samples for half in halves]
    products = sum(H.cost.products * share for H, share in zip(operators, shares, strict=True))
    gradients = sum(H.cost.gradients * share for H, share in zip(operators, shares, strict=True))
    return sum(quotients) / 2, replace(spent, products=products, gradients=gradients)
