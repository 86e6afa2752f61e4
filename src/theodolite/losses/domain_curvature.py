"""Curvature of a linear head compared between environments: aligned by a Hutchinson diagonal, measured in norm."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from theodolite.losses.contract import widened
from theodolite.losses.invariance import head_gradients, head_hvp
from theodolite.losses.registry import loss, module_of


@loss("other", alpha="[0, ∞)", beta="[0, ∞)", probes="[1, ∞)")
def hutchinson_align(
    features: Float[Tensor, "e b k"],
    logits: Float[Tensor, "e b c"],
    target: Int[Tensor, "e b"],
    *,
    alpha: float = 1e-3,
    beta: float = 0.005,
    probes: int = 100,
    seed: int = 0,
) -> Float[Tensor, ""]:
    """Align head gradients and the diagonals of head Hessians: mean_e α|D_e − D|² + β|g_e − g|².

    D_e = mean_z z ⊙ (H_e z) over Rademacher probes, the same for every environment, so equal environments give exactly 0.

    Cost: a closed-form product of the head's Hessian for each probe.

    Args:
        features: inputs h of the head in each environment, as many samples in each.
        logits: of the head.
        target: class indices.
        alpha: weight of the curvature term.
        beta: weight of the gradient term.
        probes: how many, 100 to 300.
        seed: of the probes.

    Returns:
        The penalty, ≥ 0.

    Example:
        >>> hutchinson_align(torch.ones(2, 3, 2), torch.zeros(2, 3, 2), torch.zeros(2, 3, dtype=torch.long))
        tensor(0.)

    References:
        Hemati et al. 2023, "Understanding Hessian Alignment for Domain Generalization".
    """
    h, z = widened(features), widened(logits)
    gradients = head_gradients(h, z, target).mean(1)
    diagonals = hutchinson_diagonal(h, z, probes=probes, seed=seed)
    curved = (diagonals - diagonals.mean(0)).square().sum(1).mean()
    return alpha * curved + beta * (gradients - gradients.mean(0)).square().sum(1).mean()


HutchinsonAlignPenalty = module_of(hutchinson_align, "HutchinsonAlignPenalty")


def hutchinson_diagonal(
    features: Float[Tensor, "e b k"], logits: Float[Tensor, "e b c"], *, probes: int = 100, seed: int = 0
) -> Float[Tensor, "e n"]:
    """Return an unbiased estimate of each environment's head-Hessian diagonal, weights first and then biases."""
    size = logits.shape[2] * (features.shape[2] + 1)
    signs = torch.randint(2, (probes, 1, size), generator=torch.Generator().manual_seed(seed)).to(logits) * 2 - 1
    products = [z * head_hvp(features, logits, z.expand(len(logits), -1)) for z in signs]
    return torch.stack(products).mean(0)


def hessian_transfer(
    features: Float[Tensor, "e b k"], logits: Float[Tensor, "e b c"], *, steps: int = 200, seed: int = 0
) -> Float[Tensor, ""]:
    """Return the largest spectral norm ‖H_e − H_e'‖ of two environments' head Hessians: how far a transfer can go wrong.

    Cost: two products a step and pair of environments.

    Args:
        features: inputs of the head in each environment.
        logits: of the head.
        steps: of power iteration on the difference.
        seed: of its start.

    Returns:
        The norm, 0 for equal environments; a lower bound that power iteration approaches from below.

    References:
        Hemati et al. 2023, "Understanding Hessian Alignment for Domain Generalization".
    """
    h, z = widened(features), widened(logits)
    first, second = torch.triu_indices(len(z), len(z), 1, device=z.device)
    if len(first) == 0:
        return z.new_zeros(())
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(len(first), z.shape[2] * (h.shape[2] + 1), generator=generator).to(z)
    norms = z.new_zeros(len(first))
    for _ in range(steps):
        v = v / v.norm(dim=1, keepdim=True).clamp(min=1e-30)
        v = head_hvp(h[first], z[first], v) - head_hvp(h[second], z[second], v)
        norms = v.norm(dim=1)
    return norms.max()
