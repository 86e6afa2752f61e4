"""Losses and scores of real-valued predictions, beside those torch has: log-cosh, quantile, Charbonnier, relative errors."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from theodolite.losses.contract import Reduction, reduced, widened
from theodolite.losses.numerics import safe_sqrt
from theodolite.losses.registry import loss, module_of


@loss("values")
def log_cosh(
    prediction: Float[Tensor, "*b"], target: Float[Tensor, "*b"], *, reduction: Reduction = "mean"
) -> Float[Tensor, "..."]:
    """log cosh(ŷ − y): half the square near 0, |e| − log 2 far away.

    Args:
        prediction: ŷ.
        target: y.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        The reduced loss.

    Example:
        >>> log_cosh(torch.tensor([100.0]), torch.tensor([0.0]))
        tensor(99.3069)

    References:
        Green 1990, "Bayesian reconstructions from emission tomography data using a modified EM algorithm".
    """
    error = widened(prediction) - widened(target)
    # not of |e|, which would hide the curvature of 1 at an exact prediction
    # Beyond torch's own threshold of 20 the softplus is 2e-9 short in double precision; beyond 40 nothing is.
    return reduced(F.softplus(2 * error, threshold=40) - error - math.log(2.0), reduction)


LogCoshLoss = module_of(log_cosh, "LogCoshLoss")


@loss("values", q="(0, 1)")
def quantile(
    prediction: Float[Tensor, "*b"], target: Float[Tensor, "*b"], *, q: float = 0.5, reduction: Reduction = "mean"
) -> Float[Tensor, "..."]:
    """The pinball loss max(q e, (q − 1)e), e = y − ŷ: minimised by the q-quantile.

    Args:
        prediction: ŷ.
        target: y.
        q: in (0, 1).
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        The reduced loss.

    Example:
        >>> quantile(torch.tensor([0.0]), torch.tensor([2.0]), q=0.9)
        tensor(1.8000)

    References:
        Koenker and Bassett 1978, "Regression Quantiles".
    """
    # (1 − q) times a leaky rectifier of −e: one pass over the elements
    return (1 - q) * reduced(F.leaky_relu(widened(prediction) - widened(target), -q / (1 - q)), reduction)


QuantileLoss = module_of(quantile, "QuantileLoss")


@loss("values", eps="(0, ∞)")
def charbonnier(
    prediction: Float[Tensor, "*b"], target: Float[Tensor, "*b"], *, eps: float = 1e-3, reduction: Reduction = "mean"
) -> Float[Tensor, "..."]:
    """√(e² + ε²), an absolute error that is smooth at 0.

    Args:
        prediction: ŷ.
        target: y.
        eps: ε.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        The reduced loss.

    Example:
        >>> charbonnier(torch.tensor([3.0]), torch.tensor([0.0]), eps=4.0)
        tensor(5.)

    References:
        Charbonnier et al. 1994, "Two deterministic half-quadratic regularization algorithms for computed imaging".
    """
    return reduced(torch.sqrt((widened(prediction) - widened(target)).square() + eps**2), reduction)


CharbonnierLoss = module_of(charbonnier, "CharbonnierLoss")


@loss("values")
def squared_log_error(
    prediction: Float[Tensor, "*b"], target: Float[Tensor, "*b"], *, reduction: Reduction = "mean"
) -> Float[Tensor, "..."]:
    """(log(1 + ŷ) − log(1 + y))², for values above −1; its root mean is the RMSLE.

    Args:
        prediction: ŷ > −1.
        target: y > −1.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        The reduced loss.

    Example:
        >>> squared_log_error(torch.tensor([math.e - 1]), torch.tensor([0.0]))
        tensor(1.)

    References:
        Terven et al. 2023, "Loss Functions and Metrics in Deep Learning".
    """
    squares = F.mse_loss(torch.log1p(widened(prediction)), torch.log1p(widened(target)), reduction="none")
    return reduced(squares, reduction)


SquaredLogErrorLoss = module_of(squared_log_error, "SquaredLogErrorLoss")


@loss("values", eps="[0, ∞)")
def percentage_error(
    prediction: Float[Tensor, "*b"], target: Float[Tensor, "*b"], *, eps: float = 1e-8, reduction: Reduction = "mean"
) -> Float[Tensor, "..."]:
    """|ŷ − y| / max(|y|, ε) (MAPE as a share, not times 100).

    Args:
        prediction: ŷ.
        target: y.
        eps: ε, where targets vanish.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        The reduced loss.

    Example:
        >>> percentage_error(torch.tensor([3.0]), torch.tensor([2.0]))
        tensor(0.5000)

    References:
        Terven et al. 2023, "Loss Functions and Metrics in Deep Learning".
    """
    y = widened(target)
    return reduced((widened(prediction) - y).abs() / y.abs().clamp(min=eps), reduction)


PercentageErrorLoss = module_of(percentage_error, "PercentageErrorLoss")


@loss("values")
def root_mean_square(
    prediction: Float[Tensor, "*b"],
    target: Float[Tensor, "*b"],
    *,
    normalizer: Literal["none", "range", "mean", "prediction"] = "none",
) -> Float[Tensor, ""]:
    """Root mean square error, as it is or over the range or mean of the targets, or over the predictions' own size.

    Its gradient is 0, not NaN, where every prediction is right.

    Args:
        prediction: ŷ.
        target: y.
        normalizer: ``"range"`` and ``"mean"`` give the NRMSE, ``"prediction"`` (root of Σŷ²/n) the RRMSE.

    Returns:
        The loss of the whole batch.

    Example:
        >>> root_mean_square(torch.tensor([3.0, 1.0]), torch.tensor([0.0, 1.0]))
        tensor(2.1213)

    References:
        Terven et al. 2023, "Loss Functions and Metrics in Deep Learning".
    """
    x, y = widened(prediction), widened(target)
    root = safe_sqrt(F.mse_loss(x, y))
    if normalizer == "range":
        return root / (y.max() - y.min())
    if normalizer == "mean":
        return root / y.mean().abs()
    return root / safe_sqrt(x.square().mean()) if normalizer == "prediction" else root


RootMeanSquareLoss = module_of(root_mean_square, "RootMeanSquareLoss")


@loss("values")
def relative_error(
    prediction: Float[Tensor, "*b"], target: Float[Tensor, "*b"], *, power: Literal[1, 2] = 2
) -> Float[Tensor, ""]:
    """Σ|ŷ − y|^p / Σ|y − ȳ|^p: 1 for the predictor that knows only the mean (RAE for p = 1, RSE = 1 − R² for p = 2).

    Args:
        prediction: ŷ.
        target: y, not constant.
        power: p.

    Returns:
        The loss of the whole batch.

    Example:
        >>> relative_error(torch.tensor([1.0, 1.0]), torch.tensor([0.0, 2.0]))
        tensor(1.)

    References:
        Terven et al. 2023, "Loss Functions and Metrics in Deep Learning".
    """
    x, y = widened(prediction), widened(target)
    if power == 2:
        return (x - y).square().sum() / (y - y.mean()).square().sum()
    return (x - y).abs().sum() / (y - y.mean()).abs().sum()


RelativeErrorLoss = module_of(relative_error, "RelativeErrorLoss")


def mean_bias(prediction: Float[Tensor, "*b"], target: Float[Tensor, "*b"]) -> Float[Tensor, ""]:
    """Return mean(ŷ − y), a score of bias that has no minimum and is no loss."""
    return (widened(prediction) - widened(target)).mean()
