"""Losses from weak labels: bags with one aggregate label, label proportions, and models seen only through samples."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from theodolite.losses.contract import Reduction, reduced, widened
from theodolite.losses.registry import loss, module_of


@loss("other")
def bag_square(
    prediction: Float[Tensor, "b k"],
    bag_mean: Float[Tensor, " b"],
    *,
    rho: float = 0.0,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """Squared error of bags that only their mean label is known of: (ȳ − f̄)² + ρ Var_bag(f).

    ρ = 0 is the bag loss, ρ = 1 the instance loss mean_i (ȳ − f_i)²: the two differ by exactly the variance of the
    predictions inside a bag.

    Args:
        prediction: of each member.
        bag_mean: ȳ.
        rho: ρ.
        reduction: over bags.

    Returns:
        The reduced loss.

    Example:
        >>> import torch
        >>> bag_square(torch.tensor([[0.0, 2.0]]), torch.tensor([1.0]), rho=1.0)
        tensor(1.)

    References:
        Javanmard et al. 2024, "Learning from Aggregate responses: Instance Level versus Bag Level Loss Functions".
    """
    f = widened(prediction)
    return reduced((widened(bag_mean) - f.mean(1)).square() + rho * f.var(1, correction=0), reduction)


BagSquareLoss = module_of(bag_square, "BagSquareLoss")


@loss("other", prior="(0, 1)")
def easy_llp(
    logits: Float[Tensor, "b k"],
    proportion: Float[Tensor, " b"],
    *,
    prior: float,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """Unbiased instance loss from label proportions: (k(α − π) + π)ℓ(f, 1) + (k(π − α) + 1 − π)ℓ(f, 0).

    ℓ is the logistic loss. The mean over a bag of k equals the risk in expectation when members are drawn independently;
    the variance grows with k, and the loss has no lower bound.

    Args:
        logits: f of each member.
        proportion: share α of positives in each bag.
        prior: π, share of positives in the population.
        reduction: over bags, each the mean over its members.

    Returns:
        The reduced loss.

    Example:
        >>> import torch
        >>> easy_llp(torch.zeros(1, 1), torch.tensor([1.0]), prior=0.5)
        tensor(0.6931)

    References:
        Busa-Fekete et al. 2023, "Easy Learning from Label Proportions".
    """
    f, alpha, k = widened(logits), widened(proportion)[:, None], logits.shape[1]
    positive = (k * (alpha - prior) + prior) * F.softplus(-f)
    negative = (k * (prior - alpha) + 1 - prior) * F.softplus(f)
    return reduced((positive + negative).mean(1), reduction)


EasyLLPLoss = module_of(easy_llp, "EasyLLPLoss")


def black_box_square(draws: Int[Tensor, " m"], data: Int[Tensor, " n"]) -> Float[Tensor, ""]:
    """Return an unbiased estimate of |p − q|² − |q|² from draws of a model p and of the data q.

    The mean over pairs of 1[x = x'] less twice that of 1[x = y]: the squared loss is one of the few proper losses that
    fixed numbers of draws estimate without bias; cross-entropy is not. A score: it has no gradient in the draws.

    Raises:
        ValueError: for fewer than two draws of the model.
    """
    m = len(draws)
    if m < 2:
        raise ValueError(f"The estimate needs two draws of the model. Found {m}.")
    same = (draws[:, None] == draws[None]).double().sum() - m
    return same / (m * (m - 1)) - 2 * (draws[:, None] == data[None]).double().mean()
