"""Losses of several yes-or-no labels a sample: sigmoid focal, asymmetric, macro-AUC, differentiable confusion metrics."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from theodolite.losses.contract import Reduction, mean_over, over_classes, reduced, widened
from theodolite.losses.registry import loss, module_of

Surrogate = Callable[[Tensor], Tensor]


@loss("labels", gamma="[0, ∞)", alpha="[0, 1]")
def sigmoid_focal(
    logits: Float[Tensor, "*b"],
    labels: Float[Tensor, "*b"],
    *,
    gamma: float = 2.0,
    alpha: float | None = 0.25,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """Focal loss of independent binary labels: α_t (1 − p_t)^γ times the binary cross-entropy.

    Args:
        logits: one a label.
        labels: 0 or 1.
        gamma: focusing; 0 with ``alpha=None`` is binary cross-entropy.
        alpha: weight of positives, 1 − α of negatives; None for equal weights.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        The reduced loss.

    Example:
        >>> sigmoid_focal(torch.zeros(2), torch.tensor([0.0, 1.0]), alpha=None)
        tensor(0.1733)

    References:
        Lin et al. 2017, "Focal Loss for Dense Object Detection".
    """
    z, y = widened(logits), widened(labels)
    values = F.binary_cross_entropy_with_logits(z, y, reduction="none")
    if gamma != 0:
        wrong = y * torch.sigmoid(-z) + (1 - y) * torch.sigmoid(z)
        values = wrong.clamp(min=1e-12) ** gamma * values
    return reduced(values if alpha is None else values * (alpha * y + (1 - alpha) * (1 - y)), reduction)


SigmoidFocalLoss = module_of(sigmoid_focal, "SigmoidFocalLoss")


@loss("labels", gamma_pos="[0, ∞)", gamma_neg="[0, ∞)", clip="[0, 1)")
def asymmetric(
    logits: Float[Tensor, "b l"],
    labels: Float[Tensor, "b l"],
    *,
    gamma_pos: float = 1.0,
    gamma_neg: float = 4.0,
    clip: float = 0.05,
    detach_weight: bool = True,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """Binary cross-entropy with separate focusing of positives and negatives; negatives with p ≤ clip count nothing.

    −Y(1 − p)^{γ+} log p − (1 − Y) p_m^{γ−} log(1 − p_m), p_m = [p − clip]_+, summed over labels.

    Args:
        logits: one a label.
        labels: 0 or 1.
        gamma_pos: focusing of positives (the paper uses 0, its code 1).
        gamma_neg: focusing of negatives.
        clip: probability below which a negative is right enough.
        detach_weight: hold the focusing weights constant in the gradient, as released. Then the gradient is not that of
            the value.
        reduction: over samples.

    Returns:
        The reduced loss.

    Example:
        >>> asymmetric(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]))
        tensor(0.3711)

    References:
        Ridnik et al. 2021, "Asymmetric Loss For Multi-Label Classification".
    """
    z, y = widened(logits), widened(labels)
    shifted = torch.clamp(torch.sigmoid(z) - clip, min=0.0)
    log_no = torch.log1p(-shifted) if clip > 0 else F.logsigmoid(-z)
    weight = y * _power(torch.sigmoid(-z), gamma_pos) + (1 - y) * _power(shifted, gamma_neg)
    if detach_weight:
        weight = weight.detach()
    values = -(y * F.logsigmoid(z) + (1 - y) * log_no) * weight
    return reduced(values.sum(1), reduction)


def _power(base: Tensor, exponent: float) -> Tensor:
    """base^exponent with 0^0 = 1 and a finite derivative at 0."""
    if exponent == 0:
        return torch.ones_like(base)
    return torch.where(base > 0, torch.where(base > 0, base, 1.0) ** exponent, 0.0)


AsymmetricLoss = module_of(asymmetric, "AsymmetricLoss")


@loss("classes", gamma_pos="[0, ∞)", gamma_neg="[0, ∞)", label_smoothing="[0, 1]")
def asymmetric_single_label(
    logits: Float[Tensor, "b c *d"],
    target: Int[Tensor, "b *d"],
    *,
    gamma_pos: float = 0.0,
    gamma_neg: float = 4.0,
    label_smoothing: float = 0.1,
    detach_weight: bool = True,
    weight: Float[Tensor, " c"] | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """The single-label form of :func:`asymmetric`: −Σ_k ẽ_k w_k log p_k, ẽ the smoothed label.

    w_k is (1 − p_k)^{γ+} on the true class and p_k^{γ−} on the others.

    Args:
        logits: classes along the second axis.
        target: class indices, or ``ignore_index``.
        gamma_pos: focusing of the true class.
        gamma_neg: focusing of the others.
        label_smoothing: as in ``F.cross_entropy``.
        detach_weight: hold the focusing weights constant in the gradient, as released.
        weight, ignore_index, reduction: as in ``F.cross_entropy``.

    Returns:
        The reduced loss.

    Example:
        >>> asymmetric_single_label(torch.zeros(1, 4), torch.tensor([0]), label_smoothing=0.0)
        tensor(1.3863)

    References:
        Ridnik et al. 2021, "Asymmetric Loss For Multi-Label Classification".
    """

    def values(rows: Tensor, classes: Tensor) -> Tensor:
        log_p = F.log_softmax(rows, 1)
        p = log_p.exp()
        true = F.one_hot(classes, rows.shape[1]).to(p.dtype)
        focus = true * _power(1 - p, gamma_pos) + (1 - true) * _power(p, gamma_neg)
        if detach_weight:
            focus = focus.detach()
        smoothed = (1 - label_smoothing) * true + label_smoothing / rows.shape[1]
        return -(smoothed * focus * log_p).sum(1)

    return over_classes(values, logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)


AsymmetricSingleLabelLoss = module_of(asymmetric_single_label, "AsymmetricSingleLabelLoss")


def logistic(margins: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """Return log(1 + e^{−m}), the default surrogate of the ranking losses here."""
    return F.softplus(-margins)


@loss("labels")
def macro_auc_pairwise(
    scores: Float[Tensor, "b l"], labels: Float[Tensor, "b l"], *, surrogate: Surrogate = logistic
) -> Float[Tensor, ""]:
    """Mean over labels of the mean surrogate over all pairs of a positive and a negative sample.

    With the logistic surrogate, divided by log 2, it bounds 1 − AUC. Labels without both kinds of samples are left out.

    Cost: b² differences a label.

    Args:
        scores: one a label.
        labels: 0 or 1.
        surrogate: φ, of the margin f₊ − f₋.

    Returns:
        The loss of the whole batch.

    Example:
        >>> macro_auc_pairwise(torch.zeros(2, 1), torch.tensor([[0.0], [1.0]]))
        tensor(0.6931)

    References:
        Wu et al. 2023, "Towards Understanding Generalization of Macro-AUC in Multi-label Learning".
    """
    z, y = widened(scores), widened(labels)
    ordered = y[:, None] * (1 - y[None])  # (positive, negative, label)
    pairs = ordered.sum((0, 1))
    totals = (ordered * surrogate(z[:, None] - z[None])).sum((0, 1))
    return mean_over((totals / pairs.clamp(min=1)).sum(), (pairs > 0).sum().to(z.dtype))


MacroAUCPairwiseLoss = module_of(macro_auc_pairwise, "MacroAUCPairwiseLoss")


@loss("labels")
def macro_auc_univariate(
    scores: Float[Tensor, "b l"],
    labels: Float[Tensor, "b l"],
    *,
    surrogate: Surrogate = logistic,
    reweighted: bool = True,
) -> Float[Tensor, ""]:
    """The linear-time stand-ins for :func:`macro_auc_pairwise`, averaged over labels.

    Reweighted: (1/n₊)Σ₊ φ(f) + (1/n₋)Σ₋ φ(−f); else mean φ(yf), y = ±1, which is half of it when n₊ = n₋.

    Args:
        scores: one a label.
        labels: 0 or 1.
        surrogate: φ.
        reweighted: whether positives and negatives count the same in total.

    Returns:
        The loss of the whole batch; labels without both kinds of samples are left out of the reweighted form.

    Example:
        >>> macro_auc_univariate(torch.zeros(2, 1), torch.tensor([[0.0], [1.0]]))
        tensor(1.3863)

    References:
        Wu et al. 2023, "Towards Understanding Generalization of Macro-AUC in Multi-label Learning".
    """
    z, y = widened(scores), widened(labels)
    # φ(yf), y = ±1; the logistic one is binary cross-entropy, which torch has in one pass
    fused = surrogate is logistic
    if not reweighted:
        return F.binary_cross_entropy_with_logits(z, y) if fused else surrogate((2 * y - 1) * z).mean()
    values = F.binary_cross_entropy_with_logits(z, y, reduction="none") if fused else surrogate((2 * y - 1) * z)
    positives, negatives = y.sum(0), (1 - y).sum(0)
    both = (positives > 0) & (negatives > 0)
    up = torch.linalg.vecdot(y, values, dim=0) / positives.clamp(min=1)
    down = torch.linalg.vecdot(1 - y, values, dim=0) / negatives.clamp(min=1)
    return mean_over(torch.where(both, up + down, 0.0).sum(), both.sum().to(z.dtype))


MacroAUCUnivariateLoss = module_of(macro_auc_univariate, "MacroAUCUnivariateLoss")


@loss("other")
def mann_whitney(positive: Float[Tensor, " p"], negative: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """Mean of log(1 + e^{−(s₊ − s₋)}) over all pairs of a positive and a negative score.

    Args:
        positive: scores of positive samples.
        negative: scores of negative samples.

    Returns:
        The loss of the whole batch.

    Example:
        >>> mann_whitney(torch.zeros(1), torch.zeros(1))
        tensor(0.6931)

    References:
        Yan et al. 2003, "Optimizing Classifier Performance via an Approximation to the Wilcoxon-Mann-Whitney Statistic".
    """
    return logistic(widened(positive)[:, None] - widened(negative)[None]).mean()


MannWhitneyLoss = module_of(mann_whitney, "MannWhitneyLoss")
