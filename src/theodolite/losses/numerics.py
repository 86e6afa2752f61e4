"""Arithmetic that stays finite with its first two derivatives where the textbook formula does not."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

NEGLIGIBLE = -1e30  # in place of −∞ under a log-sum-exp: its second derivative there is 0, not NaN


def log1mexp(x: Float[Tensor, "*d"]) -> Float[Tensor, "*d"]:
    """Return log(1 − e^{−x}) for x > 0, exact at both ends.

    References:
        Mächler 2012, "Accurately computing log(1 − exp(−|a|))".
    """
    near = x < math.log(2.0)
    small = torch.where(near, x, 1.0)
    large = torch.where(near, 1.0, x)
    return torch.where(near, torch.log(-torch.expm1(-small)), torch.log1p(-torch.exp(-large)))


def capped_exp(x: Float[Tensor, "*d"], cap: float = 30.0) -> Float[Tensor, "*d"]:
    """Return e^x, continued along its tangent beyond ``cap`` so that value and gradient stay finite.

    e^30 ≈ 1e13: a loss that reaches the cap has failed already, and float32 still holds sums of it.
    """
    return torch.exp(x.clamp(max=cap)) * (1 + (x - cap).clamp(min=0.0))


def safe_norm(x: Float[Tensor, "*d k"]) -> Float[Tensor, "*d"]:
    """Return the Euclidean norm along the last axis with a zero gradient, instead of NaN, at 0."""
    return safe_sqrt(x.square().sum(-1))


def safe_sqrt(x: Float[Tensor, "*d"], eps: float = 1e-24) -> Float[Tensor, "*d"]:
    """Return √x with a zero gradient, instead of infinity, where x ≤ eps."""
    small = x <= eps
    return torch.where(small, 0.0, torch.sqrt(torch.where(small, 1.0, x)))


def unit(x: Float[Tensor, "*d k"], eps: float = 1e-12) -> Float[Tensor, "*d k"]:
    """Return rows of unit length; rows shorter than ``eps`` are divided by ``eps``.

    ``F.normalize`` with the second derivative at 0 made finite: the collapsed embedding is a point that contrastive losses
    are surveyed at.
    """
    return x / safe_norm(x).clamp(min=eps)[..., None]
