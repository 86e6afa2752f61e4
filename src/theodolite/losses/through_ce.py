"""Losses that are functions φ(u) of the cross-entropy u = −log p_y share one gradient and one Hessian.

∂φ/∂z = φ'(u)(p − e) and ∂²φ/∂z² = φ'(u)(diag p − ppᵀ) + φ''(u)(p − e)(p − e)ᵀ, so each such loss only states its two
slopes. This covers focal, poly, comp-sum, the robust losses in p_y alone and pass@N.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from theodolite.losses.contract import Reduction, over_classes
from theodolite.losses.hessian import OutputHessian

Slopes = Callable[..., tuple[Tensor, Tensor]]


def of_cross_entropy(
    function: Callable[[Tensor], Tensor],
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None,
    ignore_index: int,
    reduction: Reduction,
) -> Tensor:
    """Apply φ to the cross-entropy of each sample, under the shared contract."""

    def values(rows: Tensor, classes: Tensor) -> Tensor:
        return function(F.cross_entropy(rows, classes, reduction="none"))

    return over_classes(values, logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)


def gradient_from(slopes: Slopes) -> Callable[..., Tensor]:
    """Return the per-sample gradient in the logits of the loss that has these slopes."""

    def gradient(logits: Float[Tensor, "n c"], target: Int[Tensor, " n"], **options: Any) -> Float[Tensor, "n c"]:
        u, residual, _ = residuals(logits, target)
        return slopes(u, **options)[0][:, None] * residual

    return gradient


def hessian_from(slopes: Slopes) -> Callable[..., OutputHessian]:
    """Return the per-sample Hessian in the logits of the loss that has these slopes."""

    def hessian(logits: Float[Tensor, "n c"], target: Int[Tensor, " n"], **options: Any) -> OutputHessian:
        u, residual, p = residuals(logits, target)
        first, second = slopes(u, **options)
        return OutputHessian(
            diagonal=first[:, None] * p,
            vectors=torch.stack([p, residual], 1),
            weights=torch.stack([-first, second], 1),
        )

    return hessian


def residuals(
    logits: Float[Tensor, "n c"], target: Int[Tensor, " n"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n c"], Float[Tensor, "n c"]]:
    """Return the cross-entropy u, the residual p − e and the probabilities p."""
    log_p, true = F.log_softmax(logits, 1), target[:, None]
    p = log_p.exp()
    return -log_p.gather(1, true)[:, 0], p.scatter_add(1, true, -torch.ones_like(p[:, :1])), p


def true_and_rest(u: Float[Tensor, " n"]) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Return p_y = e^{−u} and 1 − p_y, the latter to full relative precision and never exactly 0.

    The floor keeps powers of 1 − p_y below 1 differentiable at a perfectly classified sample.
    """
    return torch.exp(-u), -torch.expm1(-u.clamp(min=1e-12))
