"""Everything of a model and of the random state that a measure must not change, as comparable values."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def snapshot(model: nn.Module, *, python: bool = False) -> dict[str, Any]:
    """Bits of parameters, buffers and gradients, identities, addresses, flags, and the state of every generator.

    Args:
        model: what to look at.
        python: include Python's generator, which the type checker of the tests draws from at every list that it checks.
    """
    state: dict[str, Any] = {}
    for name, module in model.named_modules():
        state[f"{name}: training"] = module.training
    for name, tensor in [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]:
        state[name] = (id(tensor), tensor.data_ptr(), tensor.requires_grad, _bits(tensor))
        state[f"{name}: gradient"] = None if tensor.grad is None else (id(tensor.grad), _bits(tensor.grad))
    state["torch"] = _bits(torch.get_rng_state())
    state["python"] = random.getstate() if python else None
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    state["numpy"] = (name, keys.tobytes(), *rest)
    state["grad mode"] = torch.is_grad_enabled()
    state["fast path"] = torch.backends.mha.get_fastpath_enabled()
    return state


def _bits(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().numpy().tobytes()
