"""Losses on pairs of answers without a reference model (SimPO, ORPO, CPO), on win rates (SPPO), and under label noise."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from theodolite.losses.contract import Reduction, reduced, widened
from theodolite.losses.numerics import log1mexp
from theodolite.losses.registry import loss, module_of


@loss("other", beta="(0, ∞)", gamma="(−∞, ∞)")
def simpo(
    chosen: Float[Tensor, " b"],
    rejected: Float[Tensor, " b"],
    chosen_length: Float[Tensor, " b"] | Int[Tensor, " b"],
    rejected_length: Float[Tensor, " b"] | Int[Tensor, " b"],
    *,
    beta: float = 2.0,
    gamma: float = 1.0,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """Simple preference optimisation: −log σ(β(l_w/n_w − l_l/n_l) − γ), length-normalised, without a reference.

    Args:
        chosen: log-probabilities of the preferred answers, summed over tokens.
        rejected: of the rejected answers.
        chosen_length: tokens of the preferred answers.
        rejected_length: tokens of the rejected answers.
        beta: β.
        gamma: target margin γ.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        The reduced loss.

    Example:
        >>> simpo(torch.tensor([-2.0]), torch.tensor([-4.0]), torch.tensor([2]), torch.tensor([4]), gamma=0.0)
        tensor(0.6931)

    References:
        Meng et al. 2024, "SimPO: Simple Preference Optimization with a Reference-Free Reward".
    """
    margin = beta * (widened(chosen) / chosen_length - widened(rejected) / rejected_length) - gamma
    return reduced(-F.logsigmoid(margin), reduction)


SimPOLoss = module_of(simpo, "SimPOLoss")


@loss("other", lam="[0, ∞)")
def orpo(
    chosen: Float[Tensor, " b"],
    rejected: Float[Tensor, " b"],
    chosen_length: Float[Tensor, " b"] | Int[Tensor, " b"],
    rejected_length: Float[Tensor, " b"] | Int[Tensor, " b"],
    *,
    lam: float = 0.1,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """Odds-ratio preference optimisation: likelihood of the preferred answer − λ log σ(log odds ratio).

    The odds are those of the mean log-probability ℓ a token, log odds = ℓ − log(1 − e^ℓ). ℓ is held below −1e-6, where
    the odds of a certain answer would be infinite.

    Args:
        chosen: log-probabilities of the preferred answers, summed over tokens.
        rejected: of the rejected answers.
        chosen_length: tokens of the preferred answers.
        rejected_length: tokens of the rejected answers.
        lam: λ.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        The reduced loss.

    Example:
        >>> orpo(torch.tensor([-2.0]), torch.tensor([-4.0]), torch.tensor([2]), torch.tensor([4]))
        tensor(1.0693)

    References:
        Hong et al. 2024, "ORPO: Monolithic Preference Optimization without Reference Model".
    """
    up, down = widened(chosen) / chosen_length, widened(rejected) / rejected_length
    return reduced(-up - lam * F.logsigmoid(_log_odds(up) - _log_odds(down)), reduction)


def _log_odds(log_p: Tensor) -> Tensor:
    held = log_p.clamp(max=-1e-6)
    return held - log1mexp(-held)


ORPOLoss = module_of(orpo, "ORPOLoss")


@loss("other", beta="(0, ∞)", alpha="[0, ∞)")
def cpo(
    chosen: Float[Tensor, " b"],
    rejected: Float[Tensor, " b"],
    chosen_length: Float[Tensor, " b"] | Int[Tensor, " b"],
    rejected_length: Float[Tensor, " b"] | Int[Tensor, " b"],
    *,
    beta: float = 0.1,
    alpha: float = 1.0,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """Contrastive preference optimisation: DPO with a uniform reference, plus α times the likelihood term a token.

    Args:
        chosen: log-probabilities of the preferred answers, summed over tokens.
        rejected: of the rejected answers.
        chosen_length: tokens of the preferred answers.
        rejected_length: tokens of the rejected answers.
        beta: β.
        alpha: weight of −l_w/n_w.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        The reduced loss.

    Example:
        >>> cpo(torch.tensor([-2.0]), torch.tensor([-2.0]), torch.tensor([2]), torch.tensor([4]), alpha=0.0)
        tensor(0.6931)

    References:
        Xu et al. 2024, "Contrastive Preference Optimization: Pushing the Boundaries of LLM Performance in Machine
        Translation".
    """
    contrast = -F.logsigmoid(beta * (widened(chosen) - widened(rejected)))
    return reduced(contrast - alpha * widened(chosen) / chosen_length, reduction)


CPOLoss = module_of(cpo, "CPOLoss")


@loss("other", eta="(0, ∞)")
def sppo(
    log_prob: Float[Tensor, " b"],
    log_prob_before: Float[Tensor, " b"],
    win_rate: Float[Tensor, " b"],
    *,
    eta: float = 1000.0,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """Self-play preference optimisation: (log π/π_t − η(P̂ − ½))², one term an answer.

    Args:
        log_prob: log-probability of each answer, summed over tokens.
        log_prob_before: under the policy π_t that drew it.
        win_rate: estimated probability P̂ that it beats another draw.
        eta: η; the paper uses 1000 with sums over tokens.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        The reduced loss.

    Example:
        >>> sppo(torch.tensor([1.0]), torch.tensor([0.0]), torch.tensor([1.0]), eta=2.0)
        tensor(0.)

    References:
        Wu et al. 2024, "Self-Play Preference Optimization for Language Model Alignment".
    """
    gain = widened(log_prob) - widened(log_prob_before)
    return reduced((gain - eta * (widened(win_rate) - 0.5)).square(), reduction)


SPPOLoss = module_of(sppo, "SPPOLoss")


class LatentPreferenceLoss(nn.Module):
    """Preference loss under label noise by expectation–maximisation: each pair is trusted as far as the model agrees.

    With s = σ(margin) and η the share of right labels, the posterior that a label is right is
    w = ηs/(ηs + (1 − η)(1 − s)), held constant; the loss is −w log s − (1 − w) log(1 − s), its slope in the margin
    −(w − s). η follows the mean of w. Give it the margin of any of the losses here, e.g. βΔ of DPO.

    Args:
        share: first value of η.
        momentum: of the moving average of η.
        reduction: over pairs.

    References:
        Cao et al. 2025, "Latent Collective Preference Optimization: A General Framework for Robust LLM Alignment".
    """

    share: Tensor

    def __init__(self, *, share: float = 0.9, momentum: float = 0.9, reduction: Reduction = "mean") -> None:
        super().__init__()
        self.momentum, self.reduction = momentum, reduction
        self.register_buffer("share", torch.tensor(share, dtype=torch.float64))

    def forward(self, margin: Float[Tensor, " b"]) -> Float[Tensor, "..."]:
        """Return the loss, and update η in training mode."""
        logits = widened(margin)
        prior = torch.logit(self.share.clamp(1e-6, 1 - 1e-6)).to(logits.dtype)
        weight = torch.sigmoid(logits + prior).detach()
        if self.training:
            self.share.lerp_(weight.mean().to(self.share.dtype), 1 - self.momentum)
        return reduced(-weight * F.logsigmoid(logits) - (1 - weight) * F.logsigmoid(-logits), self.reduction)
