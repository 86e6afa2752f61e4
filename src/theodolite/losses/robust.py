"""Losses that bound the pull of a wrong label: generalised, normalised, reverse, symmetric, asymmetric, Jensen–Shannon."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from theodolite.losses.confidence import comp_sum_value
from theodolite.losses.contract import Reduction, over_classes
from theodolite.losses.registry import loss, module_of
from theodolite.losses.through_ce import gradient_from, hessian_from, of_cross_entropy


@loss("classes", q="(0, 1]")
def gce(
    logits: Float[Tensor, "b c *d"],
    target: Int[Tensor, "b *d"],
    *,
    q: float = 0.7,
    weight: Float[Tensor, " c"] | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """Generalised cross-entropy (1 − p_y^q)/q, between cross-entropy (q → 0) and mean absolute error (q = 1).

    Args:
        logits: classes along the second axis.
        target: class indices, or ``ignore_index``.
        q: in (0, 1].
        weight, ignore_index, reduction: as in ``F.cross_entropy``.

    Returns:
        The reduced loss.

    Example:
        >>> gce(torch.zeros(1, 4), torch.tensor([0]), q=1.0)
        tensor(0.7500)

    References:
        Zhang and Sabuncu 2018, "Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy Labels".
    """

    def phi(u: Tensor) -> Tensor:
        return comp_sum_value(u, 1 + q)

    return of_cross_entropy(phi, logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)


def _gce_slopes(u: Tensor, *, q: float = 0.7) -> tuple[Tensor, Tensor]:
    first = torch.exp(-q * u)
    return first, -q * first


gce_grad, gce_hess = gradient_from(_gce_slopes), hessian_from(_gce_slopes)
GCELoss = module_of(gce, "GCELoss")


@loss("classes")
def mae(
    logits: Float[Tensor, "b c *d"],
    target: Int[Tensor, "b *d"],
    *,
    weight: Float[Tensor, " c"] | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """Mean absolute error of probabilities, |p − e|₁ = 2(1 − p_y): symmetric, so robust to uniform label noise.

    Args:
        logits: classes along the second axis.
        target: class indices, or ``ignore_index``.
        weight, ignore_index, reduction: as in ``F.cross_entropy``.

    Returns:
        The reduced loss.

    Example:
        >>> mae(torch.zeros(1, 4), torch.tensor([0]))
        tensor(1.5000)

    References:
        Ghosh et al. 2017, "Robust Loss Functions under Label Noise for Deep Neural Networks".
    """

    def phi(u: Tensor) -> Tensor:
        return -2 * torch.expm1(-u)

    return of_cross_entropy(phi, logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)


def _mae_slopes(u: Tensor) -> tuple[Tensor, Tensor]:
    return 2 * torch.exp(-u), -2 * torch.exp(-u)


mae_grad, mae_hess = gradient_from(_mae_slopes), hessian_from(_mae_slopes)
MAELoss = module_of(mae, "MAELoss")


@loss("classes", log_zero="(−∞, 0)")
def rce(
    logits: Float[Tensor, "b c *d"],
    target: Int[Tensor, "b *d"],
    *,
    log_zero: float = -4 * math.log(10),
    weight: Float[Tensor, " c"] | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """Reverse cross-entropy −Σ_k p_k log e_k = −A(1 − p_y), with log 0 set to A.

    Args:
        logits: classes along the second axis.
        target: class indices, or ``ignore_index``.
        log_zero: A < 0, log(1e-4) by default.
        weight, ignore_index, reduction: as in ``F.cross_entropy``.

    Returns:
        The reduced loss.

    Example:
        >>> rce(torch.zeros(1, 4), torch.tensor([0]), log_zero=-4.0)
        tensor(3.)

    References:
        Wang et al. 2019, "Symmetric Cross Entropy for Robust Learning with Noisy Labels".
    """

    def phi(u: Tensor) -> Tensor:
        return log_zero * torch.expm1(-u)

    return of_cross_entropy(phi, logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)


def _rce_slopes(u: Tensor, *, log_zero: float = -4 * math.log(10)) -> tuple[Tensor, Tensor]:
    return -log_zero * torch.exp(-u), log_zero * torch.exp(-u)


rce_grad, rce_hess = gradient_from(_rce_slopes), hessian_from(_rce_slopes)
RCELoss = module_of(rce, "RCELoss")


@loss("classes", alpha="[0, ∞)", beta="[0, ∞)", log_zero="(−∞, 0)")
def sce(
    logits: Float[Tensor, "b c *d"],
    target: Int[Tensor, "b *d"],
    *,
    alpha: float = 0.1,
    beta: float = 1.0,
    log_zero: float = -4 * math.log(10),
    weight: Float[Tensor, " c"] | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """Symmetric cross-entropy: α cross-entropy + β reverse cross-entropy.

    Args:
        logits: classes along the second axis.
        target: class indices, or ``ignore_index``.
        alpha: share of cross-entropy (0.1 for CIFAR-10, 6 for CIFAR-100 in the paper).
        beta: share of reverse cross-entropy.
        log_zero: A < 0, what log 0 counts.
        weight, ignore_index, reduction: as in ``F.cross_entropy``.

    Returns:
        The reduced loss.

    Example:
        >>> sce(torch.zeros(1, 4), torch.tensor([0]), alpha=1.0, beta=0.0)
        tensor(1.3863)

    References:
        Wang et al. 2019, "Symmetric Cross Entropy for Robust Learning with Noisy Labels".
    """

    def phi(u: Tensor) -> Tensor:
        return alpha * u + beta * log_zero * torch.expm1(-u)

    return of_cross_entropy(phi, logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)


def _sce_slopes(
    u: Tensor, *, alpha: float = 0.1, beta: float = 1.0, log_zero: float = -4 * math.log(10)
) -> tuple[Tensor, Tensor]:
    bend = beta * log_zero * torch.exp(-u)
    return alpha - bend, bend


sce_grad, sce_hess = gradient_from(_sce_slopes), hessian_from(_sce_slopes)
SCELoss = module_of(sce, "SCELoss")


@loss("classes", a="(0, ∞)", q="(0, ∞)")
def agce(
    logits: Float[Tensor, "b c *d"],
    target: Int[Tensor, "b *d"],
    *,
    a: float = 1.0,
    q: float = 2.0,
    weight: Float[Tensor, " c"] | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """Asymmetric generalised cross-entropy ((a + 1)^q − (a + p_y)^q)/q.

    Args:
        logits: classes along the second axis.
        target: class indices, or ``ignore_index``.
        a: offset > 0.
        q: exponent > 0.
        weight, ignore_index, reduction: as in ``F.cross_entropy``.

    Returns:
        The reduced loss.

    Example:
        >>> agce(torch.zeros(1, 4), torch.tensor([0]))
        tensor(1.2188)

    References:
        Zhou et al. 2021, "Asymmetric Loss Functions for Learning with Noisy Labels".
    """

    def phi(u: Tensor) -> Tensor:
        return (math.pow(a + 1, q) - torch.pow(a + torch.exp(-u), q)) / q

    return of_cross_entropy(phi, logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)


def _agce_slopes(u: Tensor, *, a: float = 1.0, q: float = 2.0) -> tuple[Tensor, Tensor]:
    p = torch.exp(-u)
    first = (a + p) ** (q - 1) * p
    return first, -first - (q - 1) * (a + p) ** (q - 2) * p**2


agce_grad, agce_hess = gradient_from(_agce_slopes), hessian_from(_agce_slopes)
AGCELoss = module_of(agce, "AGCELoss")


@loss("classes", a="(1, ∞)", q="(0, ∞)")
def aul(
    logits: Float[Tensor, "b c *d"],
    target: Int[Tensor, "b *d"],
    *,
    a: float = 1.5,
    q: float = 0.9,
    weight: Float[Tensor, " c"] | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """Asymmetric unhinged loss ((a − p_y)^q − (a − 1)^q)/q.

    Args:
        logits: classes along the second axis.
        target: class indices, or ``ignore_index``.
        a: offset > 1.
        q: exponent > 0.
        weight, ignore_index, reduction: as in ``F.cross_entropy``.

    Returns:
        The reduced loss.

    Example:
        >>> aul(torch.zeros(1, 4), torch.tensor([0]), q=1.0)
        tensor(0.7500)

    References:
        Zhou et al. 2021, "Asymmetric Loss Functions for Learning with Noisy Labels".
    """

    def phi(u: Tensor) -> Tensor:
        return (torch.pow(a - torch.exp(-u), q) - math.pow(a - 1, q)) / q

    return of_cross_entropy(phi, logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)


def _aul_slopes(u: Tensor, *, a: float = 1.5, q: float = 0.9) -> tuple[Tensor, Tensor]:
    p = torch.exp(-u)
    first = (a - p) ** (q - 1) * p
    return first, -first + (q - 1) * (a - p) ** (q - 2) * p**2


aul_grad, aul_hess = gradient_from(_aul_slopes), hessian_from(_aul_slopes)
AULLoss = module_of(aul, "AULLoss")


@loss("classes")
def nce(
    logits: Float[Tensor, "b c *d"],
    target: Int[Tensor, "b *d"],
    *,
    weight: Float[Tensor, " c"] | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """Normalised cross-entropy log p_y / Σ_k log p_k: symmetric, its values over all labels sum to 1.

    Args:
        logits: classes along the second axis.
        target: class indices, or ``ignore_index``.
        weight, ignore_index, reduction: as in ``F.cross_entropy``.

    Returns:
        The reduced loss.

    Example:
        >>> nce(torch.zeros(1, 4), torch.tensor([0]))
        tensor(0.2500)

    References:
        Ma et al. 2020, "Normalized Loss Functions for Deep Learning with Noisy Labels".
    """

    def values(rows: Tensor, classes: Tensor) -> Tensor:
        log_p = F.log_softmax(rows, 1)
        return log_p.gather(1, classes[:, None])[:, 0] / log_p.sum(1)

    return over_classes(values, logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)


NCELoss = module_of(nce, "NCELoss")


@loss("classes", label_share="(0, 1)")
def js(
    logits: Float[Tensor, "b c *d"],
    target: Int[Tensor, "b *d"],
    *,
    label_share: float = 0.5,
    weight: Float[Tensor, " c"] | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """Generalised Jensen–Shannon divergence of label and prediction, scaled to tend to cross-entropy and to MAE.

    With π the label's share and m = πe + (1 − π)p: [H(m) − (1 − π)H(p)] / −(1 − π)log(1 − π). For π → 0 it is
    cross-entropy, for π → 1 half of the mean absolute error.

    Args:
        logits: classes along the second axis.
        target: class indices, or ``ignore_index``.
        label_share: π in (0, 1).
        weight, ignore_index, reduction: as in ``F.cross_entropy``.

    Returns:
        The reduced loss.

    Example:
        >>> js(torch.zeros(1, 4), torch.tensor([0]))
        tensor(1.0976)

    References:
        Englesson and Azizpour 2021, "Generalized Jensen-Shannon Divergence Loss for Learning with Noisy Labels".
    """

    def values(rows: Tensor, classes: Tensor) -> Tensor:
        # Off the label m_k = (1 − π)p_k, so their terms sum to −(1 − π)log(1 − π)(1 − p_y): only p_y enters.
        u = F.cross_entropy(rows, classes, reduction="none")
        return _js_value(u, label_share)

    return over_classes(values, logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)


def _js_value(u: Tensor, share: float) -> Tensor:
    p, rest = torch.exp(-u), 1 - share
    mixed = share + rest * p
    entropy_gap: Tensor = -torch.special.xlogy(mixed, mixed) - rest * p * u - rest * math.log(rest) * -torch.expm1(-u)
    return entropy_gap / (-rest * math.log(rest))


def _js_slopes(u: Tensor, *, label_share: float = 0.5) -> tuple[Tensor, Tensor]:
    share, rest = label_share, 1 - label_share
    p = torch.exp(-u)
    mixed, scale = share + rest * p, -rest * math.log(rest)
    # d/dp of −m log m + rest·p log p + rest·log(rest)·p is rest·(log(rest·p) − log m); du = −dp/p
    gap = -rest * (math.log(rest) - u - torch.log(mixed))
    return p * gap / scale, (-p * gap + p * rest * (1 - rest * p / mixed)) / scale


js_grad, js_hess = gradient_from(_js_slopes), hessian_from(_js_slopes)
JSLoss = module_of(js, "JSLoss")
