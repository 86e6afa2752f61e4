"""Maps of logits that recalibrate a frozen classifier: a temperature, a scale and shift a class, a monotone curve."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class TemperatureScaling(nn.Module):
    """z/T with one T > 0, which keeps the order of the classes.

    References:
        Guo et al. 2017, "On Calibration of Modern Neural Networks".
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_temperature = nn.Parameter(torch.tensor(0.0))

    def forward(self, logits: Float[Tensor, "b c"]) -> Float[Tensor, "b c"]:
        """Return the scaled logits."""
        return logits * torch.exp(-self.log_temperature)


class VectorScaling(nn.Module):
    """a ⊙ z + b, a scale and a shift for each class.

    Args:
        classes: C.

    References:
        Guo et al. 2017, "On Calibration of Modern Neural Networks".
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(classes))
        self.shift = nn.Parameter(torch.zeros(classes))

    def forward(self, logits: Float[Tensor, "b c"]) -> Float[Tensor, "b c"]:
        """Return the scaled and shifted logits."""
        return self.scale * logits + self.shift


class MonotoneScaling(nn.Module):
    """One increasing curve for all logits, z + Σ_k a_k softplus(b_k z + c_k) with a, b > 0: keeps the order of the classes.

    Args:
        width: number of bends.

    References:
        Rahimi et al. 2020, "Intra Order-preserving Functions for Calibration of Multi-Class Neural Networks".
    """

    def __init__(self, *, width: int = 16) -> None:
        super().__init__()
        self.heights = nn.Parameter(torch.full((width,), -3.0))
        self.slopes = nn.Parameter(torch.full((width,), math.log(math.e - 1)))
        self.offsets = nn.Parameter(torch.linspace(-5.0, 5.0, width))
        self.linear = nn.Parameter(torch.tensor(math.log(math.e - 1)))

    def forward(self, logits: Float[Tensor, "b c"]) -> Float[Tensor, "b c"]:
        """Return the bent logits."""
        bends = F.softplus(F.softplus(self.slopes) * logits[..., None] + self.offsets)
        bent: Tensor = F.softplus(self.linear) * logits + bends @ F.softplus(self.heights)
        return bent
