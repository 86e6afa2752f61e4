"""Loss, gradient and parameter norms with their errors, and the Gram matrix of per-sample gradients."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from theodolite.errors import DataError, OperatorError, ProblemError
from theodolite.measures.sample_gradients import Groups, SampleGradients, sample_gradients
from theodolite.problem import Problem
from theodolite.records import Cost, Gradients
from theodolite.records.jackknife import jackknife_stderr

OVER_THE_CAP = "no errors for the norms: the gradients of the chunks exceed the memory cap"
GRAM = 1.5  # gradients that a Gram matrix of all samples takes, forward pass included


def gradients(
    problem: Problem,
    *,
    gram: bool | Literal["auto"] = False,
    samples: int = 256,
    layers: bool | None = None,
    groups: Groups | None = None,
    update: Float[Tensor, " n"] | None = None,
    seed: int = 0,
    step: int | None = None,
) -> Gradients:
    """Loss and gradient of the problem with norms by layer, and all dot products of the gradients of its samples.

    From the dot products (the Gram matrix) the record derives norms of samples, noise scale, conflicts between groups, and
    which samples the gradient comes from, all with errors.

    Cost: one gradient; with the Gram matrix 1.1 to 1.5 gradients of ``samples`` more, and once for each shape of batch about
        three for its checks. Gradients of the chunks are held for the errors while they fit the problem's memory cap.

    Args:
        problem: what to survey.
        gram: whether to multiply the gradients of samples; ``"auto"`` does where they are defined, and says why where not.
            With groups or an update they are multiplied in any case.
        samples: how many at most, drawn at random where there are more.
        layers: whether to keep the Gram matrix of every layer too; None keeps them up to 8 MiB.
        groups: groups whose gradients are compared: ``"targets"``, a label for each sample of the problem in the order of
            its data, or a function from a batch to the labels of its samples.
        update: flat update d of the optimiser (a step taken or to be taken), to be multiplied with every sample's gradient.
        seed: of the draw of samples.
        step: optimiser step, kept in the record.

    Returns:
        A record; a loss, norm or sample that is not finite is a reading, not an error.

    Raises:
        OperatorError: dot products are not optional, and something couples the samples, or ranks share the data.
        DataError: groups do not fit the data.
        ProblemError: an option makes no sense.

    Example:
        >>> inputs, targets = torch.randn(64, 10), torch.randint(3, (64,))
        >>> model = torch.nn.Sequential(torch.nn.Linear(10, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3))
        >>> gradients(Problem(model, torch.nn.CrossEntropyLoss(), [(inputs, targets)])).layers
        ('0', '2')
        >>> found = gradients(Problem(model, torch.nn.CrossEntropyLoss(), [(inputs, targets)]), groups="targets")
        >>> found.gram.shape, found.group_alignment.names
        ((64, 64), ('0', '1', '2'))

    References:
        Busing, Meijer & van der Leeden, "Delete-m jackknife for unequal m" (1999).
    """
    started = time.perf_counter()
    _refuse(gram, samples)
    ranks = problem.ranks
    with problem.together("gradients"):
        totals, here, summed, parts = _read(problem)
    totals, weights = (ranks.join(torch.from_numpy(values)).numpy() for values in (totals, here))
    summed = ranks.sum(summed)
    denominator = problem.total_weight(torch.from_numpy(weights))
    left = _left(denominator, weights, weights)
    slices = tuple(problem.layout.layer_slices.values())
    pieces = (slice(None), *slices)
    gradient = summed / denominator
    norms = _norms(gradient, pieces)
    # Gradients of chunks stay on the rank that they were taken on.
    without = ranks.join(
        torch.from_numpy(_norms_without(summed, parts, _left(denominator, weights, here), pieces))
    ).numpy()
    errors = jackknife_stderr(without, whole=norms, weights=weights)
    kept = ranks.sum(torch.tensor(float(parts is None))) == 0
    loss = totals.sum() / denominator
    with np.errstate(invalid="ignore"):  # a loss that is not finite is a reading
        left_out = (totals.sum() - totals) / left
    found = SampleGradients({}, (), 0.0)
    if gram or groups is not None or update is not None:
        found = _of_samples(problem, gram, samples=samples, layers=layers, groups=groups, update=update, seed=seed)
    return Gradients(
        step=step,
        cost=Cost(gradients=1.0 + GRAM * found.share, forwards=found.share, seconds=time.perf_counter() - started),
        seed=seed if 0 < found.share < 1 else None,
        notes=(() if kept else (OVER_THE_CAP,)) + found.notes,
        context=problem.context() | {"chunks": int((weights > 0).sum())},
        loss=float(loss),
        loss_stderr=float(jackknife_stderr(left_out, whole=np.asarray(loss), weights=weights)),
        norm=float(norms[0]),
        norm_stderr=float(errors[0]),
        layers=tuple(problem.layout.layer_slices),
        layer_norms=norms[1:],
        layer_norm_stderrs=errors[1:],
        parameter_norms=_norms(problem.layout.flatten(problem.point().leaves).detach(), slices),
        samples=problem.samples,
        **found.fields,
    )


def _refuse(gram: bool | str, samples: int) -> None:
    if gram not in (True, False, "auto"):
        raise ProblemError(f"Expected gram to be True, False or 'auto', found {gram!r}.")
    if samples < 2:
        raise ProblemError(f"Expected at least 2 samples for dot products of their gradients, found samples={samples}.")


def _of_samples(problem: Problem, gram: bool | str, **options: Any) -> SampleGradients:
    """The Gram matrix; with ``"auto"`` a note of why there is none."""
    try:
        return sample_gradients(problem, **options)
    except (OperatorError, DataError) as error:
        if gram != "auto" or options["groups"] is not None or options["update"] is not None:
            raise
        reason = str(error).split(". ")[0]
        return SampleGradients({}, (f"no Gram matrix of per-sample gradients: {reason}",), 0.0)


def _read(
    problem: Problem,
) -> tuple[Float[np.ndarray, " c"], Float[np.ndarray, " c"], Float[Tensor, " n"], list[Float[Tensor, " n"]] | None]:
    """Totals and weights of the chunks, the summed gradient, and that of each chunk while all fit the memory."""
    totals: list[float] = []
    weights: list[float] = []
    parts: list[Tensor] | None = []
    room = problem.memory
    # At least single precision: a sum of many chunks in half precision keeps three digits.
    wide = torch.promote_types(problem.dtype, torch.float32)
    summed = torch.zeros(problem.n, dtype=wide, device=problem.device)
    for _, total, weight, part in problem.chunk_gradients():
        totals.append(float(total))
        weights.append(weight)
        summed += part
        if parts is not None:
            parts.append(part)
            # One more is taken for the gradient that leaves a chunk out.
            if part.nbytes * len(parts) + summed.nbytes > room:
                parts = None
    return np.array(totals), np.array(weights), summed, parts


def _left(
    denominator: float, weights: Float[np.ndarray, " c"], chunks: Float[np.ndarray, " d"]
) -> Float[np.ndarray, " d"]:
    """What is left of all weights without each of some chunks keeps the denominator that its share has in the whole."""
    rest = weights.sum() - chunks
    return np.where(rest > 0, denominator * rest / (weights.sum() or 1.0), np.nan)


def _norms_without(
    summed: Float[Tensor, " n"],
    parts: list[Float[Tensor, " n"]] | None,
    left: Float[np.ndarray, " c"],
    pieces: Sequence[slice],
) -> Float[np.ndarray, "c L"]:
    """Norms of the gradient without each chunk of this rank, NaN where they were not kept."""
    if parts is None:
        return np.full((len(left), len(pieces)), np.nan)
    left_out = (torch.sub(summed, part).div_(rest) for part, rest in zip(parts, left.tolist(), strict=True))
    return np.array([_norms(gradient, pieces) for gradient in left_out])


def _norms(flat: Float[Tensor, " n"], pieces: Sequence[slice]) -> Float[np.ndarray, " L"]:
    return np.array([float(torch.linalg.vector_norm(flat[where], dtype=torch.float64)) for where in pieces])
