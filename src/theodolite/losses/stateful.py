"""Losses that remember: temperatures with running means, smoothed gradient variances, penalties that come in late."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from theodolite.losses.contract import Reduction, reduced, widened
from theodolite.losses.invariance import head_gradients


class IndividualTemperatures(nn.Module):
    """:func:`isogclr` with its state: a learnable temperature and a running mean of e^{h/τ} for every training sample.

    A batch has few of a sample's negatives, so the mean inside the logarithm is followed over batches,
    u ← (1 − γ)u + γ mean e^{h/τ}. The gradient is that of τ log E e^{h/τ} + τρ with E replaced by u; the value returned is
    τ log u + τρ. Weights e^{h/τ}/u are at most n/γ, whatever the scores.

    Args:
        samples: training samples.
        rho: radius ρ.
        first: first temperature.
        least: temperatures are held at or above it.
        gamma: γ, share of the newest batch.
        reduction: over anchors.

    Example:
        >>> contrast = IndividualTemperatures(10, rho=0.5, first=1.0)
        >>> contrast(torch.zeros(2, 3), torch.zeros(2), torch.tensor([4, 7])).detach()
        tensor(0.5000)

    References:
        Qiu et al. 2023, "Not All Semantics are Created Equal: Contrastive Self-supervised Learning with Automatic
        Temperature Individualization"; Yuan et al. 2022, "Provable Stochastic Optimization for Global Contrastive
        Learning: Small Batch Does Not Harm Performance".
    """

    log_means: Tensor

    def __init__(
        self,
        samples: int,
        *,
        rho: float = 0.1,
        first: float = 0.5,
        least: float = 0.05,
        gamma: float = 0.9,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        self.rho, self.least, self.gamma = rho, least, gamma
        self.reduction: Reduction = reduction
        self.temperatures = nn.Parameter(torch.full((samples,), first))
        self.register_buffer("log_means", torch.full((samples,), -math.inf))

    def forward(
        self, scores: Float[Tensor, "b n"], positives: Float[Tensor, " b"], index: Int[Tensor, " b"]
    ) -> Float[Tensor, "..."]:
        """Return the loss of anchors with these indices, and follow their means in training mode.

        Args:
            scores: cosines of the negatives.
            positives: cosine of each anchor with its other view.
            index: of the anchors among the training samples.
        """
        if self.training:
            with torch.no_grad():
                self.temperatures.clamp_(min=self.least)
        tau = self.temperatures[index]
        gaps = (widened(scores) - widened(positives)[:, None]) / tau[:, None]
        now = torch.logsumexp(gaps, 1) - math.log(scores.shape[1])
        followed = self._followed(now.detach(), index)
        ratio = torch.exp(now - followed)
        # the second term is 0 in value; its gradient is τ ∂(mean e^{h/τ})/u
        return reduced(tau * (followed + self.rho) + tau.detach() * (ratio - ratio.detach()), self.reduction)

    def _followed(self, now: Tensor, index: Tensor) -> Tensor:
        before = self.log_means[index].to(now.dtype)
        mixed = torch.logaddexp(before + math.log1p(-self.gamma), now + math.log(self.gamma))
        mixed = torch.where(before.isinf(), now, mixed)
        if self.training:
            self.log_means[index] = mixed.to(self.log_means.dtype)
        return mixed


class SmoothedFishr(nn.Module):
    """:func:`fishr` on moving averages of the variances: v ← βv + (1 − β)·batch, distances of v/(1 − β), as released.

    The divisor makes the gradient through the newest batch that of the plain variances, whatever β. The first batch
    costs what :func:`fishr` does.

    Args:
        decay: β.

    References:
        Rame et al. 2022, "Fishr: Invariant Gradient Variances for Out-of-Distribution Generalization".
    """

    averages: Tensor

    def __init__(self, *, decay: float = 0.95) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("averages", torch.zeros(0))

    def forward(
        self, features: Float[Tensor, "e b k"], logits: Float[Tensor, "e b c"], target: Int[Tensor, "e b"]
    ) -> Float[Tensor, ""]:
        """Return the penalty of a batch of every environment, and follow the variances in training mode."""
        variances = head_gradients(features, logits, target).var(1, correction=0)
        before = self.averages.to(variances) if len(self.averages) else torch.zeros_like(variances)
        mixed = self.decay * before + (1 - self.decay) * variances
        if self.training:
            self.averages = mixed.detach()
        scaled = mixed / (1 - self.decay)
        return (scaled - scaled.mean(0)).square().sum(1).mean()


@dataclass(frozen=True)
class AnnealedPenalty:
    """Risk plus an invariance penalty whose weight jumps after a while; above 1 the total is divided by it.

    The predictor first learns at all, then to be invariant. The division keeps the step size of the optimiser, whose state
    belongs to another loss after the jump: reset it where :meth:`resets` says so.

    Args:
        weight: λ after the jump, 1e2 to 1e4 for :func:`irm_v1`.
        steps: when it jumps.
        before: λ until then.

    Example:
        >>> penalty = AnnealedPenalty(weight=100.0, steps=500)
        >>> [float(penalty(torch.tensor(0.0), torch.tensor(0.5), step=step)) for step in (499, 500)]
        [0.5, 0.5]

    References:
        Arjovsky et al. 2019, "Invariant Risk Minimization"; Gulrajani and Lopez-Paz 2021, "In Search of Lost Domain
        Generalization".
    """

    weight: float = 1e3
    steps: int = 500
    before: float = 1.0

    def __call__(self, risk: Float[Tensor, ""], penalty: Float[Tensor, ""], *, step: int) -> Float[Tensor, ""]:
        """Return the total at this step, counted from 0."""
        weight = self.before if step < self.steps else self.weight
        return (risk + weight * penalty) / max(1.0, weight)

    def resets(self, step: int) -> bool:
        """Whether the optimiser starts anew before this step."""
        return step == self.steps
