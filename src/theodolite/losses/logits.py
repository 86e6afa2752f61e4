"""Losses on the logits themselves: the spherical Z-loss, the log²Z penalty, squentropy, the harmonic loss."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from theodolite.losses.contract import Reduction, over_classes, widened
from theodolite.losses.hessian import OutputHessian
from theodolite.losses.numerics import safe_norm, safe_sqrt
from theodolite.losses.registry import loss, module_of
from theodolite.losses.through_ce import residuals


@loss("classes", a="(0, ∞)", b="(−∞, ∞)")
def z_loss_spherical(
    logits: Float[Tensor, "b c *d"],
    target: Int[Tensor, "b *d"],
    *,
    a: float = 1.0,
    b: float = 2.0,
    weight: Float[Tensor, " c"] | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """Softplus of the standardised true logit: (1/a) softplus(a(b − ẑ_y)), ẑ the logits with mean 0 and variance 1.

    Not to be confused with the log²Z penalty that is also called z-loss, :func:`aux_log_z2`. Invariant to shift and
    positive scale of the logits; ẑ_y ≤ √(C − 1). It depends on the logits through Σz, Σz² and z_y alone, see
    :func:`z_loss_from_moments`.

    Args:
        logits: classes along the second axis.
        target: class indices, or ``ignore_index``.
        a: sharpness; the paper tunes it, about 0.1 for huge vocabularies.
        b: margin in standard deviations, about 10 for huge vocabularies.
        weight, ignore_index, reduction: as in ``F.cross_entropy``.

    Returns:
        The reduced loss.

    Example:
        >>> z_loss_spherical(torch.tensor([[3.0, 0.0, 0.0]]), torch.tensor([0]))
        tensor(1.0283)

    References:
        de Brébisson and Vincent 2016, "The Z-loss: a shift and scale invariant classification loss belonging to the
        Spherical Family".
    """

    def values(rows: Tensor, classes: Tensor) -> Tensor:
        standard, _ = _standardised(rows)
        return F.softplus(a * (b - standard.gather(1, classes[:, None])[:, 0])) / a

    return over_classes(values, logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)


def z_loss_from_moments(
    total: Float[Tensor, " b"],
    squares: Float[Tensor, " b"],
    true_logit: Float[Tensor, " b"],
    classes: int,
    *,
    a: float = 1.0,
    b: float = 2.0,
) -> Float[Tensor, " b"]:
    """Return the Z-loss of each sample from Σz, Σz² and z_y, which a linear head gives without its C logits.

    With z = Wh, Σz = (Wᵀ1)·h and Σz² = hᵀ(WᵀW)h: d² operations a sample whatever the number of classes.
    Σz² − (Σz)²/C cancels where the logits share a large offset; centre W's columns first.
    """
    mean = total / classes
    deviation = safe_sqrt(squares / classes - mean**2).clamp(min=1e-8)
    return F.softplus(a * (b - (true_logit - mean) / deviation)) / a


def z_loss_spherical_grad(
    logits: Float[Tensor, "n c"], target: Int[Tensor, " n"], *, a: float = 1.0, b: float = 2.0
) -> Float[Tensor, "n c"]:
    """Return the gradient of each sample: orthogonal to the constant vector and to the logits."""
    standard, deviation = _standardised(logits)
    true = standard.gather(1, target[:, None])
    direction = F.one_hot(target, logits.shape[1]) - 1 / logits.shape[1] - true * standard / logits.shape[1]
    return -torch.sigmoid(a * (b - true)) * direction / deviation


def _standardised(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits of mean 0 and variance 1, and their deviation, at least 1e-8 so that constant logits give 0."""
    centred = rows - rows.mean(1, keepdim=True)
    deviation = safe_norm(centred)[:, None].clamp(min=1e-8) / math.sqrt(rows.shape[1])
    return centred / deviation, deviation


ZLossSpherical = module_of(z_loss_spherical, "ZLossSpherical")


@loss("classes", alpha="[0, ∞)")
def aux_log_z2(
    logits: Float[Tensor, "b c *d"],
    target: Int[Tensor, "b *d"],
    *,
    alpha: float = 1e-4,
    weight: Float[Tensor, " c"] | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """The penalty α log²Z, Z = Σ e^z, to be added to cross-entropy: it holds the logits where Z is near 1.

    Not to be confused with the classification loss of the same name, :func:`z_loss_spherical`. Its Hessian is
    indefinite where log Z < 0. The target says only which samples count, so that it averages as the cross-entropy does.

    Args:
        logits: classes along the second axis.
        target: class indices, or ``ignore_index``.
        alpha: strength.
        weight, ignore_index, reduction: as in ``F.cross_entropy``.

    Returns:
        The reduced loss.

    Example:
        >>> aux_log_z2(torch.zeros(1, 4), torch.tensor([0]), alpha=1.0)
        tensor(1.9218)

    References:
        Chowdhery et al. 2022, "PaLM: Scaling Language Modeling with Pathways"; Wortsman et al. 2023, "Small-scale
        proxies for large-scale Transformer training instabilities".
    """

    def values(rows: Tensor, classes: Tensor) -> Tensor:
        return alpha * torch.logsumexp(rows, 1) ** 2

    return over_classes(values, logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)


def aux_log_z2_grad(
    logits: Float[Tensor, "n c"], target: Int[Tensor, " n"], *, alpha: float = 1e-4
) -> Float[Tensor, "n c"]:
    """Return 2α log Z · p for each sample."""
    return 2 * alpha * torch.logsumexp(logits, 1)[:, None] * torch.softmax(logits, 1)


def aux_log_z2_hess(logits: Float[Tensor, "n c"], target: Int[Tensor, " n"], *, alpha: float = 1e-4) -> OutputHessian:
    """Return 2α(ppᵀ + log Z (diag p − ppᵀ)) for each sample."""
    p, log_z = torch.softmax(logits, 1), torch.logsumexp(logits, 1)
    return OutputHessian(2 * alpha * log_z[:, None] * p, p[:, None], 2 * alpha * (1 - log_z)[:, None])


AuxLogZ2 = module_of(aux_log_z2, "AuxLogZ2")


@loss("classes")
def squentropy(
    logits: Float[Tensor, "b c *d"],
    target: Int[Tensor, "b *d"],
    *,
    weight: Float[Tensor, " c"] | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """Cross-entropy plus the mean square of the logits of the other classes: strictly convex, not shift-invariant.

    Args:
        logits: classes along the second axis.
        target: class indices, or ``ignore_index``.
        weight, ignore_index, reduction: as in ``F.cross_entropy``.

    Returns:
        The reduced loss.

    Example:
        >>> squentropy(torch.tensor([[1.0, 2.0]]), torch.tensor([0]))
        tensor(5.3133)

    References:
        Hui, Belkin and Wright 2023, "Cut your Losses with Squentropy".
    """

    def values(rows: Tensor, classes: Tensor) -> Tensor:
        true = rows.gather(1, classes[:, None])[:, 0]
        others = rows.square().scatter(1, classes[:, None], 0.0).sum(1)
        return torch.logsumexp(rows, 1) - true + others / (rows.shape[1] - 1)

    return over_classes(values, logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)


def squentropy_grad(logits: Float[Tensor, "n c"], target: Int[Tensor, " n"]) -> Float[Tensor, "n c"]:
    """Return p − e + 2/(C − 1) z ⊙ (1 − e) for each sample."""
    return residuals(logits, target)[1] + 2 / (logits.shape[1] - 1) * logits.scatter(1, target[:, None], 0.0)


def squentropy_hess(logits: Float[Tensor, "n c"], target: Int[Tensor, " n"]) -> OutputHessian:
    """Return diag p − ppᵀ + 2/(C − 1) diag(1 − e) for each sample."""
    p = torch.softmax(logits, 1)
    ridge = torch.full_like(p, 2 / (p.shape[1] - 1)).scatter(1, target[:, None], 0.0)
    return OutputHessian(p + ridge, p[:, None], -torch.ones_like(p[:, :1]))


SquentropyLoss = module_of(squentropy, "SquentropyLoss")


@loss("other", exponent="(0, ∞)")
def harmonic(
    features: Float[Tensor, "b k"],
    prototypes: Float[Tensor, "c k"],
    target: Int[Tensor, " b"],
    *,
    exponent: float | None = None,
    weight: Float[Tensor, " c"] | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """Cross-entropy of the harmonic softmax p_j ∝ d_j^{−n}, d_j the distance of the feature to class j's prototype.

    Invariant to a common rotation, translation and scale of features and prototypes; 0 at the true prototype.

    Args:
        features: what the head receives.
        prototypes: the head's weights, one a class.
        target: class indices, or ``ignore_index``.
        exponent: n on the distance (not on its square); √k by default.
        weight, ignore_index, reduction: as in ``F.cross_entropy``.

    Returns:
        The reduced loss.

    Example:
        >>> harmonic(torch.zeros(1, 2), torch.eye(2), torch.tensor([1]))
        tensor(0.6931)

    References:
        Baek et al. 2025, "Harmonic Loss Trains Interpretable AI Models".
    """
    n = math.sqrt(features.shape[1]) if exponent is None else exponent
    difference = widened(features)[:, None] - widened(prototypes)
    # log d from a floored square: at a prototype the loss is finite, and 0 up to (1e-12)^n
    log_distance = 0.5 * torch.log(difference.square().sum(-1) + 1e-24)

    def values(rows: Tensor, classes: Tensor) -> Tensor:
        return F.cross_entropy(rows, classes, reduction="none")

    return over_classes(
        values, -n * log_distance, target, weight=weight, ignore_index=ignore_index, reduction=reduction
    )


HarmonicLoss = module_of(harmonic, "HarmonicLoss")
