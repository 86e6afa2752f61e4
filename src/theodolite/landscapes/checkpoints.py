"""Checkpoints in any form: files, state dicts, models, snapshots, flat vectors, or functions that fetch one of these."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from theodolite.errors import CheckpointError
from theodolite.problem import Problem
from theodolite.problem.arrays import to_numpy
from theodolite.problem.checkpoint import load_state, read_state
from theodolite.records import Snapshot, read

Checkpoint = (
    nn.Module | Snapshot | Mapping[str, Tensor] | str | os.PathLike[str] | Tensor | np.ndarray | Callable[[], Any]
)
# A folder is that of a run log, whose snapshots they are; a mapping gives the optimiser step of each.
Checkpoints = str | os.PathLike[str] | Mapping[int, Checkpoint] | Iterable[Checkpoint]


def at_checkpoint(problem: Problem, checkpoint: Checkpoint) -> Problem:
    """The same problem on a copy of its model that stands at a checkpoint.

    From a file, state dict or model everything is taken, the statistics of BatchNorm too; snapshots and flat vectors hold the
    selected parameters alone, and the rest stays as it is.

    Args:
        problem: whose model is copied.
        checkpoint: a ``.safetensors`` or torch file, a state dict or model, a ``Snapshot``, n numbers in the order of
            ``named_parameters()``, or a function that returns one of these.

    Raises:
        CheckpointError: it does not fit the model.
    """
    moved = problem.on(copy.deepcopy(problem.model))
    put(moved, checkpoint)
    return moved


def put(problem: Problem, checkpoint: Checkpoint) -> None:
    """Write a checkpoint to the model of a problem, which is not that of a training."""
    found, source = _fetched(checkpoint)
    if isinstance(found, Mapping):
        load_state(problem.model, found, source=source)
        return
    parts = problem.layout.unflatten(_fitting(problem, found, source))
    named = dict(problem.model.named_parameters())
    with torch.no_grad():
        for name, part in zip(problem.layout.names, parts, strict=True):
            named[name].copy_(part)


def flat_of(problem: Problem, checkpoint: Checkpoint) -> Float[np.ndarray, " n"]:
    """The selected parameters of a checkpoint, in single precision at least.

    Raises:
        CheckpointError: it does not fit the model.
    """
    found, source = _fetched(checkpoint)
    if not isinstance(found, Mapping):
        return to_numpy(_fitting(problem, found, source))
    missing = [name for name in problem.layout.names if name not in found]
    if missing:
        raise CheckpointError(
            f"Expected all {len(problem.layout.names)} surveyed parameters in {source}, found none named {', '.join(missing[:4])}."
        )
    for name, shape in zip(problem.layout.names, problem.layout.shapes, strict=True):
        if found[name].shape != shape:  # a transposed weight has as many numbers
            raise CheckpointError(
                f"Expected {name} of shape {tuple(shape)} in {source}, found {tuple(found[name].shape)}. Take checkpoints of the "
                "same model."
            )
    return to_numpy(_fitting(problem, problem.layout.flatten([found[name] for name in problem.layout.names]), source))


def snapshots(problem: Problem, checkpoints: Checkpoints) -> tuple[Snapshot, ...]:
    """The selected parameters of checkpoints, one after the other, as the trajectory of a plane takes them.

    Cost: memory for the selected parameters of all; of the rest one checkpoint at a time.

    Args:
        problem: whose parameters they are.
        checkpoints: in any form that ``at_checkpoint`` takes, in the order of training; ``{step: checkpoint}``; or the folder
            of a run log, for the snapshots that a monitor took.

    Raises:
        CheckpointError: one does not fit the model.
    """
    return tuple(
        Snapshot(step=step, parameters=flat_of(problem, checkpoint)) for step, checkpoint in stepped(checkpoints)
    )


def stepped(checkpoints: Checkpoints) -> Iterator[tuple[int | None, Checkpoint]]:
    """Checkpoints with their optimiser steps, where they are known."""
    if isinstance(checkpoints, str | os.PathLike):
        found: Sequence[Checkpoint] = [record for record in read(checkpoints).current if isinstance(record, Snapshot)]
        if not found:
            raise CheckpointError(
                f"Expected snapshots in the run log {Path(checkpoints)}, found none. Watch the run with Monitor(snapshots=...)."
            )
        checkpoints = found
    if isinstance(checkpoints, Mapping):
        if not all(isinstance(step, int) for step in checkpoints):
            keys = ", ".join(map(repr, list(checkpoints)[:3]))
            raise CheckpointError(
                f"Expected checkpoints by their optimiser step, found the keys {keys}, …. Give several state dicts as a list."
            )
        yield from checkpoints.items()
        return
    for checkpoint in checkpoints:
        yield checkpoint.step if isinstance(checkpoint, Snapshot) else None, checkpoint


def _fetched(checkpoint: Checkpoint) -> tuple[Mapping[str, Tensor] | Tensor | np.ndarray, str]:
    """Tensors by name or a flat vector, and where they are from."""
    while callable(checkpoint) and not isinstance(checkpoint, nn.Module):
        checkpoint = checkpoint()
    if isinstance(checkpoint, nn.Module):
        return checkpoint.state_dict(), "the model"
    if isinstance(checkpoint, str | os.PathLike):
        return read_state(checkpoint), str(checkpoint)
    if isinstance(checkpoint, Snapshot):
        return checkpoint.parameters, "the snapshot" + (
            f" of step {checkpoint.step}" if checkpoint.step is not None else ""
        )
    if isinstance(checkpoint, Mapping):
        return checkpoint, "the state dict"
    if isinstance(checkpoint, Tensor | np.ndarray):
        return checkpoint, "the vector"
    raise CheckpointError(
        f"Expected a checkpoint as a file, state dict, model, Snapshot, flat vector or function that returns one, found "
        f"{type(checkpoint).__name__}."
    )


def _fitting(problem: Problem, vector: Tensor | np.ndarray, source: str) -> Float[Tensor, " n"]:
    flat = torch.from_numpy(np.array(vector)) if isinstance(vector, np.ndarray) else vector.detach()
    if tuple(flat.shape) != (problem.n,):
        raise CheckpointError(
            f"Expected {problem.n} numbers, one for each surveyed parameter, found shape {tuple(flat.shape)} in {source}. Take "
            "checkpoints of the same model with the same params."
        )
    return flat
