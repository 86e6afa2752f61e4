"""Statistics of BatchNorm at states between checkpoints, where stored ones belong to neither."""

from __future__ import annotations

import torch

from theodolite.errors import DataError, ProblemError
from theodolite.landscapes.batchnorm import averaging
from theodolite.landscapes.paths.traveller import State, Traveller
from theodolite.problem import Chunk, Problem


def recalibrated(traveller: Traveller, state: State) -> State:
    """The state with the means and variances that its own activations have on the data of the problem.

    Every batch is normalised by its own statistics, and adds to the stored ones by its number of samples.

    Cost: one forward pass.

    Args:
        traveller: moved to the state.
        state: whose statistics are replaced.

    Raises:
        ProblemError: batches are cut into pieces, or lie on several ranks.
        DataError: a batch is too small to have a variance.

    References:
        Izmailov et al., "Averaging weights leads to wider optima and better generalization" (2018), section 3.2.
    """
    problem, seen = traveller.problem, 0
    if problem.microbatch is not None or problem.ranks.size > 1:
        raise ProblemError(
            f"Expected whole batches on one process to recalibrate BatchNorm on, found microbatch={problem.microbatch} and "
            f"{problem.ranks.size} ranks. Use smaller batches and group=None, or batchnorm='interpolated' for a path."
        )
    traveller.go(state)
    with problem.session():
        problem.ensure_checked()
        with averaging(problem.model) as share, torch.no_grad():
            for chunk in problem.chunks():
                seen += chunk.samples
                share(chunk.samples / seen)
                _pass(problem, chunk)
    return traveller.state()


def _pass(problem: Problem, chunk: Chunk) -> None:
    try:
        problem.objective.evaluate(problem.model, chunk.batch)
    except ValueError as error:
        raise DataError(
            f"Expected batches whose activations have a variance, to recalibrate BatchNorm, found chunk {chunk.index} of "
            f"{chunk.samples} samples: {error} Use larger batches, or batchnorm='interpolated'."
        ) from error
