"""Gradients and Hessian-gradient products of domains against those of their pool."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from theodolite.linalg import lanczos
from theodolite.measures.arguments import surveyed
from theodolite.operators import Grouped
from theodolite.operators.grouped import By
from theodolite.problem import Problem
from theodolite.problem.arguments import real, whole
from theodolite.problem.arrays import to_numpy
from theodolite.records import Cost, DomainAlignment


def domain_alignment(
    problem: Problem,
    *,
    by: By = "targets",
    transfer: bool = False,
    tol: float = 1e-3,
    seed: int = 0,
    step: int | None = None,
) -> DomainAlignment:
    """How g_e and H_e g_e of every domain agree with g and Hg of the pool, and how far apart the Hessians are.

    On the parameters that are selected: the published penalty looks at the head alone, ``problem.select("head.*")``.

    Cost: two gradients and two products over the whole data; with ``transfer`` 20 to 60 products of two domains for each pair.

    Args:
        problem: the pool; its samples must not be coupled.
        by: domain of each sample: labels, one for each, or a function from a batch to its labels; ``"targets"`` compares classes.
        transfer: whether to compute ‖H_a − H_b‖₂ of all pairs.
        tol: relative residual of those norms.
        seed: of their start vectors.
        step: optimiser step, kept in the record.

    Raises:
        OperatorError: samples are coupled.
        DataError: the labels are not one for each sample.
        ProblemError: an argument is of the wrong type.

    Example:
        >>> inputs, targets = torch.randn(30, 4), torch.randint(3, (30,))
        >>> problem = Problem(torch.nn.Linear(4, 3), torch.nn.CrossEntropyLoss(), [(inputs, targets)])
        >>> domain_alignment(problem, by=["a", "b", "c"] * 10).domains
        ('a', 'b', 'c')

    References:
        Hemati et al., "Understanding Hessian alignment for domain generalization" (2023).
    """
    started = time.perf_counter()
    surveyed(problem)
    whole(seed=seed)
    real(tol=tol)
    grouped = Grouped(problem, by=by)
    weights = np.array(list(grouped.weights.values()))
    zero = torch.zeros(problem.n, dtype=problem.dtype, device=problem.device)
    slopes = [part.gradient() if grouped.weights[label] > 0 else zero for label, part in grouped.problems.items()]
    curved = [
        grouped.operators[label] @ g if grouped.weights[label] > 0 else zero
        for label, g in zip(grouped.problems, slopes, strict=True)
    ]
    pooled = problem.gradient()
    slopes, curved = [*slopes, pooled], [*curved, grouped @ pooled]
    norms, converged, products = _distances(grouped, transfer=transfer, tol=tol, seed=seed)
    cost = Cost(products=2.0 + products, gradients=2.0, forwards=2.0)
    return DomainAlignment(
        step=step,
        cost=replace(cost, seconds=time.perf_counter() - started),
        seed=seed if transfer else None,
        context=problem.context() | {"groups": len(weights)},
        domains=tuple(map(str, grouped.problems)),
        weights=weights,
        losses=np.array(list(grouped.losses.values())),
        gradient_dots=_dots(slopes),
        curved_dots=_dots(curved),
        transfer=norms,
        converged=converged,
        tol=tol,
        size=problem.n,
    )


def _dots(rows: list[Float[Tensor, " n"]]) -> Float[np.ndarray, "f f"]:
    stacked = torch.stack(rows).double()
    return to_numpy(stacked @ stacked.T)


def _distances(
    grouped: Grouped, *, transfer: bool, tol: float, seed: int
) -> tuple[Float[np.ndarray, "e e"], Bool[np.ndarray, "e e"], float]:
    """‖H_a − H_b‖₂, whether it converged, and the products in walks over all data."""
    labels, whole = list(grouped.problems), sum(grouped.samples.values())
    norms, converged, products = np.zeros((len(labels),) * 2), np.ones((len(labels),) * 2, dtype=bool), 0.0
    for a, one in enumerate(labels):
        for b, other in enumerate(labels[:a]):
            if not transfer or not min(grouped.weights[one], grouped.weights[other]) > 0:
                norms[a, b] = norms[b, a] = np.nan
                continue
            found = lanczos(
                grouped.operators[one] - grouped.operators[other], k=1, which="magnitude", tol=tol, seed=seed
            )
            norms[a, b] = norms[b, a] = float(found.values.abs().max())
            converged[a, b] = converged[b, a] = bool(found.converged.all())
            products += found.products * (grouped.samples[one] + grouped.samples[other]) / whole
    return norms, converged, products
