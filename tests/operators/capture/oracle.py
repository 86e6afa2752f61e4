"""Per-sample gradients by plain torch.autograd, one sample after the other on the live model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from theodolite.problem.data import split


def per_sample_gradients(model: nn.Module, total: Callable[[Any], Tensor], batch: Any) -> dict[str, Tensor]:
    """Gradients of ``total`` of every sample alone, (samples, *parameter), by the name of the parameter."""
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    rows = [
        torch.autograd.grad(total(sample), list(named.values()), materialize_grads=True) for sample in split(batch, 1)
    ]
    return {name: torch.stack(parts) for name, parts in zip(named, zip(*rows, strict=True), strict=True)}


def gram(gradients: Tensor) -> Tensor:
    flat = gradients.reshape(len(gradients), -1)
    return flat @ flat.T


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / (expected.norm() or 1.0))
