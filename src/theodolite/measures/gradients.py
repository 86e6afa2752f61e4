"""Loss, gradient and parameter norms with their errors."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from theodolite.measures.jackknife import jackknife_stderr
from theodolite.problem import Problem
from theodolite.records import Cost, Gradients


def gradients(problem: Problem, *, step: int | None = None) -> Gradients:
    """Loss and gradient of the problem, norms by layer, with standard errors over the chunks of its data.

    Cost: one gradient. Gradients of the chunks are held for the errors while they fit the problem's memory cap.

    Args:
        problem: what to survey.
        step: optimiser step, kept in the record.

    Returns:
        A record; a loss or norm that is not finite is a reading, not an error.

    Example:
        >>> inputs, targets = torch.randn(64, 10), torch.randint(3, (64,))
        >>> model = torch.nn.Sequential(torch.nn.Linear(10, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3))
        >>> gradients(Problem(model, torch.nn.CrossEntropyLoss(), [(inputs, targets)])).layers
        ('0', '2')

    References:
        Efron, Stein, "The jackknife estimate of variance" (1981).
    """
    started = time.perf_counter()
    totals: list[float] = []
    weights: list[float] = []
    parts: list[Tensor] = []
    summed, room = torch.zeros(problem.n, dtype=problem.dtype, device=problem.device), problem.memory
    for _, total, weight, part in problem.chunk_gradients():
        totals.append(float(total))
        weights.append(weight)
        summed += part
        if part.nbytes * (len(parts) + 1) <= room:
            parts.append(part)
    denominator = problem.total_weight(torch.tensor(weights, dtype=torch.float64))
    # Without a chunk, what is left keeps the denominator that its share of the weight has in the whole.
    left = [denominator * (1.0 - weight / sum(weights)) or float("nan") for weight in weights]
    held = len(parts) == len(totals)
    slices = tuple(problem.layout.layer_slices.values())
    left_out = [(summed - part) / rest for part, rest in zip(parts, left, strict=False)] if held else []
    norms = np.array([_norm(gradient) for gradient in left_out])
    layer_norms = np.array([_norms(gradient, slices) for gradient in left_out]).reshape(-1, len(slices))
    losses = np.array([(sum(totals) - total) / rest for total, rest in zip(totals, left, strict=True)])
    gradient = summed / denominator
    return Gradients(
        step=step,
        cost=Cost(gradients=1.0, seconds=time.perf_counter() - started),
        notes=() if held else ("no errors for the norms: the gradients of the chunks exceed the memory cap",),
        context=problem.context(),
        loss=sum(totals) / denominator,
        loss_stderr=float(jackknife_stderr(losses)),
        norm=_norm(gradient),
        norm_stderr=float(jackknife_stderr(norms)),
        layers=tuple(problem.layout.layer_slices),
        layer_norms=_norms(gradient, slices),
        layer_norm_stderrs=jackknife_stderr(layer_norms),
        parameter_norms=_norms(problem.layout.flatten(problem.point().leaves).detach(), slices),
        samples=problem.samples,
    )


def _norm(flat: Float[Tensor, " n"]) -> float:
    return float(flat.double().norm())


def _norms(flat: Float[Tensor, " n"], slices: Sequence[slice]) -> Float[np.ndarray, " L"]:
    return np.array([_norm(flat[where]) for where in slices])
