"""Losses reconstructed from short descriptions: what was reconstructed is said in each; read them before relying on them."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from theodolite.losses.registry import loss, module_of
from theodolite.losses.segmentation import tversky


@loss("masks")
def projected_tversky(
    prediction: Float[Tensor, "b c *d"],
    target: Float[Tensor, "b c *d"],
    *,
    axes: tuple[int, ...] = (2,),
    lam: float = 1.0,
    alpha: float = 0.7,
    gamma: float = 0.75,
) -> Float[Tensor, ""]:
    """Focal Tversky of the mask plus that of its maximum-intensity projections, where gaps in thin vessels show.

    Args:
        prediction: probabilities, classes along the second axis.
        target: 0 and 1.
        axes: projected along, each on its own.
        lam: weight of the mean over projections.
        alpha: cost of false negatives, 1 − α of false positives.
        gamma: focal exponent.

    Returns:
        The loss of the whole batch.

    Example:
        >>> projected_tversky(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2))
        tensor(0.)

    References:
        Abraham and Khan 2019, "A Novel Focal Tversky loss function with improved Attention U-Net for lesion
        segmentation", for the base; the projection term is a reconstruction of losses on maximum-intensity projections.
    """

    def base(p: Tensor, y: Tensor) -> Tensor:
        return tversky(p, y, alpha=1 - alpha, beta=alpha, gamma=gamma)

    shadows = [base(prediction.amax(axis, keepdim=True), target.amax(axis, keepdim=True)) for axis in axes]
    return base(prediction, target) + lam * torch.stack(shadows).mean()


ProjectedTverskyLoss = module_of(projected_tversky, "ProjectedTverskyLoss")
