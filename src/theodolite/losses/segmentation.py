"""Losses of overlap between soft masks: Dice, Tversky, self-adjusting Dice, Jaccard metrics."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from theodolite.losses.contract import widened
from theodolite.losses.registry import loss, module_of

Over = Literal["batch", "sample"]


@loss("masks", smooth="[0, ∞)")
def dice(
    prediction: Float[Tensor, "b c *d"],
    target: Float[Tensor, "b c *d"],
    *,
    smooth: float = 1.0,
    square: bool = False,
    over: Over = "sample",
) -> Float[Tensor, ""]:
    """1 − (2Σpy + γ)/(Σp + Σy + γ), for each class; the F1 score where p is 0 or 1 and γ = 0.

    Per-sample and whole-batch Dice are different losses, see :func:`simpson_bias`. With γ = 0 a class absent from both
    masks has overlap 0/0 and counts as right.

    Args:
        prediction: probabilities, classes along the second axis.
        target: 0 and 1, or soft.
        smooth: γ.
        square: squares in the denominator (V-Net).
        over: sums over each sample, or over the whole batch.

    Returns:
        Mean over classes (and samples).

    Example:
        >>> dice(torch.ones(1, 1, 2), torch.ones(1, 1, 2))
        tensor(0.)

    References:
        Milletari et al. 2016, "V-Net: Fully Convolutional Neural Networks for Volumetric Medical Image Segmentation".
    """
    p, y = _flattened(prediction, over), _flattened(target, over)
    size = (p.square() + y.square()) if square else p + y
    return 1 - _overlap(2 * (p * y).sum(-1) + smooth, size.sum(-1) + smooth).mean()


def _flattened(mask: Tensor, over: Over) -> Tensor:
    """(samples, classes, pixels), or (1, classes, samples × pixels)."""
    flat = widened(mask).flatten(2)
    return flat if over == "sample" else flat.transpose(0, 1).flatten(1)[None]


def _overlap(numerator: Tensor, denominator: Tensor) -> Tensor:
    empty = denominator == 0
    return torch.where(empty, 1.0, numerator / torch.where(empty, 1.0, denominator))


DiceLoss = module_of(dice, "DiceLoss")


@loss("masks", alpha="[0, ∞)", beta="[0, ∞)", gamma="(0, ∞)", smooth="[0, ∞)")
def tversky(
    prediction: Float[Tensor, "b c *d"],
    target: Float[Tensor, "b c *d"],
    *,
    alpha: float = 0.5,
    beta: float = 0.5,
    gamma: float = 1.0,
    smooth: float = 1.0,
    over: Over = "sample",
) -> Float[Tensor, ""]:
    """(1 − (TP + s)/(TP + α FP + β FN + s))^γ: α = β = ½ is Dice, α = β = 1 Jaccard; γ < 1 focuses.

    Args:
        prediction: probabilities, classes along the second axis.
        target: 0 and 1, or soft.
        alpha: cost of false positives.
        beta: cost of false negatives.
        gamma: focal exponent.
        smooth: s; half of the γ of :func:`dice` for the same smoothing.
        over: sums over each sample, or over the whole batch.

    Returns:
        Mean over classes (and samples).

    Example:
        >>> tversky(torch.ones(1, 1, 2), torch.tensor([[[1.0, 0.0]]]), smooth=0.0, alpha=1.0, beta=1.0)
        tensor(0.5000)

    References:
        Salehi et al. 2017, "Tversky loss function for image segmentation using 3D fully convolutional deep networks";
        Abraham and Khan 2019, "A Novel Focal Tversky loss function with improved Attention U-Net for lesion
        segmentation".
    """
    p, y = _flattened(prediction, over), _flattened(target, over)
    hits = (p * y).sum(-1)
    size = hits + alpha * (p.sum(-1) - hits) + beta * (y.sum(-1) - hits)
    missing = 1 - _overlap(hits + smooth, size + smooth)
    if gamma == 1:
        return missing.mean()
    positive = missing > 1e-12
    return torch.where(positive, torch.where(positive, missing, 1.0) ** gamma, 0.0).mean()


TverskyLoss = module_of(tversky, "TverskyLoss")


@loss("masks", alpha="[0, ∞)", smooth="[0, ∞)")
def self_adjusting_dice(
    prediction: Float[Tensor, "b c *d"],
    target: Float[Tensor, "b c *d"],
    *,
    alpha: float = 1.0,
    smooth: float = 1.0,
) -> Float[Tensor, ""]:
    """Dice of every single item with p replaced by (1 − p)^α p: items that are sure already weigh little.

    1 − (2(1 − p)^α p y + γ)/((1 − p)^α p + y + γ), for each sample, class and place.

    Args:
        prediction: probabilities.
        target: 0 and 1.
        alpha: α; 0 is Dice of single items.
        smooth: γ.

    Returns:
        Mean over everything.

    Example:
        >>> self_adjusting_dice(torch.ones(1, 1, 1), torch.ones(1, 1, 1))
        tensor(0.5000)

    References:
        Li et al. 2020, "Dice Loss for Data-imbalanced NLP Tasks".
    """
    p, y = widened(prediction), widened(target)
    adjusted = (1 - p) ** alpha * p if alpha else p
    return (1 - _overlap(2 * adjusted * y + smooth, adjusted + y + smooth)).mean()


SelfAdjustingDiceLoss = module_of(self_adjusting_dice, "SelfAdjustingDiceLoss")


def simpson_bias(prediction: Float[Tensor, "b c *d"], target: Float[Tensor, "b c *d"]) -> Float[Tensor, ""]:
    """Return the overlap of the whole batch less the mean overlap of its samples: what per-sample Dice does not see."""
    whole = dice(prediction, target, smooth=0.0, over="batch")
    return dice(prediction, target, smooth=0.0, over="sample") - whole


@loss("masks", alpha="[0, ∞)", beta="[0, ∞)", smooth="[0, ∞)")
def jaccard_metric(
    prediction: Float[Tensor, "b c *d"],
    target: Float[Tensor, "b c *d"],
    *,
    kind: Literal["sizes", "overlap"] = "sizes",
    alpha: float = 1.0,
    beta: float = 1.0,
    smooth: float = 1e-3,
    present_only: bool = True,
    over: Over = "batch",
) -> Float[Tensor, ""]:
    """Jaccard losses that stay a metric for soft labels: 0 iff prediction equals label.

    ``"sizes"`` (JML1) takes TP = (|p| + |y| − |p − y|)/2, FP = |p| − TP, FN = |y| − TP and gives
    1 − (TP + s)/(TP + α FP + β FN + s); α = β = ½ is the Dice semimetric. ``"overlap"`` (JML2) is
    1 − (Σpy + s)/(Σpy + |p − y| + s), a metric for hard labels whose value for equal soft ones is 0 as well.

    Args:
        prediction: probabilities, classes along the second axis.
        target: 0 and 1, or soft.
        kind: which form.
        alpha: cost of false positives.
        beta: cost of false negatives.
        smooth: s.
        present_only: average over classes with any label.
        over: sums over each sample, or over the whole batch.

    Returns:
        Mean over classes (and samples), 0 if no class is present.

    Example:
        >>> jaccard_metric(torch.full((1, 1, 2), 0.5), torch.full((1, 1, 2), 0.5))
        tensor(0.)

    References:
        Wang et al. 2023, "Jaccard Metric Losses: Optimizing the Jaccard Index with Soft Labels".
    """
    p, y = _flattened(prediction, over), _flattened(target, over)
    apart = (p - y).abs().sum(-1)
    if kind == "sizes":
        hits = (p.sum(-1) + y.sum(-1) - apart) / 2
        rest = alpha * (p.sum(-1) - hits) + beta * (y.sum(-1) - hits)
    else:
        hits, rest = (p * y).sum(-1), apart
    values = 1 - _overlap(hits + smooth, hits + rest + smooth)
    counted = (y.sum(-1) > 0) if present_only else torch.ones_like(hits, dtype=torch.bool)
    return torch.where(counted, values, 0.0).sum() / counted.sum().clamp(min=1)


JaccardMetricLoss = module_of(jaccard_metric, "JaccardMetricLoss")
