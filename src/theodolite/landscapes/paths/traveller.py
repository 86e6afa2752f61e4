"""A copy of a model that is moved from checkpoint to checkpoint."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from theodolite.errors import CheckpointError, ProblemError
from theodolite.landscapes.reading import Reading
from theodolite.problem import Problem
from theodolite.problem.checkpoint import load_checkpoint
from theodolite.problem.copies import on_copy
from theodolite.records import Snapshot

State = Mapping[str, Tensor]
Checkpoint = State | nn.Module | Tensor | np.ndarray | Snapshot | str | os.PathLike[str]


@final
class Traveller:
    """A problem on a copy of its model, which is written to in the model's place.

    Args:
        problem: what is evaluated; its own model is only read.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = on_copy(problem)
        self._tensors = dict(self.problem.model.named_parameters()) | dict(self.problem.model.named_buffers())
        self._home = self.state()

    @property
    def statistics(self) -> bool:
        """Whether BatchNorm normalises by stored statistics, which belong to a checkpoint."""
        return self.problem.batchnorm is not None and self.problem.batchnorm != "batch statistics"

    def state(self) -> State:
        """Values of all parameters and buffers now, copied."""
        return {name: tensor.detach().clone() for name, tensor in self._tensors.items()}

    def go(self, state: State) -> None:
        """Take the values of a state."""
        with torch.no_grad():
            for name, tensor in self._tensors.items():
                tensor.copy_(state[name])

    def read(self, state: State) -> Reading:
        """The loss at a state.

        Cost: one forward pass.
        """
        self.go(state)
        return as_reading(self.problem, *self.problem.totals())

    def state_of(self, checkpoint: Checkpoint) -> State:
        """All parameters and buffers of a checkpoint, in the types of the problem; what it lacks is that of the model.

        A flat vector or snapshot holds the selected parameters alone. A state dict may lack buffers that are not saved.

        Raises:
            CheckpointError: names or shapes do not fit the model.
            ProblemError: a vector has another length, or the checkpoint is of a kind that is not known.
        """
        match checkpoint:
            case str() | os.PathLike():
                self.go(self._home)
                load_checkpoint(self.problem.model, checkpoint)
                return self.state()
            case nn.Module():
                return self._fitted({**dict(checkpoint.named_parameters()), **dict(checkpoint.named_buffers())})
            case Mapping():
                return self._fitted(checkpoint)
            case Snapshot():
                return self._flat(torch.from_numpy(np.array(checkpoint.parameters)))
            case np.ndarray():
                return self._flat(torch.from_numpy(np.array(checkpoint)))
            case Tensor():
                return self._flat(checkpoint)
        raise ProblemError(
            "Expected a checkpoint as a state dict, a module, a file, a Snapshot or a flat vector of the selected "
            f"parameters, found {type(checkpoint).__name__}."
        )

    def _flat(self, flat: Tensor) -> State:
        layout = self.problem.layout
        if tuple(flat.shape) != (layout.n,):
            raise ProblemError(
                f"Expected a vector of shape ({layout.n},), one number for each selected parameter in the order of "
                f"named_parameters(), found {tuple(flat.shape)}."
            )
        parts = layout.unflatten(flat.detach())
        return self._like_home(dict(zip(layout.names, parts, strict=True)))

    def _fitted(self, state: State) -> State:
        known = self.problem.model.state_dict().keys() | self._tensors.keys()
        missing = dict(self.problem.model.named_parameters()).keys() - state.keys()
        shapes = [
            f"{name} {tuple(value.shape)} for {tuple(self._tensors[name].shape)}"
            for name, value in state.items()
            if name in self._tensors and value.shape != self._tensors[name].shape
        ]
        unknown = sorted(state.keys() - known)
        if missing or shapes or unknown:
            raise CheckpointError(
                f"Expected a checkpoint of {type(self.problem.model).__name__}, found {len(missing)} parameters missing "
                f"({', '.join(sorted(missing)[:4]) or 'none'}), {len(unknown)} unknown ({', '.join(unknown[:4]) or 'none'}), "
                f"{len(shapes)} of other shape ({', '.join(shapes[:4]) or 'none'}). Give a state dict of the same model."
            )
        return self._like_home({name: value for name, value in state.items() if name in self._tensors})

    def _like_home(self, values: State) -> State:
        return {
            name: values[name].detach().to(home.device, home.dtype).clone() if name in values else home.clone()
            for name, home in self._home.items()
        }


def by_name(checkpoints: object) -> Mapping[str, Checkpoint]:
    """Several checkpoints by name, those of a list by their number in it.

    Raises:
        ProblemError: it is neither a mapping nor a list.
    """
    if isinstance(checkpoints, Mapping):
        return checkpoints
    if isinstance(checkpoints, list | tuple):
        return {str(index): checkpoint for index, checkpoint in enumerate(checkpoints)}
    raise ProblemError(
        "Expected several checkpoints by name, as {'one': first, 'two': second}, or a list of them, found "
        f"{type(checkpoints).__name__}."
    )


def as_reading(problem: Problem, totals: Float[Tensor, " c"], weights: Float[Tensor, " c"]) -> Reading:
    """A quantity from its totals on the chunks of a problem's data."""
    divisor = problem.total_weight(weights)
    return Reading(float(totals.sum()) / divisor, totals.numpy(), weights.numpy(), divisor)
