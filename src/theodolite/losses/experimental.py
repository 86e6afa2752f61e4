"""Losses reconstructed from short descriptions: what was reconstructed is said in each; read them before relying on them."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from theodolite.losses.contract import Reduction, reduced, widened
from theodolite.losses.registry import loss, module_of
from theodolite.losses.segmentation import tversky


@loss("masks", lam="[0, ∞)", alpha="[0, 1]", gamma="(0, ∞)")
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


@loss("values", eps="[0, ∞)")
def log_square(
    prediction: Float[Tensor, "*b"], target: Float[Tensor, "*b"], *, eps: float = 1e-6, reduction: Reduction = "mean"
) -> Float[Tensor, "..."]:
    """−log(1 − (y − ŷ)² + ε) (LMSE): never below the squared error, steeper for large errors.

    Reconstructed from the formula alone: its paper was not traced, so the range of targets and ε are ours.

    Args:
        prediction: ŷ in [0, 1]; an error of 1 and more counts −log ε, without gradient.
        target: y in [0, 1].
        eps: ε.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        The reduced loss.

    Example:
        >>> log_square(torch.tensor([0.5]), torch.tensor([0.0]), eps=0.0)
        tensor(0.2877)

    References:
        Terven et al. 2023, "Loss Functions and Metrics in Deep Learning", for the squared error; the logarithm is a
        reconstruction.
    """
    error = widened(prediction) - widened(target)
    return reduced(-torch.log((1 - error.square()).clamp(min=0.0) + eps), reduction)


LogSquareLoss = module_of(log_square, "LogSquareLoss")


@loss("other")
def log_amplified(values: Float[Tensor, "*b"], *, reduction: Reduction = "mean") -> Float[Tensor, "..."]:
    """−log(1 − ℓ) of losses ℓ ∈ [0, 1) (LAMP): slope 1/(1 − ℓ), so bad samples count more.

    Reconstructed from the formula alone: its paper was not traced.

    Args:
        values: ℓ, one a sample, of a loss bounded by 1, such as a Dice loss; held at 1 − 1e-6.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        The reduced loss.

    Example:
        >>> log_amplified(torch.tensor([0.5]))
        tensor(0.6931)

    References:
        Terven et al. 2023, "Loss Functions and Metrics in Deep Learning", for the losses that it wraps; the logarithm is
        a reconstruction.
    """
    return reduced(-torch.log1p(-widened(values).clamp(max=1 - 1e-6)), reduction)


LogAmplifiedLoss = module_of(log_amplified, "LogAmplifiedLoss")
