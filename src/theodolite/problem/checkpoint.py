"""Load the weights of a checkpoint safely: safetensors, or torch files without code."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from theodolite.errors import CheckpointError

# Where training scripts keep the state dict inside a larger checkpoint.
NESTED = ("state_dict", "model_state_dict", "model", "module")


def load_checkpoint(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load the weights of ``path`` into ``model``, all or none of them.

    Args:
        model: must have the parameters and buffers of the checkpoint, under the same names and shapes.
        path: a ``.safetensors`` file, or a torch file with a state dict, bare or under ``state_dict``,
            ``model_state_dict``, ``model`` or ``module``; prefixes of compiled and data-parallel models are taken off.

    Raises:
        CheckpointError: the file cannot be read safely, or does not fit the model; names what differs.
    """
    load_state(model, read_state(path), source=str(path))


def read_state(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, on the CPU, without prefixes of wrappers.

    Args:
        path: as for ``load_checkpoint``.

    Raises:
        CheckpointError: the file cannot be read safely, or holds no state dict.
    """
    return _without_prefix(_state_dict(Path(path)))


def load_state(model: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Load tensors by name into ``model``, all or none of them.

    Args:
        model: as for ``load_checkpoint``.
        state: what ``model.state_dict()`` was.
        source: where the state is from, for the message of an error.

    Raises:
        CheckpointError: it does not fit the model; names what differs.
    """
    expected = model.state_dict()
    missing, foreign = expected.keys() - state.keys(), state.keys() - expected.keys()
    shapes = [
        f"{name} {tuple(state[name].shape)} for {tuple(expected[name].shape)}"
        for name in expected.keys() & state.keys()
        if state[name].shape != expected[name].shape
    ]
    if missing or foreign or shapes:
        raise CheckpointError(
            f"{source} does not fit {type(model).__name__}: {len(missing)} names missing ({_some(missing)}), "
            f"{len(foreign)} unknown ({_some(foreign)}), {len(shapes)} of other shape ({_some(shapes)}). "
            "Build the model with the options that it was trained with."
        )
    model.load_state_dict(state)


def _state_dict(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"Expected a checkpoint file, found none at {path}.")
    if path.suffix == ".safetensors":
        return _safetensors(path)
    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise CheckpointError(
            f"{path} cannot be loaded as weights only: it is damaged, or carries code, as a pickled model does. Such files are "
            "refused; save model.state_dict() with torch.save, or use safetensors."
        ) from error
    for name in NESTED:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(name), Mapping):
            loaded = loaded[name]
            break
    if not isinstance(loaded, Mapping) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise CheckpointError(f"Expected a state dict of tensors in {path}, found {type(loaded).__name__}.")
    return loaded


def _safetensors(path: Path) -> Mapping[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError('Reading .safetensors needs: pip install "theodolite[all]".') from error
    try:
        return dict(load_file(path))
    except Exception as error:  # the library's own error class has no public name
        raise CheckpointError(f"{path} cannot be read as safetensors: {error}.") from error


def _without_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for prefix in ("_orig_mod.", "module."):
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return dict(state)


def _some(names: Any) -> str:
    listed = sorted(names)
    return ", ".join(listed[:4]) + (", …" if len(listed) > 4 else "") if listed else "none"
