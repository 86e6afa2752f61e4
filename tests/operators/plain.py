"""The Hessian by plain torch.autograd on the live model, row by row, as an oracle that shares no code with the library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel


def gradient_and_hessian(model: nn.Module, loss: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """Both in all trainable parameters of ``model``, under math attention."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with sdpa_kernel(SDPBackend.MATH):
        gradient = flat(torch.autograd.grad(loss(), parameters, create_graph=True, materialize_grads=True))
        rows = [
            flat(torch.autograd.grad(entry, parameters, retain_graph=True, materialize_grads=True))
            for entry in gradient
        ]
    return gradient.detach(), torch.stack(rows)


def product(model: nn.Module, loss: Callable[[], Tensor], v: Tensor) -> Tensor:
    """One product, where a dense matrix would take too long."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with sdpa_kernel(SDPBackend.MATH):
        gradient = flat(torch.autograd.grad(loss(), parameters, create_graph=True, materialize_grads=True))
        return flat(torch.autograd.grad(gradient, parameters, v, materialize_grads=True))


def flat(parts: Any) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts])


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())
