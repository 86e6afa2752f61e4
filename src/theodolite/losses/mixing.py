"""Contrast with negatives from elsewhere: from the batch in a classifier's denominator, and between mixed samples."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from theodolite.losses.contract import Reduction, reduced
from theodolite.losses.registry import loss, module_of
from theodolite.losses.tiles import at_full_precision, unit_rows


@loss("other", coupled=True, scale="(0, ∞)", margin="(−∞, ∞)")
def unified_negatives(
    embeddings: Float[Tensor, "b k"],
    prototypes: Float[Tensor, "c k"],
    target: Int[Tensor, " b"],
    *,
    scale: float = 32.0,
    margin: float = 0.0,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """Cross-entropy of s·cos to class prototypes, its denominator extended by the negative pairs of the batch (UNPG).

    Pairs of different classes enter every sample's denominator if their cosine lies within the whiskers
    [Q₁ − 1.5 IQR, Q₃ + 1.5 IQR] of all of them: outliers are mostly wrong labels and trivial pairs. Without negative pairs
    it is the plain loss.

    Args:
        embeddings: one a sample, normalised here.
        prototypes: one a class, likewise.
        target: class indices.
        scale: s.
        margin: taken from the cosine of the true class.
        reduction: over samples.

    Returns:
        The reduced loss.

    Example:
        >>> unified_negatives(torch.eye(2), torch.eye(2), torch.tensor([0, 1]), scale=1.0)
        tensor(0.5514)

    References:
        Jung et al. 2022, "Unified Negative Pair Generation toward Well-discriminative Feature Space for Face Recognition".
    """
    with at_full_precision(embeddings):
        z = unit_rows(embeddings)
        cosines = z @ unit_rows(prototypes).T
        true = cosines.gather(1, target[:, None]) - margin
        logits = cosines.scatter(1, target[:, None], true)
        first, second = torch.triu_indices(len(z), len(z), 1, device=z.device)
        negative = target[first] != target[second]
        pairs = (z[first[negative]] * z[second[negative]]).sum(1)
        pairs = pairs[_within_whiskers(pairs.detach())]
        every = torch.cat([logits, pairs.expand(len(z), -1)], 1)
        return reduced(torch.logsumexp(scale * every, 1) - scale * true[:, 0], reduction)


def _within_whiskers(values: Tensor) -> Tensor:
    if len(values) == 0:
        return torch.zeros_like(values, dtype=torch.bool)
    low, high = torch.quantile(values, values.new_tensor([0.25, 0.75]))
    reach = 1.5 * (high - low)
    kept: Tensor = (values >= low - reach) & (values <= high + reach)
    return kept


UnifiedNegativesLoss = module_of(unified_negatives, "UnifiedNegativesLoss")


@loss("other", coupled=True, temperature="(0, ∞)")
def mixup_contrastive(
    mixed: Float[Tensor, "b k"],
    views: Float[Tensor, "b k"],
    partner: Int[Tensor, " b"],
    shares: Float[Tensor, " b"],
    *,
    temperature: float = 0.1,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """InfoNCE of mixed samples with both of their sources: λ log-loss of v_i plus 1 − λ that of v_{π(i)}.

    Args:
        mixed: embeddings of λx_i + (1 − λ)x_{π(i)}.
        views: embeddings v of another view of the unmixed samples.
        partner: π.
        shares: λ of each sample, in [0, 1].
        temperature: τ.
        reduction: over samples.

    Returns:
        The reduced loss; InfoNCE in one direction for λ = 1.

    Example:
        >>> mixup_contrastive(torch.ones(2, 2), torch.ones(2, 2), torch.tensor([1, 0]), torch.tensor([0.3, 0.6]))
        tensor(0.6931)

    References:
        Lee et al. 2021, "i-Mix: A Domain-Agnostic Strategy for Contrastive Representation Learning"; Kim et al. 2020,
        "MixCo: Mix-up Contrastive Learning for Visual Representation".
    """
    with at_full_precision(mixed):
        log_p = torch.log_softmax(unit_rows(mixed) @ unit_rows(views).T / temperature, 1)
        own, other = torch.diagonal(log_p), log_p.gather(1, partner[:, None])[:, 0]
        share = shares.to(log_p.dtype)
        return reduced(-share * own - (1 - share) * other, reduction)


MixupContrastiveLoss = module_of(mixup_contrastive, "MixupContrastiveLoss")
