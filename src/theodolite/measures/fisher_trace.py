"""Trace of the Fisher information from labels that the model draws itself."""

from __future__ import annotations

import math
import time
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from theodolite.errors import NonFiniteError, OperatorError, ProblemError
from theodolite.measures.arguments import surveyed
from theodolite.measures.excursions import ChunkMeans
from theodolite.operators.outputs import outputs_of
from theodolite.operators.stacked import refuse_sharded
from theodolite.problem import Chunk, Problem
from theodolite.problem.arguments import whole
from theodolite.problem.predictive import has_density, no_density, predictive
from theodolite.records import Cost, Trace


def fisher_trace(problem: Problem, *, draws: int = 4, seed: int = 0, step: int | None = None) -> Trace:
    """tr F = E‖∇log p(y|x)‖² over labels y that the model draws, a flatness that ranks language models of equal loss.

    Equal to the trace of the Gauss-Newton matrix, and near a fit of the data to that of the Hessian, from first derivatives
    alone: attention kernels without second derivatives will do. Labels are drawn, not those of the data, which would give the
    empirical Fisher.

    Near a fit nearly all of the trace is in labels that the model would hardly ever draw: of labels drawn as predicted, none
    but the likeliest would come, with a score near zero and an error near zero beside it. Labels are therefore drawn in
    proportion to p(y)‖∂log p(y)/∂z‖², z the logits, each weighted by what that favours it: still unbiased, and every
    draw has its share of the trace, however sure the model is. What spreads is how much the parameters move each logit.

    For sequences it is the mean over predicted tokens of E‖∇log p(y_t|x)‖², given the data's own context x of each token, as
    teacher forcing sees it; not the Fisher information of whole sequences that the model generates. Scores of different tokens
    are independent with mean zero, so that the squared norm of their sum over a sequence has the sum of squared norms for its
    expectation, which random signs keep under the weights: one backward pass a sequence and draw, not one a token.

    Cost: ``draws`` gradients and one forward pass, sample by sample.

    Args:
        problem: made with a criterion that is the negative logarithm of a density, or with ``from_loss`` of a model of
            transformers and batches that have ``labels``.
        draws: of the labels of every sample, at least 2 for the error.
        seed: of the draws.
        step: optimiser step, kept in the record.

    Returns:
        A record; ``stderr`` is from the draws, pooled over samples, ``data_stderr`` from samples and draws together.

    Raises:
        OperatorError: the criterion is no logarithm of a known density, or the outputs are not known.
        ProblemError: there are too few draws, or BatchNorm couples the samples.

    Example:
        >>> inputs, targets = torch.randn(32, 5), torch.randint(3, (32,))
        >>> problem = Problem(nn.Linear(5, 3), nn.CrossEntropyLoss(), [(inputs, targets)])
        >>> found = fisher_trace(problem)
        >>> found.operator, found.probes
        ('fisher', 128)

    References:
        Liu, Xie, Li & Ma, "Same pre-training loss, better downstream: implicit bias matters for language models" (2023),
        arXiv:2210.14199.
    """
    started = time.perf_counter()
    surveyed(problem)
    whole(draws=draws, seed=seed)
    if draws < 2:
        raise ProblemError(f"Expected at least 2 draws of the labels, for the error, found draws={draws}.")
    refuse_sharded(problem)
    single = problem.replace(microbatch=1)
    squares, weights = _squared_norms(single, draws, seed)
    divisor = problem.total_weight(torch.from_numpy(weights))
    means = ChunkMeans(squares.mean(axis=1), weights, divisor)
    # Labels of all samples are drawn independently: the variances over draws add up.
    errors = np.sqrt(squares.var(axis=1, ddof=1).sum(axis=0) / draws) / divisor
    return Trace(
        step=step,
        cost=Cost(gradients=float(draws), forwards=1.0, seconds=time.perf_counter() - started),
        seed=seed,
        context=problem.context() | {"chunks": int((weights > 0).sum())},
        value=float(means.value[0]),
        stderr=float(errors[0]),
        data_stderr=float(means.stderr[0]),
        layers=tuple(problem.layout.layer_slices),
        layer_values=means.value[1:],
        layer_stderrs=errors[1:],
        probes=len(weights) * draws,
        degrees=len(weights) * (draws - 1),  # each sample has a mean of its own
        method="labels drawn by their share",
        operator="fisher",
        size=problem.n,
    )


def _squared_norms(
    single: Problem, draws: int, seed: int
) -> tuple[Float[np.ndarray, "s d p"], Float[np.ndarray, " s"]]:
    """‖Jᵀs‖² of every sample and draw, whole and by layer, and the weights of the samples."""
    outputs, point = outputs_of(single), single.point()
    if not has_density(outputs.loss):
        raise no_density(outputs.loss)
    pieces = (slice(None), *single.layout.layer_slices.values())

    def norms(model: nn.Module, chunk: Chunk) -> tuple[list[list[float]], float]:
        values, targets = outputs.tensor(model, chunk.batch), outputs.targets(chunk.batch)
        if not values.requires_grad:
            raise OperatorError(
                "Expected outputs that depend on the selected parameters, found some that do not. Select others."
            )
        predicted = predictive(outputs.loss, values.detach(), targets)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + chunk.index)
        found = []
        for _ in range(draws):
            score = predicted.root(generator)
            pulled = torch.autograd.grad(values, point.leaves, score, retain_graph=True, materialize_grads=True)
            flat = single.layout.flatten(pulled).double()
            found.append([float(flat[piece].square().sum()) for piece in pieces])
        return found, outputs.loss.weight(values, targets)

    squares, weights = [], []
    with single.session():
        for chunk in single.chunks():
            found, weight = single.call(partial(norms, chunk=chunk), point, chunk=chunk.index)
            squares.append(found)
            weights.append(weight)
    if not all(math.isfinite(value) for sample in squares for draw in sample for value in draw):
        raise NonFiniteError(
            "Expected finite scores, found NaN or infinity. Check that the loss is finite at these parameters."
        )
    return np.array(squares), np.array(weights)
