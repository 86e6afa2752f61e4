"""Neighbourhood distributions for :func:`icon`: who should be near (labels, augmentations, distances), who is (clusters)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from theodolite.losses.contract import widened


def group_neighbours(groups: Int[Tensor, " b"]) -> Float[Tensor, "b b"]:
    """Return p(j|i) uniform over the other members of i's group: a class, or the views of one image.

    Args:
        groups: group of each sample.

    Returns:
        Rows with sum 1, and 0 for a sample alone in its group.

    Example:
        >>> group_neighbours(torch.tensor([0, 0, 1]))
        tensor([[0., 1., 0.],
                [1., 0., 0.],
                [0., 0., 0.]])

    References:
        Alshammari et al. 2025, "I-Con: A Unifying Framework for Representation Learning".
    """
    same = (groups[:, None] == groups[None]).to(torch.get_default_dtype())
    same = same - torch.eye(len(groups), device=same.device)
    return same / same.sum(1, keepdim=True).clamp(min=1)


def nearest_neighbours(points: Float[Tensor, "b k"], *, count: int) -> Float[Tensor, "b b"]:
    """Return p(j|i) uniform over the nearest other points.

    Cost: b² distances.

    Args:
        points: one a sample.
        count: how many neighbours.

    Returns:
        Rows with sum 1.

    Raises:
        ValueError: there are not that many others.
    """
    if not 0 < count < len(points):
        raise ValueError(
            f"Expected between 1 and {len(points) - 1} neighbours among {len(points)} points. Found {count}."
        )
    nearest = _squared_distances(points).topk(count, dim=1, largest=False).indices
    return torch.zeros(len(points), len(points), dtype=points.dtype, device=points.device).scatter(
        1, nearest, 1 / count
    )


def gaussian_neighbours(
    points: Float[Tensor, "b k"], *, perplexity: float = 30.0, steps: int = 60
) -> Float[Tensor, "b b"]:
    """Return p(j|i) ∝ e^{−β_i d²}, each row's width found by bisection so that its entropy is log of the perplexity.

    Cost: b² numbers a step.

    Args:
        points: one a sample.
        perplexity: effective number of neighbours, below b − 1.
        steps: bisections of log β.

    Returns:
        Rows with sum 1, constant in the points (a supervision).

    Raises:
        ValueError: the perplexity is not between 1 and the number of others.

    References:
        Hinton and Roweis 2002, "Stochastic Neighbor Embedding".
    """
    if not 1 < perplexity < len(points) - 1:
        raise ValueError(
            f"Expected a perplexity between 1 and {len(points) - 1}, the number of other points. Found {perplexity}."
        )
    squared = _squared_distances(points.detach())
    near = squared.amin(1, keepdim=True)
    gaps = squared - near
    finite = torch.where(gaps.isinf(), 0.0, gaps)
    mean = finite.sum(1, keepdim=True).clamp(min=1e-30) / (len(points) - 1)
    low, high = torch.full_like(near, math.log(1e-12)), torch.full_like(near, math.log(1e12))
    for _ in range(steps):
        middle = (low + high) / 2
        p = torch.softmax(-torch.exp(middle) / mean * gaps, 1)
        wide = -torch.special.xlogy(p, p).sum(1, keepdim=True) > math.log(perplexity)
        low, high = torch.where(wide, middle, low), torch.where(wide, high, middle)
    return torch.softmax(-torch.exp((low + high) / 2) / mean * gaps, 1)


def log_cluster_neighbours(assignments: Float[Tensor, "b c"]) -> Float[Tensor, "b b"]:
    """Return log q(j|i) of a walk from i to a cluster and to one of its members: q = Σ_c φ_ic φ_jc / Σ_k φ_kc.

    A sample may pick itself.

    Args:
        assignments: φ, soft memberships with rows of sum 1.

    Returns:
        Log-probabilities, rows with sum 1.

    Example:
        >>> log_cluster_neighbours(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])).exp()
        tensor([[0.5000, 0.5000, 0.0000],
                [0.5000, 0.5000, 0.0000],
                [0.0000, 0.0000, 1.0000]])

    References:
        Alshammari et al. 2025, "I-Con: A Unifying Framework for Representation Learning".
    """
    phi = widened(assignments)
    return torch.log((phi / phi.sum(0).clamp(min=1e-30)) @ phi.T).T


def _squared_distances(points: Tensor) -> Tensor:
    """|x_i − x_j|², infinite on the diagonal."""
    squared = (points[:, None] - points[None]).square().sum(2)
    return squared.masked_fill(torch.eye(len(points), dtype=torch.bool, device=points.device), math.inf)
