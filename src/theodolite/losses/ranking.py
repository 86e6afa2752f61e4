"""Losses of whole rankings: NDCG through a soft sort, and mixed samples that should rank by their mixture."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from theodolite.losses.contract import mean_over, widened
from theodolite.losses.numerics import NEGLIGIBLE
from theodolite.losses.registry import loss, module_of


@loss("other")
def neural_ndcg(
    scores: Float[Tensor, "b n"],
    relevance: Float[Tensor, "b n"],
    *,
    tau: float = 1.0,
    k: int | None = None,
    transposed: bool = False,
    padded: Bool[Tensor, "b n"] | None = None,
    sinkhorn_steps: int = 50,
    noise: float = 0.0,
    draws: int = 32,
    seed: int = 0,
) -> Float[Tensor, ""]:
    """−NDCG with the sort replaced by a doubly stochastic matrix: exact for τ → 0.

    P_i = softmax_j(((n + 1 − 2i)s_j − Σ_l |s_j − s_l|)/τ), then Sinkhorn scaling; gains 2^y − 1 in both numerator and
    ideal (the released code uses two different ones in a branch).

    Cost: n² numbers a list, step and draw.

    Args:
        scores: one a document.
        relevance: y ≥ 0.
        tau: τ.
        k: ranks that count; all by default.
        transposed: weigh documents by their expected discount instead of ranks by their expected gain.
        padded: True for documents that do not exist.
        sinkhorn_steps: normalisations of columns and rows.
        noise: β of Gumbel noise on log scores; 0.1 is the stochastic form of the paper, 0 is without.
        draws: of the noise, averaged.
        seed: of the noise.

    Returns:
        Mean over lists with a relevant document, 0 if there is none.

    Raises:
        ValueError: there are no draws.

    Example:
        >>> neural_ndcg(torch.tensor([[3.0, 1.0]]), torch.tensor([[1.0, 0.0]]), tau=0.01)
        tensor(-1.)

    References:
        Pobrotyn and Białobrzeski 2021, "NeuralNDCG: Direct Optimisation of a Ranking Metric via Differentiable
        Relaxation of Sorting"; Grover et al. 2019, "Stochastic Optimization of Sorting Networks via Continuous
        Relaxations".
    """
    s, y = widened(scores), widened(relevance)
    valid = torch.ones_like(s, dtype=torch.bool) if padded is None else ~padded
    if draws < 1:
        raise ValueError(f"Expected at least 1 draw of the noise, found draws={draws}.")
    if noise:
        s, y, valid = (given.repeat_interleave(draws, 0) for given in (s, y, valid))
        s = _perturbed(s, valid, noise, seed)
    p = sinkhorn_scaled(soft_sort(s, valid, tau=tau), valid, sinkhorn_steps)
    gains = torch.where(valid, 2**y - 1, 0.0)
    ranks = torch.arange(1, s.shape[1] + 1, device=s.device)
    discounts = torch.where(ranks <= (k or s.shape[1]), 1 / torch.log2(ranks + 1.0), 0.0).to(s.dtype)
    by_rank = (p @ gains[:, :, None])[:, :, 0] * discounts
    reached = (gains * (p.mT @ discounts) if transposed else by_rank).sum(1)
    ideal = (gains.sort(dim=1, descending=True).values * discounts).sum(1)
    quality = reached / torch.where(ideal > 0, ideal, 1.0)
    return -mean_over(torch.where(ideal > 0, quality, 0.0).sum(), (ideal > 0).sum().to(s.dtype))


def soft_sort(scores: Float[Tensor, "b n"], valid: Bool[Tensor, "b n"], *, tau: float = 1.0) -> Float[Tensor, "b n n"]:
    """Return P_ij, how much document j is at rank i (descending); rows sum to 1, padded documents go last."""
    both = (valid[:, :, None] & valid[:, None]).to(scores.dtype)
    spread = ((scores[:, :, None] - scores[:, None]).abs() * both).sum(2)
    count = valid.sum(1)
    ranks = torch.arange(1, scores.shape[1] + 1, device=scores.device)
    slopes = (count[:, None] + 1 - 2 * ranks[None]).to(scores.dtype)
    logits = (slopes[:, :, None] * scores[:, None] - spread[:, None]) / tau
    used = ranks[None] <= count[:, None]
    p = torch.softmax(logits.masked_fill(~valid[:, None], NEGLIGIBLE), 2)
    return p * used[:, :, None]


def sinkhorn_scaled(p: Float[Tensor, "b n n"], valid: Bool[Tensor, "b n"], steps: int) -> Float[Tensor, "b n n"]:
    """Return the matrix with columns and rows divided by their sums in turn: towards doubly stochastic."""
    count = valid.sum(1, keepdim=True)
    used = torch.arange(1, p.shape[1] + 1, device=p.device)[None] <= count
    for _ in range(steps):
        p = p / torch.where(valid[:, None], p.sum(1, keepdim=True).clamp(min=1e-10), 1.0)
        p = p / torch.where(used[:, :, None], p.sum(2, keepdim=True).clamp(min=1e-10), 1.0)
    return p


def _perturbed(s: Tensor, valid: Tensor, noise: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    gumbel = -torch.log(-torch.log(torch.rand(s.shape, generator=generator).clamp(1e-10, 1 - 1e-7))).to(s)
    lowest = torch.where(valid, s, torch.inf).amin(1, keepdim=True)
    return torch.log((s - lowest).clamp(min=0.0) + 1e-6) + noise * gumbel


NeuralNDCGLoss = module_of(neural_ndcg, "NeuralNDCGLoss")


@loss("other")
def rank_mixup_margin(
    mixed: Float[Tensor, "b c"], raw: Float[Tensor, "b c"], different: Bool[Tensor, " b"], *, margin: float = 2.0
) -> Float[Tensor, ""]:
    """A mixture of two samples should be less confident than the raw one: [max z_mix − max z_raw + m]_+.

    Added to the cross-entropy with weight 0.1.

    Args:
        mixed: logits of mixtures.
        raw: logits of the samples they were mixed from.
        different: False where a sample was mixed with itself.
        margin: m, 2 for CIFAR.

    Returns:
        Mean over all rows, those mixed with themselves counting 0.

    Example:
        >>> rank_mixup_margin(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([True]))
        tensor(2.)

    References:
        Noh et al. 2023, "RankMixup: Ranking-Based Mixup Training for Network Calibration".
    """
    excess = torch.clamp(widened(mixed).amax(1) - widened(raw).amax(1) + margin, min=0.0)
    return torch.where(different, excess, 0.0).mean()


RankMixupMarginLoss = module_of(rank_mixup_margin, "RankMixupMarginLoss")


@loss("other")
def rank_mixup_ndcg(confidence: Float[Tensor, "b k"], relevance: Float[Tensor, "b k"]) -> Float[Tensor, ""]:
    """Confidences of a sample and its mixtures should discount as their mixing ratios do: 1 − min(r, 1/r).

    r = Σ conf_j/log₂(j + 1) over Σ relevance_j/log₂(j + 1). Added to the cross-entropy with weight 0.1.

    Args:
        confidence: largest probability of the raw sample first, then of its mixtures by falling max(λ, 1 − λ).
        relevance: 1 for the raw sample, max(λ, 1 − λ) for mixtures.

    Returns:
        Mean over samples.

    Example:
        >>> rank_mixup_ndcg(torch.tensor([[1.0, 0.6]]), torch.tensor([[1.0, 0.6]]))
        tensor(0.)

    References:
        Noh et al. 2023, "RankMixup: Ranking-Based Mixup Training for Network Calibration".
    """
    c, y = widened(confidence), widened(relevance)
    discounts = 1 / torch.log2(torch.arange(2, c.shape[1] + 2, device=c.device, dtype=c.dtype))
    ratio = (c * discounts).sum(1) / (y * discounts).sum(1)
    return (1 - torch.minimum(ratio, 1 / ratio.clamp(min=1e-12))).mean()


RankMixupNDCGLoss = module_of(rank_mixup_ndcg, "RankMixupNDCGLoss")
