"""How much of the gradient and of the optimiser's next update lies in the top eigenspace."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer

from theodolite.measures import curvature
from theodolite.measures.arguments import optimises, surveyed
from theodolite.measures.outliers import top_vectors
from theodolite.measures.subject import OperatorName, context_of, operator_of
from theodolite.measures.verification import refuse_elsewhere
from theodolite.operators.updates import next_update
from theodolite.problem import Problem
from theodolite.problem.arguments import optional, whole
from theodolite.records import Alignment, Cost, Spectrum
from theodolite.records.jackknife import jackknife_stderr

OVER_THE_CAP = "no errors from the data: the gradients of the chunks exceed the memory cap"


def alignment(
    problem: Problem,
    optimizer: Optimizer | None = None,
    *,
    spectrum: Spectrum | None = None,
    k: int = 10,
    operator: OperatorName = "hessian",
    seed: int = 0,
    step: int | None = None,
) -> Alignment:
    """Shares of ‖g‖² and of ‖u‖² along the top eigenvectors, u the update that the optimiser would take next.

    Late in training most of the gradient lies in the few directions of largest curvature, along which it oscillates, while
    progress is made in the rest: a share near 1 says that steps are spent on the walls of the valley.

    Cost: one gradient, and without ``spectrum`` that of ``spectrum`` with k pairs, with it one product. With an optimiser a copy
    of its state for each chunk of the data, one after the other.

    Args:
        problem: what to survey.
        optimizer: read, never written.
        spectrum: of this problem at this point, with eigenvectors; measured if not given.
        k: eigenvectors to measure if it is not given.
        operator: as for ``spectrum``, of which it is taken if that is given.
        seed: of the spectrum.
        step: optimiser step, kept in the record.

    Raises:
        OperatorError: the spectrum is of another problem or point, holds no eigenvectors, or is not of the upper end.
        ProblemError: the optimiser holds no parameter of the problem, or its step needs a closure.

    Example:
        >>> model = torch.nn.Linear(10, 3)
        >>> data = [(torch.randn(64, 10), torch.randint(3, (64,)))]
        >>> problem = Problem(model, torch.nn.CrossEntropyLoss(), data)
        >>> found = alignment(problem, torch.optim.SGD(model.parameters(), lr=0.1), k=3)
        >>> abs(found.gradient.value - found.update.value) < 1e-5
        True

    References:
        Gur-Ari, Roberts, Dyer, "Gradient descent happens in a tiny subspace" (2018).
        Song, Yun, "Does SGD really happen in tiny subspaces?" (2024).
    """
    started = time.perf_counter()
    surveyed(problem)
    whole(k=k, seed=seed)
    optional(optimises, optimizer=optimizer)
    cost = Cost(gradients=1.0)
    if spectrum is None:
        spectrum = curvature.spectrum(problem, k=min(k, problem.n), operator=operator, seed=seed)
        cost, context = cost + spectrum.cost, spectrum.context
        U = top_vectors(problem, spectrum)
    else:
        U, H = top_vectors(problem, spectrum), operator_of(problem, spectrum.operator)
        refuse_elsewhere(problem, spectrum, H)
        cost, context = cost + H.cost, context_of(problem, H)
    chunks = _chunk_gradients(problem)
    gradient = chunks.whole
    of_gradient = _shares(problem, U, gradient, chunks.left_out(), chunks)
    of_update = _Shares.unknown(len(U))
    update_norm = cosine = float("nan")
    if optimizer is not None:
        update = next_update(problem, optimizer, gradient=gradient)
        without = (next_update(problem, optimizer, gradient=each) for each in chunks.left_out())
        of_update = _shares(problem, U, update, without, chunks)
        update_norm = float(update.double().norm())
        cosine = float(torch.nn.functional.cosine_similarity(update.double(), -gradient.double(), dim=0))
    return Alignment(
        step=step,
        cost=replace(cost, seconds=time.perf_counter() - started),
        seed=spectrum.seed,
        notes=spectrum.notes if chunks.parts is not None else (*spectrum.notes, OVER_THE_CAP),
        context=context,
        eigenvalues=spectrum.top,
        gradient_shares=of_gradient.each,
        gradient_stderrs=of_gradient.stderrs,
        gradient_stderr=of_gradient.stderr,
        gradient_norm=float(gradient.double().norm()),
        update_shares=of_update.each,
        update_stderrs=of_update.stderrs,
        update_stderr=of_update.stderr,
        update_norm=update_norm,
        cosine=cosine,
        optimizer="" if optimizer is None else type(optimizer).__name__,
        operator=spectrum.operator,
        size=problem.n,
    )


@dataclass(frozen=True)
class _Chunks:
    """The gradient and its parts.

    Args:
        whole: the gradient.
        parts: of this rank's chunks, summed over their samples; None where they exceed the memory.
        divisors: what is left of the data without each of them is divided by.
        weights: of all chunks.
        divisor: of the whole.
    """

    whole: Float[Tensor, " n"]
    parts: list[Float[Tensor, " n"]] | None
    divisors: Float[np.ndarray, " d"]
    weights: Float[np.ndarray, " c"]
    divisor: float

    def left_out(self) -> Iterator[Float[Tensor, " n"]]:
        """The gradient without each of this rank's chunks."""
        for part, rest in zip(self.parts or [], self.divisors.tolist(), strict=False):
            yield (self.whole * self.divisor - part) / rest


@dataclass(frozen=True)
class _Shares:
    """Shares of a squared norm along orthonormal rows, their errors, and the error of their sum."""

    each: Float[np.ndarray, " k"]
    stderrs: Float[np.ndarray, " k"]
    stderr: float

    @classmethod
    def unknown(cls, count: int) -> _Shares:
        """Of a vector that is not known."""
        return cls(np.full(count, np.nan), np.full(count, np.nan), float("nan"))


def _chunk_gradients(problem: Problem) -> _Chunks:
    summed = torch.zeros(problem.n, dtype=torch.promote_types(problem.dtype, torch.float32), device=problem.device)
    weights: list[float] = []
    parts: list[Tensor] | None = []
    room = problem.memory
    with problem.together("a gradient"):
        for _, _, weight, part in problem.chunk_gradients():
            weights.append(weight)
            summed += part
            if parts is not None:
                parts.append(part)
                parts = parts if part.nbytes * len(parts) <= room else None
    own = torch.tensor(weights, dtype=torch.float64)
    everywhere = problem.ranks.join(own)
    divisor = problem.total_weight(everywhere)
    rest = 1 - own.numpy() / (float(everywhere.sum()) or 1.0)
    divisors = divisor * np.where(rest > 0, rest, np.nan)
    return _Chunks(problem.ranks.sum(summed) / divisor, parts, divisors, everywhere.numpy(), divisor)


def _shares(
    problem: Problem,
    U: Float[Tensor, "k n"],
    vector: Float[Tensor, " n"],
    without: Iterator[Float[Tensor, " n"]],
    chunks: _Chunks,
) -> _Shares:
    """Shares of a vector, with the jackknife over what it is without each chunk."""
    whole = _share(U, vector)
    rows = [_share(U, each) for each in without]
    if chunks.parts is None:
        return _Shares(whole[:-1].numpy(), np.full(len(U), np.nan), float("nan"))
    left_out = problem.ranks.join(torch.stack(rows))
    errors = jackknife_stderr(left_out.numpy(), whole=whole.numpy(), weights=chunks.weights)
    return _Shares(whole[:-1].numpy(), errors[:-1], float(errors[-1]))


def _share(U: Float[Tensor, "k n"], vector: Float[Tensor, " n"]) -> Float[Tensor, " m"]:
    """(uᵀv)²/‖v‖² for each row u, then their sum; NaN for a vector that vanishes."""
    wide = vector.double()
    each = (U @ wide).square() / wide.square().sum()
    return torch.cat([each, each.sum()[None]]).cpu()
