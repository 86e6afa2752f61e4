"""Statistics of BatchNorm at states between checkpoints, where stored ones belong to neither."""

from __future__ import annotations

import torch
from torch import nn

from theodolite.errors import DataError
from theodolite.landscapes.paths.traveller import State, Traveller


def recalibrated(traveller: Traveller, state: State) -> State:
    """The state with the means and variances that its own activations have on the data of the problem.

    Every batch is normalised by its own statistics, and adds to the stored ones by its number of samples.

    Cost: one forward pass.

    Args:
        traveller: moved to the state.
        state: whose statistics are replaced.

    Raises:
        DataError: a batch is too small to have a variance.

    References:
        Izmailov et al., "Averaging weights leads to wider optima and better generalization" (2018), section 3.2.
    """
    traveller.go(state)
    problem = traveller.problem
    norms = [
        module
        for module in problem.model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
    ]
    momenta = [norm.momentum for norm in norms]
    try:
        with problem.session():
            _gather(traveller, norms)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    return traveller.state()


def _gather(traveller: Traveller, norms: list[nn.modules.batchnorm._BatchNorm]) -> None:
    problem, seen = traveller.problem, 0
    problem.ensure_checked()
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
    for chunk in problem.chunks():
        seen += chunk.samples
        for norm in norms:
            norm.momentum = chunk.samples / seen
        try:
            with torch.no_grad():
                problem.objective.evaluate(problem.model, chunk.batch)
        except ValueError as error:
            raise DataError(
                f"Expected batches whose activations have a variance, to recalibrate BatchNorm, found chunk {chunk.index} of "
                f"{chunk.samples} samples: {error} Use larger batches, or batchnorm='interpolated'."
            ) from error
