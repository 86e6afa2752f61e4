"""Losses of forecasts and of unevenly spread targets: directional, correlation with inverse-density weights, binned."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from theodolite.losses.contract import Reduction, reduced, widened
from theodolite.losses.numerics import safe_sqrt
from theodolite.losses.registry import loss, module_of


@loss("values", sharpness="(0, ∞)")
def directional(
    prediction: Float[Tensor, "*b"],
    target: Float[Tensor, "*b"],
    *,
    sharpness: float | None = 10.0,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """Mean absolute directional loss: −sign(r r̂)|r|, what trading on the sign of the forecast would have lost.

    The published form has no gradient; tanh(k r r̂) in place of the sign is our reconstruction of a trainable one.

    Args:
        prediction: forecast returns r̂.
        target: realised returns r.
        sharpness: k; None for the published score.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        The reduced loss.

    Example:
        >>> directional(torch.tensor([0.1, -0.1]), torch.tensor([0.02, 0.01]), sharpness=None)
        tensor(-0.0050)

    References:
        Michańków et al. 2023, "Mean Absolute Directional Loss as a New Loss Function for Machine Learning Problems in
        Algorithmic Investment Strategies".
    """
    product = widened(prediction) * widened(target)
    agreement = torch.sign(product) if sharpness is None else torch.tanh(sharpness * product)
    return reduced(-agreement * widened(target).abs(), reduction)


DirectionalLoss = module_of(directional, "DirectionalLoss")


@loss("other")
def cisir(
    prediction: Float[Tensor, " b"],
    target: Float[Tensor, " b"],
    weights: Float[Tensor, " b"],
    *,
    lam: float = 0.5,
) -> Float[Tensor, ""]:
    """Weighted squared error plus λ(1 − weighted Pearson correlation), for targets with few rare values.

    The correlation is centred by the plain means, as released, so it is invariant to shift and positive scale of the
    predictions.

    Args:
        prediction: ŷ.
        target: y.
        weights: of the samples with sum 1, see :func:`mdi_weights`.
        lam: λ.

    Returns:
        The loss of the whole batch.

    Example:
        >>> cisir(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.5]))
        tensor(0.)

    References:
        Moukpe et al. 2025, "Highly Imbalanced Regression with Tabular Data in SEP and Other Applications".
    """
    x, y, w = widened(prediction), widened(target), widened(weights)
    u, v = x - x.mean(), y - y.mean()
    size = safe_sqrt((w * u.square()).sum() * (w * v.square()).sum()).clamp(min=1e-12)
    return (w * (x - y).square()).sum() + lam * (1 - (w * u * v).sum() / size)


CISIRLoss = module_of(cisir, "CISIRLoss")


def mdi_weights(target: Float[Tensor, " n"], *, alpha: float = 1.0, bandwidth: float = 0.07) -> Float[Tensor, " n"]:
    """Return sample weights (1 − d^α)^{1/α} with sum 1, d the relative density of each target.

    The map d ↦ (1 − d^α)^{1/α} is its own inverse: linear for α = 1, concave above, convex below.

    Cost: n² kernel values.

    Args:
        target: y of all training samples.
        alpha: shape.
        bandwidth: of the Gaussian kernel density estimate, in units of y.

    Returns:
        Weights.

    Example:
        >>> mdi_weights(torch.tensor([0.0, 0.0, 5.0]))
        tensor([5.2550e-04, 5.2550e-04, 9.9895e-01])

    References:
        Moukpe et al. 2025, "Highly Imbalanced Regression with Tabular Data in SEP and Other Applications".
    """
    density = torch.exp(-0.5 * ((target[:, None] - target[None]) / bandwidth) ** 2).mean(1)
    # kernel height as released: 1e-3 is added to a density, so its unit matters
    density = density / (bandwidth * math.sqrt(2 * math.pi))
    weights = involution(density / (density.max() + 1e-3), alpha)
    return weights / weights.sum()


def involution(d: Float[Tensor, "*n"], alpha: float) -> Float[Tensor, "*n"]:
    """Return (1 − d^α)^{1/α} for d in [0, 1]."""
    return (1 - d**alpha) ** (1 / alpha)


def stratified_batches(target: Float[Tensor, " n"], *, size: int, seed: int) -> Int[Tensor, "batches size"]:
    """Return batches of indices, each with one sample of every stratum of the sorted targets.

    Args:
        target: y of all training samples.
        size: samples a batch, and number of strata; the remainder of n/size is dropped at random.
        seed: of the order inside each stratum.

    Returns:
        One batch a row, an epoch in all.
    """
    generator = torch.Generator().manual_seed(seed)
    count = len(target) // size
    kept = torch.randperm(len(target), generator=generator)[: count * size].sort().values
    strata = target.argsort()[kept].reshape(size, count)
    order = torch.stack([torch.randperm(count, generator=generator) for _ in range(size)])
    return strata.gather(1, order.to(strata.device)).T.contiguous()


@loss("other", lam="[0, ∞)")
def regression_by_classes(
    prediction: Float[Tensor, " b"],
    logits: Float[Tensor, "b k"],
    target: Float[Tensor, " b"],
    *,
    edges: Float[Tensor, " e"],
    lam: float = 1.0,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """Squared error plus λ times the cross-entropy of the target's bin, predicted by a second head.

    Args:
        prediction: of the regression head.
        logits: of the classification head, one a bin.
        target: y.
        edges: inner bin edges, k − 1 of them, see :func:`equal_frequency_edges`.
        lam: λ, 0.1 to 100.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        The reduced loss.

    Example:
        >>> regression_by_classes(torch.tensor([1.0]), torch.zeros(1, 2), torch.tensor([1.0]), edges=torch.tensor([0.5]))
        tensor(0.6931)

    References:
        Pintea et al. 2023, "A step towards understanding why classification helps regression".
    """
    bins = torch.bucketize(target, edges)
    squared = (widened(prediction) - widened(target)).square()
    return reduced(squared + lam * F.cross_entropy(widened(logits), bins, reduction="none"), reduction)


RegressionByClassesLoss = module_of(regression_by_classes, "RegressionByClassesLoss")


def equal_frequency_edges(target: Float[Tensor, " n"], *, bins: int) -> Float[Tensor, " e"]:
    """Return the inner edges of bins that hold equally many targets."""
    shares = torch.linspace(0, 1, bins + 1, dtype=target.dtype, device=target.device)[1:-1]
    return torch.quantile(target, shares)
