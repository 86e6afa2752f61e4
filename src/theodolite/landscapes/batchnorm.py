"""Statistics of BatchNorm at a displaced point: stored ones, those of each batch, or recalibrated on the data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

from torch import nn

from theodolite.errors import ProblemError
from theodolite.problem import Problem

BatchNorm = Literal["stored", "batch", "recalibrated"]


def checked(batchnorm: BatchNorm | None, problem: Problem) -> BatchNorm | None:
    """The option, None for a model without BatchNorm, to which all are one.

    Raises:
        ProblemError: there is no such option, no statistics are stored, pieces of a batch would be normalised apart, or the data
            to recalibrate on lie on several ranks.
    """
    if batchnorm is not None and batchnorm not in get_args(BatchNorm):
        raise ProblemError(f"Expected batchnorm among {', '.join(get_args(BatchNorm))} or None, found {batchnorm!r}.")
    norms = norms_of(problem.model)
    if not norms or batchnorm is None:
        return None
    if batchnorm != "stored" and problem.microbatch is not None:
        raise ProblemError(
            f"Expected microbatch=None for batchnorm={batchnorm!r}, found microbatch={problem.microbatch}: the pieces would be "
            "normalised apart. Use smaller batches, or batchnorm='stored'."
        )
    if batchnorm == "recalibrated" and problem.ranks.size > 1:
        raise ProblemError(
            f"Expected all data on one process to recalibrate BatchNorm, found {problem.ranks.size} ranks with a part each. Pass "
            "group=None to the problem, with all data on every rank, and divide points instead of data."
        )
    if batchnorm != "batch" and any(norm.running_mean is None for norm in norms):
        raise ProblemError(
            f"Expected BatchNorm layers that store statistics for batchnorm={batchnorm!r}, found track_running_stats=False. Use "
            "batchnorm='batch'."
        )
    return batchnorm


def norms_of(model: nn.Module) -> list[Any]:
    """All BatchNorm layers."""
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


@contextmanager
def statistics(model: nn.Module, *, batch: bool) -> Iterator[None]:
    """BatchNorm on the statistics of its batch, or on stored ones, whatever the rest of the model does."""
    norms = norms_of(model)
    before = [norm.training for norm in norms]
    for norm in norms:
        norm.training = batch
    try:
        yield
    finally:
        for norm, flag in zip(norms, before, strict=True):
            norm.training = flag


@contextmanager
def averaging(model: nn.Module) -> Iterator[Callable[[float], None]]:
    """Forward passes inside leave in the buffers the mean of the statistics of their batches, by samples, from nothing.

    Yields:
        What sets the share of the next batch among the samples so far, itself included.

    References:
        Izmailov, Podoprikhin, Garipov, Vetrov & Wilson, "Averaging weights leads to wider optima" (2018), section 3.2.
    """
    norms = norms_of(model)
    before = [norm.momentum for norm in norms]

    def share(value: float) -> None:
        for norm in norms:
            norm.momentum = value

    for norm in norms:
        norm.reset_running_stats()
    try:
        with statistics(model, batch=True):
            yield share
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum
