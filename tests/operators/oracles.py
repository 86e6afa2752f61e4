"""Dense outputs and Jacobians by plain torch.autograd, row by row, on the live model and all data at once."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from families import Family, features, labels, merged, mlp

BITS = torch.rand(17, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

BINARY = Family(
    "mlp-binary",
    mlp,
    nn.BCEWithLogitsLoss(weight=torch.tensor([0.5, 1.0, 2.0]), pos_weight=torch.tensor([3.0, 1.0, 0.25])),
    lambda: list(zip(features((7, 7, 3), 5), BITS.round().split([7, 7, 3]), strict=True)),
)
PIXELS = Family(
    "pixels",
    lambda: nn.Conv2d(1, 3, 2),
    nn.CrossEntropyLoss(weight=torch.tensor([0.5, 1.0, 2.0])),
    lambda: list(zip(features((3, 2), 1, 3, 3), labels((3, 2), 3, 2, 2), strict=True)),
)


def outputs_and_jacobian(family: Family) -> tuple[Tensor, Tensor, Any]:
    """Outputs of all samples, their Jacobian with one row an entry, and the targets."""
    model, batches = family.model_and_data()
    model = copy.deepcopy(model).eval()
    (batch,) = merged(batches)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with sdpa_kernel(SDPBackend.MATH):
        outputs = model(batch[0])
        rows = [
            torch.cat([part.reshape(-1) for part in torch.autograd.grad(entry, parameters, retain_graph=True)])
            for entry in outputs.reshape(-1)
        ]
    return outputs.detach(), torch.stack(rows), batch[1]


def by_class(tensor: Tensor) -> Tensor:
    """(B, C, …) as (positions, C), position by position."""
    return tensor.movedim(1, -1).reshape(-1, tensor.shape[1])


def rows_by_class(jacobian: Tensor, outputs: Tensor) -> Tensor:
    """Rows of a Jacobian of outputs (B, C, …) as (positions, C, n)."""
    n = jacobian.shape[1]
    return jacobian.reshape(*outputs.shape, n).movedim(1, -2).reshape(-1, outputs.shape[1], n)
