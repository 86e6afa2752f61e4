"""What checkpoints rely on, read from counterfactual data, and along the paths between them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from theodolite.errors import DataError, ProblemError
from theodolite.landscapes.paths.path import remarks
from theodolite.landscapes.paths.traveller import Checkpoint, Traveller
from theodolite.landscapes.reading import Reading
from theodolite.problem import Problem
from theodolite.problem.copies import on_data
from theodolite.records import Cost, Invariance
from theodolite.records.jackknife import jackknife_stderr

Change = Callable[[Any], Any]


def invariance(
    problem: Problem,
    changes: Mapping[str, Change],
    checkpoints: Mapping[str, Checkpoint],
    *,
    tol: float = 0.1,
    step: int | None = None,
) -> Invariance:
    """How much the loss of each checkpoint changes when the data do: a cue randomised, a cue removed, an image replaced.

    A checkpoint that is invariant to the removal of a cue does not rely on it. Checkpoints with the same invariances use the
    same mechanisms, and tend to be connected on the changed data too, which ``path`` shows on ``counterfactual(problem,
    change)``.

    Cost: one forward pass for each checkpoint on the data and on each of their changed copies, which are kept in memory.

    Args:
        problem: whose loss and data are read.
        changes: by name, functions from a batch to a changed one with as many samples in the same order.
        checkpoints: by name, each as for ``path``.
        tol: largest change of the loss that counts as invariant, in its units. The interval of the change at 95 % must lie
            within, so that it should be several of its standard errors; and a small share, say a tenth, of what the change
            costs a checkpoint that is known to rely on the cue.
        step: optimiser step, kept in the record.

    Returns:
        Gaps with errors from the data, and which checkpoints agree.

    Raises:
        ProblemError: no change or no checkpoint.
        DataError: a change does not keep the number of samples.
        CheckpointError: a checkpoint does not fit the model.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> problem = Problem(nn.Linear(3, 1), nn.MSELoss(), [(torch.randn(8, 3), torch.randn(8, 1)) for _ in range(4)])
        >>> blind = {"weight": torch.tensor([[0.0, 1.0, 1.0]]), "bias": torch.zeros(1)}
        >>> drop = lambda batch: (batch[0] * torch.tensor([0.0, 1.0, 1.0]), batch[1])
        >>> invariance(problem, {"first removed": drop}, {"blind": blind}).invariant.tolist()
        [[True]]

    References:
        Lubana, Bigelow, Dick, Krueger & Tanaka, "Mechanistic mode connectivity" (2023).
    """
    started = time.perf_counter()
    if not changes or not checkpoints:
        raise ProblemError(
            f"Expected at least one change and one checkpoint, found {len(changes)} changes and {len(checkpoints)} checkpoints."
        )
    traveller = Traveller(problem)
    others = [Traveller(counterfactual(problem, change)) for change in changes.values()]
    states = [traveller.state_of(checkpoint) for checkpoint in checkpoints.values()]
    base = [traveller.read(state) for state in states]
    changed = [[other.read(state) for other in others] for state in states]
    return Invariance(
        step=step,
        names=tuple(checkpoints),
        changes=tuple(changes),
        losses=np.array([reading.loss for reading in base]),
        gaps=np.array([[after.loss - before.loss for after in row] for before, row in zip(base, changed, strict=True)]),
        stderrs=np.array(
            [[_stderr(before, after) for after in row] for before, row in zip(base, changed, strict=True)]
        ),
        tol=tol,
        cost=Cost(forwards=float(len(states) * (1 + len(changes))), seconds=time.perf_counter() - started),
        notes=remarks(base),
        context=problem.context() | {"chunks": int((base[0].weights > 0).sum())},
    )


def counterfactual(problem: Problem, change: Change) -> Problem:
    """The same problem on changed data.

    Cost: the memory of the changed data.

    Args:
        problem: whose data are changed.
        change: function from a batch to a changed one with as many samples.

    Raises:
        DataError: a batch has another number of samples afterwards.
    """
    batches = []
    for index, batch in enumerate(problem.batches):
        after = change(batch)
        before, found = problem.objective.samples(batch), problem.objective.samples(after)
        if before != found:
            raise DataError(
                f"Expected a change that keeps the {before} samples of batch {index}, so that both losses are of the same "
                f"samples, found {found}. Change samples in their place."
            )
        batches.append(after)
    return on_data(problem, batches)


def _stderr(before: Reading, after: Reading) -> float:
    """Of the difference, with the same chunk left out on both sides."""
    left_out = (after.left_out - before.left_out)[:, None]
    return float(jackknife_stderr(left_out, whole=np.array([after.loss - before.loss]), weights=before.weights)[0])
