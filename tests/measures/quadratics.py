"""Quadratic losses with known gradient, Hessian and data error, as problems."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from theodolite.problem import Problem


class Vector(nn.Module):
    """θ itself."""

    def __init__(self, theta: Tensor) -> None:
        super().__init__()
        self.theta = nn.Parameter(theta.clone())


def symmetric(n: int, *, seed: int = 0, positive: bool = False) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    A = torch.randn(n, n, generator=g, dtype=torch.float64)
    return A @ A.T / n + 0.05 * torch.eye(n, dtype=torch.float64) if positive else (A + A.T) / 2


def quadratic(hessians: Tensor | Sequence[Tensor], slopes: Sequence[Tensor], *, theta: Tensor | None = None) -> Problem:
    """L = mean over samples of g_iᵀθ + ½ θᵀH_iθ, each sample a chunk of its own."""
    samples = list(zip(hessians, slopes, strict=True))
    start = torch.zeros(len(slopes[0]), dtype=torch.float64) if theta is None else theta

    def loss(model: nn.Module, index: Tensor) -> Tensor:
        H, g = samples[int(index)]
        return g @ model.theta + 0.5 * model.theta @ H @ model.theta

    return Problem.from_loss(Vector(start), loss, [torch.tensor([i]) for i in range(len(samples))])
