"""Curvature of single samples, for the linear stability of stochastic gradient descent."""

from __future__ import annotations

import time
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from theodolite.errors import OperatorError
from theodolite.measures.arguments import surveyed
from theodolite.measures.excursions import context_with_chunks, loss_at
from theodolite.operators.cotangents import curvature_roots
from theodolite.operators.outputs import outputs_of
from theodolite.operators.stacked import refuse_sharded
from theodolite.problem import Chunk, Problem
from theodolite.problem.arguments import whole
from theodolite.problem.finite import non_finite_loss
from theodolite.records import Coherence, Cost


def coherence(problem: Problem, *, samples: int = 64, seed: int = 0, step: int | None = None) -> Coherence:
    """Gauss-Newton matrices of single samples through their rows, for SGD's linear stability at any rate and batch size.

    Cost: one gradient for each row of a sample, C − 1 for cross-entropy over C classes and positions times that for
    sequences; all rows are held in memory.

    Args:
        problem: made with a criterion that is convex in the outputs; its samples must not be coupled.
        samples: how many to use, drawn at random where there are more. What follows for a batch size takes all of them,
            samples=problem.samples: from a part the record holds the coherence and the sharpness of that part alone.
        seed: of that draw.
        step: optimiser step, kept in the record.

    Returns:
        A record with the Gram matrix of all rows, from which coherence and, of all samples, bounds and the exact radius follow.

    Raises:
        OperatorError: the outputs are not known, the criterion is not convex in them, or the rows exceed the memory cap.
        ProblemError: BatchNorm on batch statistics couples the samples, or samples is no whole number.
        NonFiniteError: the loss is not finite.

    Example:
        >>> inputs, targets = torch.randn(8, 5), torch.randn(8, 1)
        >>> problem = Problem(nn.Linear(5, 1), nn.MSELoss(), [(inputs, targets)])
        >>> found = coherence(problem)
        >>> 1 <= found.coherence <= 8
        True

    References:
        Dexter, Ocejo, Keerthi, Gupta, Acharya & Khanna, "A precise characterization of SGD stability using loss surface
        geometry" (2024), arXiv:2401.12332.
    """
    started = time.perf_counter()
    surveyed(problem)
    whole(samples=samples, seed=seed)
    refuse_sharded(problem)
    part = problem.take(samples, seed=seed) if samples < problem.samples else problem
    here = loss_at(part)
    if not np.isfinite(here.value):
        raise non_finite_loss(float(here.value))
    rows, counts = _rows(part.replace(microbatch=1))
    # H_i is N times what sample i adds to the mean, so that H is the mean of the H_i.
    scale = part.samples / here.divisor
    share = part.samples / problem.samples
    return Coherence(
        step=step,
        cost=Cost(
            gradients=share * (1 + len(rows) / part.samples), forwards=share, seconds=time.perf_counter() - started
        ),
        seed=seed if part is not problem else None,
        context=context_with_chunks(part, here),
        gram=(scale * (rows.double() @ rows.double().T)).cpu().numpy(),
        rows=counts,
        population=problem.samples,
        loss=float(here.value),
        loss_stderr=float(here.stderr),
        size=problem.n,
    )


def _rows(single: Problem) -> tuple[Float[Tensor, "m n"], Int[np.ndarray, " s"]]:
    """Rows A with Σ A_iᵀA_i = the Gauss-Newton matrix of the total, and how many each sample has."""
    outputs, point = outputs_of(single), single.point()
    rows: list[Tensor] = []
    counts: list[int] = []
    room = single.memory // (single.n * single.dtype.itemsize)

    def pull(model: nn.Module, chunk: Chunk) -> list[Tensor]:
        values = outputs.tensor(model, chunk.batch)
        roots = curvature_roots(outputs.loss, values, outputs.targets(chunk.batch), memory=single.memory)
        return [
            single.layout.flatten(
                torch.autograd.grad(values, point.leaves, root, retain_graph=True, materialize_grads=True)
            )
            for root in roots
        ]

    with single.session():
        for chunk in single.chunks():
            found = single.call(partial(pull, chunk=chunk), point, chunk=chunk.index)
            rows += found
            counts.append(len(found))
            if len(rows) > room:
                raise OperatorError(
                    f"Expected rows of all samples within the memory cap of {room} vectors of {single.n:,} parameters, found "
                    f"{len(rows)} after {len(counts)} of {single.samples} samples. Use fewer samples=, or raise memory=."
                )
    empty = torch.zeros(0, single.n, dtype=single.dtype, device=single.device)
    return torch.stack(rows) if rows else empty, np.array(counts)
