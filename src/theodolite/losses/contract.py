"""The contract every loss keeps: float32 at least, reductions, class weights and ignored targets as in torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

Reduction = Literal["mean", "sum", "none"]
PerSample = Callable[[Tensor, Tensor], Tensor]

HALF = (torch.float16, torch.bfloat16)


def over_classes(
    values: PerSample,
    logits: Float[Tensor, "b c *d"],
    target: Int[Tensor, "b *d"],
    *,
    weight: Float[Tensor, " c"] | None,
    ignore_index: int,
    reduction: Reduction,
) -> Float[Tensor, "..."]:
    """Apply a loss of single samples to logits and class indices, with the options of ``F.cross_entropy``.

    The one difference from torch: a batch in which every target is ignored has loss 0 (torch divides 0 by 0).

    Args:
        values: maps logits (n, c) and classes (n,) to losses (n,).
        logits: classes along the second axis.
        target: class indices, or ``ignore_index``.
        weight: one a class; the mean divides by the weights of the targets.
        ignore_index: target value that contributes neither loss nor gradient.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (shaped as the target).

    Returns:
        The reduced loss.
    """
    rows, classes, valid = class_rows(logits, target, ignore_index)
    per_sample = values(rows, classes)
    if weight is not None:
        per_sample = per_sample * weight.to(per_sample.dtype)[classes]
    return reduce_rows(per_sample, classes, valid, target.shape, weight=weight, reduction=reduction)


def smoothed_cross_entropy(
    logits: Float[Tensor, "b c *d"],
    target: Int[Tensor, "b *d"],
    *,
    weight: Float[Tensor, " c"] | None,
    ignore_index: int,
    label_smoothing: float,
    reduction: Reduction,
) -> Float[Tensor, "..."]:
    """Return ``F.cross_entropy``, except that a batch with every target ignored has loss 0 instead of NaN."""
    rows, classes, valid = class_rows(logits, target, ignore_index)
    widened = None if weight is None else weight.to(rows.dtype)
    per_sample = F.cross_entropy(rows, classes, weight=widened, reduction="none", label_smoothing=label_smoothing)
    return reduce_rows(per_sample, classes, valid, target.shape, weight=weight, reduction=reduction)


def class_rows(
    logits: Float[Tensor, "b c *d"], target: Int[Tensor, "b *d"], ignore_index: int
) -> tuple[Float[Tensor, "n c"], Int[Tensor, " n"], Bool[Tensor, " n"]]:
    """Return logits one sample a row, a valid class for every row, and which rows count."""
    if logits.ndim > 2:
        logits = logits.movedim(1, -1).reshape(-1, logits.shape[1])
    flat = target.reshape(-1).long()
    valid = flat != ignore_index
    return widened(logits), torch.where(valid, flat, 0), valid


def reduce_rows(
    per_sample: Float[Tensor, " n"],
    classes: Int[Tensor, " n"],
    valid: Bool[Tensor, " n"],
    shape: torch.Size,
    *,
    weight: Float[Tensor, " c"] | None,
    reduction: Reduction,
) -> Float[Tensor, "..."]:
    """Drop ignored samples and reduce; the weights are already in the values and enter only the mean's divisor."""
    kept = torch.where(valid, per_sample, 0.0)
    if reduction == "none":
        return kept.reshape(shape)
    if reduction == "sum":
        return kept.sum()
    if weight is None:
        return kept.sum() / valid.sum().clamp(min=1)
    return mean_over(kept.sum(), torch.where(valid, weight.to(kept.dtype)[classes], 0.0).sum())


def row_scales(
    target: Int[Tensor, " n"],
    *,
    weight: Float[Tensor, " c"] | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, " n"]:
    """Return how much each sample's own loss counts in the reduced loss."""
    valid = target != ignore_index
    classes = torch.where(valid, target, 0)
    shares = valid.to(dtype) if weight is None else torch.where(valid, weight.to(dtype)[classes], 0.0)
    return mean_over(shares, shares.sum()) if reduction == "mean" else shares


def reduced(values: Float[Tensor, "*d"], reduction: Reduction) -> Float[Tensor, "..."]:
    """Reduce losses that all count the same; an empty batch has mean 0."""
    if reduction == "none":
        return values
    return values.sum() if reduction == "sum" else mean_over(values.sum(), values.new_tensor(float(values.numel())))


def mean_over(total: Float[Tensor, "*d"], count: Float[Tensor, ""]) -> Float[Tensor, "*d"]:
    """Divide, with 0 where nothing counted."""
    return total / torch.where(count == 0, 1.0, count)


def widened(values: Tensor) -> Tensor:
    """Return half-precision values as float32: exponentials and sums of losses do not fit in half precision."""
    return values.float() if values.dtype in HALF else values
