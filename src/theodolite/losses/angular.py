"""Margins on the cosines between features and class vectors: additive in cosine or angle, and the circle."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from theodolite.losses.contract import Reduction, over_classes
from theodolite.losses.registry import loss, module_of


@loss("classes", scale="(0, ∞)", margin="[0, ∞)")
def angular_margin(
    cosines: Float[Tensor, "b c *d"],
    target: Int[Tensor, "b *d"],
    *,
    scale: float = 64.0,
    margin: float = 0.5,
    kind: Literal["angle", "cosine"] = "angle",
    weight: Float[Tensor, " c"] | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """Cross-entropy of s·cos with a margin for the true class: cos(θ_y + m), or cos θ_y − m.

    Args:
        cosines: of features and class vectors along the second axis; the angle is taken of what lies within ±1.
        target: class indices, or ``ignore_index``.
        scale: s.
        margin: m, in radians for the angle.
        kind: ``"angle"`` (ArcFace) or ``"cosine"`` (CosFace).
        weight, ignore_index, reduction: as in ``F.cross_entropy``.

    Returns:
        The reduced loss.

    Example:
        >>> angular_margin(torch.zeros(1, 2), torch.tensor([0]), scale=1.0, margin=0.5, kind="cosine")
        tensor(0.9741)

    References:
        Deng et al. 2019, "ArcFace: Additive Angular Margin Loss for Deep Face Recognition"; Wang et al. 2018, "CosFace:
        Large Margin Cosine Loss for Deep Face Recognition".
    """

    def values(rows: Tensor, classes: Tensor) -> Tensor:
        true = rows.gather(1, classes[:, None])
        held = true.clamp(-1 + 1e-6, 1 - 1e-6)  # arccos has an infinite slope at ±1
        moved = true - margin if kind == "cosine" else torch.cos(torch.arccos(held) + margin)
        return F.cross_entropy(scale * rows.scatter(1, classes[:, None], moved), classes, reduction="none")

    return over_classes(values, cosines, target, weight=weight, ignore_index=ignore_index, reduction=reduction)


AngularMarginLoss = module_of(angular_margin, "AngularMarginLoss")


@loss("classes", gamma="(0, ∞)", margin="(−∞, ∞)")
def circle_classes(
    cosines: Float[Tensor, "b c *d"],
    target: Int[Tensor, "b *d"],
    *,
    margin: float = 0.25,
    gamma: float = 256.0,
    detach_weight: bool = True,
    weight: Float[Tensor, " c"] | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """The class form of :func:`circle`: the true class vector is the one positive, the others are the negatives.

    softplus(lse_{k≠y} γα_k(s_k − m) − γα_y(s_y − 1 + m)), α_k = [s_k + m]_+, α_y = [1 + m − s_y]_+ held constant.

    Args:
        cosines: of features and class vectors along the second axis.
        target: class indices, or ``ignore_index``.
        margin: m.
        gamma: γ, 256 for faces, 80 for retrieval.
        detach_weight: as released; the gradient is then not that of the value.
        weight, ignore_index, reduction: as in ``F.cross_entropy``.

    Returns:
        The reduced loss.

    Example:
        >>> circle_classes(torch.tensor([[0.75, 0.25]]), torch.tensor([0]))
        tensor(0.6931)

    References:
        Sun et al. 2020, "Circle Loss: A Unified Perspective of Pair Similarity Optimization".
    """

    def values(rows: Tensor, classes: Tensor) -> Tensor:
        held = rows.detach() if detach_weight else rows
        down = gamma * torch.clamp(held + margin, min=0.0) * (rows - margin)
        up = gamma * torch.clamp(1 + margin - held, min=0.0) * (rows - 1 + margin)
        # with the positive in the true class's place this is cross-entropy: log(1 + Σ e^down e^−up)
        logits = down.scatter(1, classes[:, None], up.gather(1, classes[:, None]))
        return F.cross_entropy(logits, classes, reduction="none")

    return over_classes(values, cosines, target, weight=weight, ignore_index=ignore_index, reduction=reduction)


CircleClassesLoss = module_of(circle_classes, "CircleClassesLoss")
