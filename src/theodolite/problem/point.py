"""Parameters and buffers at which a problem is evaluated, and how to tell when they have changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

PLAIN = (bool, int, float, str)
# Longer ones are tables, such as vocabularies, which take long to compare and do not change.
SHORT = 64
# What every module has, training flags among it, which a problem sets.
OWN = frozenset(nn.Module().__dict__)


@dataclass(frozen=True)
class Point:
    """Parameters and buffers at which the problem is evaluated.

    Args:
        leaves: the selected parameters, one tensor each, that derivatives are taken in.
        constants: all other parameters.
        buffers: values of the buffers, cloned for every evaluation.
        version: changes when an optimiser or ``load_state_dict`` writes to the model.
    """

    leaves: tuple[Tensor, ...]
    constants: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    version: tuple[object, ...]

    def fresh_buffers(self) -> dict[str, Tensor]:
        """Copies that an evaluation may write to."""
        return {name: buffer.clone() for name, buffer in self.buffers.items()}


def read_point(
    model: nn.Module, selected: tuple[str, ...], *, cast: torch.dtype | None, version: tuple[object, ...]
) -> Point:
    """The current values of ``model``, cast where asked, without copying where none is needed."""
    parameters = {name: _converted(parameter, cast) for name, parameter in model.named_parameters()}
    leaves = tuple(parameters.pop(name).requires_grad_() for name in selected)
    buffers = {name: _converted(buffer, cast) for name, buffer in model.named_buffers()}
    return Point(leaves, parameters, buffers, version)


def version_of(model: nn.Module) -> tuple[object, ...]:
    """What changes with the values of ``model``: counters of in-place writes, addresses, sums of the values.

    The sums see writes through ``.data``, as of many averaging schemes, which the counters do not.
    """
    tensors = [*model.parameters(), *model.buffers()]
    counts = [0 if tensor.is_inference() else tensor._version for tensor in tensors]
    addresses = [tensor.data_ptr() for tensor in tensors]
    return (*counts, *addresses, *sums_of([tensor for tensor in tensors if tensor.is_floating_point()]))


def attributes_of(model: nn.Module) -> dict[tuple[int, str], object]:
    """Numbers, flags and words that the modules hold beside their tensors, by module and name.

    A forward pass may use them: switches and scales of adapters, temperatures. Of short lists and mappings those inside.
    """
    return {
        (index, name): plain
        for index, module in enumerate(model.modules())
        for name, value in module.__dict__.items()
        if name not in OWN and (plain := _plain(value)) is not None
    }


def _plain(value: object) -> object:
    """The value if it is a number, flag or word, those that a short list or mapping holds, None for anything else."""
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, list | tuple) and len(value) <= SHORT:
        return tuple(entry for entry in value if isinstance(entry, PLAIN))
    if isinstance(value, dict) and len(value) <= SHORT:
        return tuple((key, entry) for key, entry in value.items() if isinstance(entry, PLAIN))
    return None


def sums_of(tensors: list[Tensor]) -> list[float]:
    """Two numbers for each tensor: its norm, and the sum of its first half, which a permutation changes too."""
    if not tensors:
        return []
    with torch.no_grad():
        norms = torch._foreach_norm(tensors)
        halves = [tensor.detach().reshape(-1)[: (tensor.numel() + 1) // 2].sum() for tensor in tensors]
        return torch.stack([value.double() for value in (*norms, *halves)]).nan_to_num(nan=-1.0).tolist()


def _converted(tensor: Tensor, cast: torch.dtype | None) -> Tensor:
    """A tensor that shares storage where the dtype stays, so that no memory is taken, but no history or hooks."""
    with torch.inference_mode(False):
        detached = tensor.detach().clone() if tensor.is_inference() else tensor.detach()
        return detached.to(cast) if cast is not None and tensor.is_floating_point() else detached
