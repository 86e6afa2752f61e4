"""Metrics of the confusion of two classes, and the loss that optimises any of them through soft counts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from theodolite.losses.contract import widened
from theodolite.losses.registry import loss, module_of

Counts = Float[Tensor, "*c"]
Metric = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def accuracy_score(tp: Counts, fn: Counts, fp: Counts, tn: Counts) -> Counts:
    """Return (TP + TN)/n."""
    return _ratio(tp + tn, tp + fn + fp + tn)


def precision(tp: Counts, fn: Counts, fp: Counts, tn: Counts) -> Counts:
    """Return TP/(TP + FP); 0 where nothing was predicted positive."""
    return _ratio(tp, tp + fp)


def recall(tp: Counts, fn: Counts, fp: Counts, tn: Counts) -> Counts:
    """Return TP/(TP + FN); 0 without positives."""
    return _ratio(tp, tp + fn)


def f_score(tp: Counts, fn: Counts, fp: Counts, tn: Counts, *, beta: float = 1.0) -> Counts:
    """Return (1 + β²)TP / ((1 + β²)TP + β²FN + FP); 0 without positives of either kind."""
    hits = (1 + beta**2) * tp
    return _ratio(hits, hits + beta**2 * fn + fp)


def balanced_accuracy(tp: Counts, fn: Counts, fp: Counts, tn: Counts) -> Counts:
    """Return the mean of the rates of right positives and right negatives."""
    return (_ratio(tp, tp + fn) + _ratio(tn, tn + fp)) / 2


def g_mean(tp: Counts, fn: Counts, fp: Counts, tn: Counts) -> Counts:
    """Return the geometric mean of the rates of right positives and right negatives."""
    product = _ratio(tp, tp + fn) * _ratio(tn, tn + fp)
    return torch.where(product > 0, torch.where(product > 0, product, 1.0).sqrt(), 0.0)


def matthews(tp: Counts, fn: Counts, fp: Counts, tn: Counts) -> Counts:
    """Return the Matthews correlation; 0 where a row or column of the confusion is empty."""
    squared = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return _ratio(tp * tn - fp * fn, torch.where(squared > 0, torch.where(squared > 0, squared, 1.0).sqrt(), 0.0))


def cohen_kappa(tp: Counts, fn: Counts, fp: Counts, tn: Counts) -> Counts:
    """Return the agreement beyond chance; 0 where chance alone agrees fully."""
    total = tp + fn + fp + tn
    chance = _ratio((tp + fp) * (tp + fn) + (fn + tn) * (fp + tn), total**2)
    return _ratio(_ratio(tp + tn, total) - chance, 1 - chance)


@loss("labels", sharpness="(0, ∞)")
def any_loss(
    probabilities: Float[Tensor, "*b"],
    labels: Float[Tensor, "*b"],
    *,
    metric: Metric = f_score,
    sharpness: float = 73.0,
) -> Float[Tensor, ""]:
    """One minus any metric of the confusion, from soft counts: a = σ(L(p − ½)) stands for the decision p > ½.

    At p ∈ {0, 1} it is 1 − metric to 1e-16; ratios 0/0 count as 0.

    Args:
        probabilities: of the positive class.
        labels: 0 or 1.
        metric: of (TP, FN, FP, TN): :func:`accuracy_score`, :func:`f_score`, :func:`balanced_accuracy`,
            :func:`g_mean`, :func:`matthews`, :func:`cohen_kappa` or your own.
        sharpness: L.

    Returns:
        The loss of the whole batch.

    Example:
        >>> any_loss(torch.tensor([0.9, 0.2, 0.7]), torch.tensor([1.0, 0.0, 0.0]))
        tensor(0.3333)

    References:
        Han et al. 2024, "AnyLoss: Transforming Classification Metrics into Loss Functions".
    """
    y = widened(labels)
    decision = torch.sigmoid(sharpness * (widened(probabilities) - 0.5))
    missed, raised = y * (1 - decision), (1 - y) * decision
    return 1 - metric((y * decision).sum(), missed.sum(), raised.sum(), ((1 - y) * (1 - decision)).sum())


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    return torch.where(denominator == 0, 0.0, numerator / torch.where(denominator == 0, 1.0, denominator))


AnyLoss = module_of(any_loss, "AnyLoss")
