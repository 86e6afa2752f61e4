"""Samples whose losses are their own: what every reading of single samples stands on."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from theodolite.errors import OperatorError
from theodolite.operators.covariance import refuse_coupled_samples
from theodolite.operators.stacked import refuse_sharded
from theodolite.problem import Problem
from theodolite.problem.data import move, piece, samples_of

# Rounding of a forward pass on one sample against the same among others, in units of the type's.
ROUNDINGS = 1e4


def refuse_mixed_samples(problem: Problem) -> None:
    """Raise unless samples have losses of their own: the first and last of a batch lose alone what they lose in it.

    BatchNorm and criteria of whole batches are known; this finds what else mixes samples, such as a model that centres its inputs
    by their mean over the batch. Only the known is refused with dropout, as a sample alone has another mask, and where a sample
    cannot be cut out of the batch, whose losses are then those that the criterion gives the outputs.

    Cost: a forward pass of the first batch, and of two samples.

    Raises:
        OperatorError: samples are coupled or mixed, or ranks share the data.
        DataError: the first dimension does not count samples.
        ProblemError: the loss cannot be evaluated on some samples.
    """
    refuse_sharded(problem)
    refuse_coupled_samples(problem)
    problem.ensure_checked()
    batch = problem.batches.first()
    count = problem.objective.samples(batch)
    if problem.mode != "eval" or count < 2 or samples_of(batch) != count:
        return
    point = problem.point()

    def shares(model: nn.Module, part: object) -> Tensor:
        with torch.no_grad():
            placed = move(part, device=problem.device, dtype=problem.cast)
            return problem.objective.shares(model, placed).double().cpu()

    ends = torch.tensor([0, count - 1])
    found = problem.call(partial(shares, part=batch), point)
    singles = [piece(batch, at, at + 1) for at in ends.tolist()]
    alone = torch.cat([problem.call(partial(shares, part=single), point) for single in singles])
    scale = float(found.nan_to_num(posinf=0.0, neginf=0.0).abs().max())
    gaps = (found[ends] - alone).abs().nan_to_num(posinf=0.0)  # what is not finite is a reading
    if float(gaps.max()) > ROUNDINGS * torch.finfo(problem.dtype).eps * scale:
        worst = int(gaps.argmax())
        raise OperatorError(
            f"Expected samples with a loss of their own, found {float(found[ends][worst]):.6g} for sample {int(ends[worst])} in "
            f"its batch and {float(alone[worst]):.6g} alone. Something mixes samples (a mean or a norm over the batch in the model "
            "or the loss), or the first dimension does not count samples."
        )
