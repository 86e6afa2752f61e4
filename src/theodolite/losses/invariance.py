"""Penalties that hold predictors to be the same across environments: IRM, V-REx, Fishr, gradient and Hessian alignment."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from theodolite.losses.contract import widened
from theodolite.losses.registry import loss, module_of


@loss("other")
def irm_v1(logits: Float[Tensor, "e b c"], target: Int[Tensor, "e b"], *, unbiased: bool = False) -> Float[Tensor, ""]:
    """Squared derivative of each environment's cross-entropy in a common factor of the logits, at 1, averaged.

    The derivative is mean Σ_k (p_k − e_k)z_k. With λ > 1 divide the total loss by λ; the paper anneals λ from 1 to
    1e2–1e4 and resets the optimiser.

    Args:
        logits: of each environment.
        target: class indices.
        unbiased: the product of the derivatives on the even and odd samples instead of a square.

    Returns:
        The penalty, ≥ 0 unless unbiased.

    Example:
        >>> irm_v1(torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.long))
        tensor(0.)

    References:
        Arjovsky et al. 2019, "Invariant Risk Minimization".
    """
    z = widened(logits)
    p = torch.softmax(z, 2)
    slopes = ((p - F.one_hot(target, z.shape[2]).to(p.dtype)) * z).sum(2)
    if unbiased:
        return (slopes[:, ::2].mean(1) * slopes[:, 1::2].mean(1)).mean()
    return slopes.mean(1).square().mean()


IRMv1Penalty = module_of(irm_v1, "IRMv1Penalty")


@loss("other", ridge="[0, ∞)")
def irm_v2(
    features: Float[Tensor, "e b k"],
    weights: Float[Tensor, " k"],
    target: Float[Tensor, "e b"],
    *,
    ridge: float = 1e-6,
) -> Float[Tensor, ""]:
    """How much each environment's squared error would fall under its own best linear head: ¼ ∇ᵀG^{−1}∇, averaged.

    G = E[φφᵀ]. The plain ∇ᵀ∇ vanishes along small eigenvalues of G, so a feature scaled down hides from it; this form
    does not change under any invertible map of the features.

    Args:
        features: φ of each environment.
        weights: of the common head.
        target: y.
        ridge: added to G, relative to its mean eigenvalue.

    Returns:
        The penalty, ≥ 0.

    Example:
        >>> irm_v2(torch.ones(1, 2, 1), torch.tensor([2.0]), torch.ones(1, 2), ridge=0.0)
        tensor(1.)

    References:
        Khezeli et al. 2021, "On Invariance Penalties for Risk Minimization".
    """
    phi, y = widened(features), widened(target)
    count = phi.shape[1]
    gram = phi.mT @ phi / count
    scale = torch.diagonal(gram, dim1=1, dim2=2).mean(1)
    identity = torch.eye(phi.shape[2], dtype=phi.dtype, device=phi.device)
    half = (phi.mT @ ((phi @ weights) - y)[:, :, None])[:, :, 0] / count  # ½∇R
    solved = torch.linalg.solve(gram + ridge * scale[:, None, None] * identity, half[:, :, None])[:, :, 0]
    fall: Tensor = (half * solved).sum(1)
    return fall.mean()


IRMv2Penalty = module_of(irm_v2, "IRMv2Penalty")


@loss("other", beta="[0, ∞)")
def v_rex(risks: Float[Tensor, " e"], *, beta: float = 10.0) -> Float[Tensor, ""]:
    """Mean risk plus β times the variance of the risks over environments.

    Args:
        risks: of each environment.
        beta: β, small before an annealing step.

    Returns:
        The loss.

    Example:
        >>> v_rex(torch.tensor([1.0, 3.0]), beta=1.0)
        tensor(3.)

    References:
        Krueger et al. 2021, "Out-of-Distribution Generalization via Risk Extrapolation (REx)".
    """
    values = widened(risks)
    return values.mean() + beta * values.var(correction=0)


VRExLoss = module_of(v_rex, "VRExLoss")


@loss("other")
def fishr(
    features: Float[Tensor, "e b k"], logits: Float[Tensor, "e b c"], target: Int[Tensor, "e b"]
) -> Float[Tensor, ""]:
    """Squared distance between environments of the variances of per-sample head gradients, (p − e)hᵀ by closed form.

    The paper smooths the variances by a moving average (0.95) and weighs the penalty by 1000 after 1500 steps.

    Args:
        features: inputs h of the head in each environment.
        logits: of the head.
        target: class indices.

    Returns:
        Mean over environments.

    Example:
        >>> fishr(torch.ones(2, 3, 2), torch.zeros(2, 3, 2), torch.zeros(2, 3, dtype=torch.long))
        tensor(0.)

    References:
        Rame et al. 2022, "Fishr: Invariant Gradient Variances for Out-of-Distribution Generalization".
    """
    variances = head_gradients(features, logits, target).var(1, correction=0)
    return (variances - variances.mean(0)).square().sum(1).mean()


FishrPenalty = module_of(fishr, "FishrPenalty")


def head_gradients(
    features: Float[Tensor, "e b k"], logits: Float[Tensor, "e b c"], target: Int[Tensor, "e b"]
) -> Float[Tensor, "e b n"]:
    """Return each sample's cross-entropy gradient in the weights and then the biases of a linear head."""
    residual = torch.softmax(widened(logits), 2) - F.one_hot(target, logits.shape[2]).to(widened(logits).dtype)
    outer = residual[..., None] * widened(features)[..., None, :]
    return torch.cat([outer.flatten(2), residual], 2)


@loss("other", alpha="[0, ∞)", beta="[0, ∞)")
def hessian_align(
    features: Float[Tensor, "e b k"],
    logits: Float[Tensor, "e b c"],
    target: Int[Tensor, "e b"],
    *,
    alpha: float = 1e-3,
    beta: float = 0.005,
) -> Float[Tensor, ""]:
    """Align head gradients and Hessian–gradient products: mean_e α|H_e g_e − Hg|² + β|g_e − g|².

    g and Hg are those of the pooled loss, not means over environments of H_e g_e; equal environments give 0. The head is
    linear with cross-entropy, so H_e = E[(diag p − ppᵀ) ⊗ hhᵀ] is applied by closed form.

    Args:
        features: inputs h of the head in each environment, as many samples in each.
        logits: of the head.
        target: class indices.
        alpha: weight of the curvature term.
        beta: weight of the gradient term.

    Returns:
        The penalty, ≥ 0.

    Example:
        >>> hessian_align(torch.ones(2, 3, 2), torch.zeros(2, 3, 2), torch.zeros(2, 3, dtype=torch.long))
        tensor(0.)

    References:
        Hemati et al. 2023, "Understanding Hessian Alignment for Domain Generalization".
    """
    h, z = widened(features), widened(logits)
    gradients = head_gradients(h, z, target).mean(1)
    pooled = gradients.mean(0)
    products = head_hvp(h, z, gradients)
    pooled_product = head_hvp(h, z, pooled.expand_as(gradients)).mean(0)
    curved = (products - pooled_product).square().sum(1).mean()
    return alpha * curved + beta * (gradients - pooled).square().sum(1).mean()


HessianAlignPenalty = module_of(hessian_align, "HessianAlignPenalty")


def head_hvp(
    features: Float[Tensor, "e b k"], logits: Float[Tensor, "e b c"], vectors: Float[Tensor, "e n"]
) -> Float[Tensor, "e n"]:
    """Return each environment's head Hessian times its own vector, weights first and then biases."""
    p = torch.softmax(logits, 2)
    environments, _, k = features.shape
    weights = vectors[:, : p.shape[2] * k].reshape(environments, p.shape[2], k)
    moved = features @ weights.mT + vectors[:, None, p.shape[2] * k :]  # change of the logits
    bent = p * moved - p * (p * moved).sum(2, keepdim=True)
    outer = torch.einsum("ebc,ebk->eck", bent, features) / features.shape[1]
    return torch.cat([outer.flatten(1), bent.mean(1)], 1)
