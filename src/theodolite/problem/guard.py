"""The guard that leaves a model as it was found."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@contextmanager
def undisturbed(model: nn.Module, *, copy: bool = True) -> Iterator[nn.Module]:
    """Restore ``model`` and all random state on leaving, also after an exception or Ctrl-C.

    Restored are training flags, ``requires_grad``, ``.grad`` (the same tensor object with its values), parameters,
    buffers, and the random state of torch on every device, of Python and of numpy. What did not change is not written
    to, so that a graph that was built before and is differentiated afterwards stays valid.

    Cost: one copy of parameters, buffers and gradients with ``copy=True``, nothing that grows with the model otherwise.

    Args:
        model: the model to protect.
        copy: also restore the values of parameters, buffers and gradients. Theodolite's own measures replace parameters
            and buffers functionally and never write to them, so they use ``copy=False``.

    Example:
        >>> model = nn.BatchNorm1d(2)
        >>> with undisturbed(model):
        ...     _ = model(torch.randn(8, 2))
        >>> int(model.num_batches_tracked)
        0
    """
    flags = [(module, module.training) for module in model.modules()]
    parameters = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    values = _Values(model) if copy else None
    state = random_state()
    try:
        yield model
    finally:
        if values is not None:
            values.restore()
        for parameter, requires_grad, grad in parameters:
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad
        for module, training in flags:
            module.training = training
        restore_random_state(state)


class _Values:
    """Parameters, buffers and gradients: which tensors a model holds, and what is in them."""

    def __init__(self, model: nn.Module) -> None:
        self._held = [(module, dict(module._parameters), dict(module._buffers)) for module in model.modules()]
        tensors = [*model.parameters(), *model.buffers()]
        tensors += [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        self._values = [(tensor, tensor.data, tensor._version, tensor.detach().clone()) for tensor in tensors]

    def restore(self) -> None:
        for module, parameters, buffers in self._held:
            module._parameters.clear()
            module._parameters.update(parameters)
            module._buffers.clear()
            module._buffers.update(buffers)
        with torch.no_grad():
            for tensor, storage, version, value in self._values:
                if tensor.data_ptr() != storage.data_ptr():
                    tensor.data = storage
                if tensor._version != version or not torch.equal(tensor, value):
                    tensor.copy_(value)


@dataclass(frozen=True)
class RandomState:
    """The state of every random number generator that a model or loader may draw from."""

    torch: Tensor
    cuda: list[Tensor]
    python: Any
    numpy: Any


def random_state() -> RandomState:
    """The state of all generators now."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    numpy = np.random.get_state()  # noqa: NPY002 - the user's, not ours
    return RandomState(torch.get_rng_state(), cuda, random.getstate(), numpy)


def restore_random_state(state: RandomState) -> None:
    """Put back what ``random_state`` returned."""
    torch.set_rng_state(state.torch)
    if state.cuda:
        torch.cuda.set_rng_state_all(state.cuda)
    random.setstate(state.python)
    np.random.set_state(state.numpy)  # noqa: NPY002


def seed_everything(seed: int) -> None:
    """Seed torch, Python and numpy, so that dropout and the like draw the same numbers at every pass.

    ``torch.manual_seed`` would also leave a seed for accelerators that are started later.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - layers that draw from numpy draw from its global generator
