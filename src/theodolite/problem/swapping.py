"""A module called with other tensors in place of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def called_with(
    module: nn.Module, tensors: Mapping[str, Tensor], inputs: tuple[Any, ...], options: Mapping[str, Any] | None = None
) -> Any:
    """``torch.func.functional_call`` after which every module has its own parameters and buffers again.

    That function alone swaps a module that is reached under several names once for each name, and puts back what the last
    swap found: the tensors that it had put there itself (torch 2.13).

    Args:
        module: what is called.
        tensors: in place of parameters and buffers, by name.
        inputs: of the module.
        options: its keyword arguments.
    """
    parts: list[dict[str, Any]] = [
        part.__dict__[name] for part in _several_names(module) for name in ("_parameters", "_buffers")
    ]
    own = [(held, dict(held)) for held in parts]
    try:
        return torch.func.functional_call(module, dict(tensors), inputs, dict(options or {}))
    finally:
        for held, before in own:
            held.update(before)


def _several_names(module: nn.Module) -> list[nn.Module]:
    """Modules reached in more than one way."""
    seen: set[nn.Module] = set()
    again: dict[nn.Module, None] = {}
    for _, part in module.named_modules(remove_duplicate=False):
        if part in seen:
            again[part] = None
        seen.add(part)
    return list(again)
