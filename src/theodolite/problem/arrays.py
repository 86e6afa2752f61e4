"""Tensors as numpy arrays, whatever their type and place."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def to_numpy(tensor: Float[Tensor, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """The values on the CPU, in single precision at least: numpy has no bfloat16."""
    wide = tensor if tensor.dtype == torch.float64 else tensor.float()
    array: np.ndarray = wide.detach().cpu().numpy()
    return array
