"""Sharpness of random batches by their size, and learning rates for other batch sizes."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import numpy as np
from jaxtyping import Float
from torch import Tensor

from theodolite.errors import ProblemError
from theodolite.linalg import lanczos
from theodolite.measures.arguments import surveyed
from theodolite.measures.subject import context_of, operator_of, refuse_covariance
from theodolite.measures.verification import verified
from theodolite.problem import Problem
from theodolite.problem.arguments import optional, several, whole
from theodolite.records import BatchSharpness, Cost


def batch_sharpness(
    problem: Problem,
    *,
    sizes: Sequence[int] | None = None,
    batches: int = 8,
    operator: Literal["hessian", "ggn"] = "hessian",
    tol: float = 1e-2,
    max_products: int = 200,
    seed: int = 0,
    step: int | None = None,
) -> BatchSharpness:
    """Largest eigenvalue on random batches of several sizes, for the law λ_B = λ + κ/𝔟 and the learning rate each size bears.

    Cost: 10 to 20 products on every batch, hence about 15·batches·Σ sizes/N products on the whole data, and as many for the
    whole itself.

    Args:
        problem: the data that batches are drawn from, without replacement within a batch.
        sizes: three or more; by default N/32, N/16, N/8 and N/4 samples, at least 2.
        batches: of each size, over which errors are taken.
        operator: ``"hessian"`` or ``"ggn"``.
        tol: relative residual of each eigenvalue.
        max_products: on each batch.
        seed: of batches and start vectors.
        step: optimiser step, kept in the record.

    Returns:
        A record; eigenvalues that did not converge are marked.

    Raises:
        ProblemError: there are fewer than three sizes, sizes that are not below N, fewer than two batches, another operator,
            or samples that are coupled.

    Example:
        >>> import torch
        >>> inputs, targets = torch.randn(64, 10), torch.randint(3, (64,))
        >>> problem = Problem(torch.nn.Linear(10, 3), torch.nn.CrossEntropyLoss(), [(inputs, targets)])
        >>> found = batch_sharpness(problem, sizes=(8, 16, 32), batches=4)
        >>> bool(found.means[0].value > found.whole)
        True

    References:
        Granziol, Zohren & Roberts, "Learning rates as a function of batch size: a random matrix theory approach to neural
        network training" (2022).
    """
    started = time.perf_counter()
    surveyed(problem)
    whole(batches=batches, max_products=max_products, seed=seed)
    optional(partial(several, whole), sizes=sizes)
    refuse_covariance(operator)
    if problem.coupled:
        raise ProblemError(
            "Expected a problem whose samples can be drawn into batches of any size, found them coupled, by BatchNorm on batch "
            f"statistics or by the criterion, with mode={problem.mode!r}. Use mode='eval'."
        )
    sizes = _checked(problem, sizes, batches)
    H = operator_of(problem, operator)
    found = lanczos(H, k=1, tol=tol, seed=seed, max_products=max_products, memory=problem.memory)
    values, _, errors = verified(H, found)
    cost, counts = H.cost, []
    sharpness, converged = np.zeros((len(sizes), batches)), np.zeros((len(sizes), batches), dtype=np.bool_)
    for row, size in enumerate(sizes):
        for column in range(batches):
            # Batches of one seed are nested: those of different sizes need different seeds to have independent errors.
            part = problem.take(size, seed=seed + 1 + row * batches + column)
            value, good, spent = _largest(part, operator, found.vectors, tol, max_products, seed)
            sharpness[row, column], converged[row, column] = value, good
            share = part.samples / problem.samples
            cost += Cost(products=spent.products * share, gradients=spent.gradients * share)
        counts.append(part.samples)
    return BatchSharpness(
        step=step,
        cost=replace(cost, seconds=time.perf_counter() - started),
        seed=seed,
        notes=tuple(H.notes),
        context=context_of(problem, H),
        sizes=np.array(counts),
        sharpness=sharpness,
        converged=converged,
        whole=float(values[0]),
        whole_stderr=float(errors[0]),
        samples=problem.samples,
        operator=operator,
        size=problem.n,
    )


def scale_learning_rate(
    learning_rate: float,
    *,
    batch: float | int,
    to: float | int,
    rule: Literal["linear", "sqrt"] = "linear",
    cap: float = math.inf,
) -> float:
    """A learning rate for another batch size: in proportion for SGD, with the square root for adaptive optimisers.

    Args:
        learning_rate: that is known to work.
        batch: the size at which it works.
        to: the size that a rate is asked for.
        rule: ``"linear"`` or ``"sqrt"``.
        cap: largest rate, for instance ``max_learning_rate`` of a ``BatchSharpness`` at that size.

    Raises:
        ProblemError: a size is not positive, or the rule is unknown.

    Example:
        >>> scale_learning_rate(0.1, batch=256, to=1024)
        0.4
        >>> scale_learning_rate(0.1, batch=256, to=1024, rule="sqrt", cap=0.15)
        0.15

    References:
        Goyal et al., "Accurate, large minibatch SGD: training ImageNet in 1 hour" (2017).
        Granziol, Zohren & Roberts (2022), as above, for the square root.
    """
    if not (batch > 0 and to > 0):
        raise ProblemError(f"Expected positive batch sizes, found batch={batch}, to={to}.")
    if rule not in ("linear", "sqrt"):
        raise ProblemError(f"Expected rule 'linear' (SGD) or 'sqrt' (adaptive optimisers), found {rule!r}.")
    factor = to / batch if rule == "linear" else math.sqrt(to / batch)
    return min(learning_rate * factor, cap)


def spiked_eigenvalue(sharpness: float, *, variance: float, size: int, batch: float | int) -> float:
    """Largest eigenvalue of a batch Hessian by random matrix theory, for additive noise of independent entries.

    λ + (n/𝔟)σ²/λ while λ > σ√(n/𝔟); below, λ is lost in the noise, whose edge lies at 2σ√(n/𝔟).

    Args:
        sharpness: λ of the noiseless Hessian.
        variance: σ², mean variance of an entry of the per-sample Hessians.
        size: number of parameters n.
        batch: effective batch size 𝔟.

    Example:
        >>> round(spiked_eigenvalue(3.0, variance=2.0, size=600, batch=400), 6)
        4.0

    References:
        Baik, Ben Arous & Péché (2005); Granziol, Zohren & Roberts (2022), theorem 3.
    """
    spread = math.sqrt(variance * size / batch)
    return sharpness + spread**2 / sharpness if sharpness > spread else 2 * spread


def _checked(problem: Problem, sizes: Sequence[int] | None, batches: int) -> list[int]:
    total = problem.samples
    found = sorted({max(2, total // part) for part in (32, 16, 8, 4)} if sizes is None else set(sizes))
    if len(found) < 3 or found[0] < 1 or found[-1] >= total or batches < 2:
        raise ProblemError(
            f"Expected three or more batch sizes from 1 to {total - 1} (there are {total} samples) and at least two batches of "
            f"each, found sizes={found}, batches={batches}."
        )
    return found


def _largest(
    part: Problem, operator: str, start: Float[Tensor, "1 n"], tol: float, max_products: int, seed: int
) -> tuple[float, bool, Cost]:
    """The largest eigenvalue on a part of the data, whether it converged, and its cost."""
    H = operator_of(part, operator)
    # Warm starts save a third of the products; the random part of the start finds what noise lifts above the whole's top.
    found = lanczos(H, k=1, tol=tol, seed=seed, start=start, max_products=max_products, memory=part.memory)
    return float(found.values[0]), bool(found.converged[0]) and found.settled, H.cost
