"""Metric learning on mined pairs: triplets, circle, multi-similarity, collaborative filtering, prototypes."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from theodolite.losses.contract import Reduction, mean_over, reduced, widened
from theodolite.losses.numerics import NEGLIGIBLE, safe_norm, unit
from theodolite.losses.registry import loss, module_of
from theodolite.losses.tiles import unit_rows


@loss("embeddings", margin="[0, ∞)")
def triplet(
    embeddings: Float[Tensor, "b k"],
    labels: Int[Tensor, " b"],
    *,
    margin: float | None = 0.3,
    mining: Literal["hard", "semi", "all"] = "hard",
    normalize: bool = False,
) -> Float[Tensor, ""]:
    """Distance to a positive less distance to a negative plus a margin, over triplets mined in the batch.

    Args:
        embeddings: one a sample.
        labels: class indices.
        margin: m of [m + d_ap − d_an]_+; None for the soft form log(1 + e^{d_ap − d_an}).
        mining: ``"hard"``: each anchor's farthest positive and nearest negative, mean over anchors that have both;
            ``"all"``: mean over triplets that cost something; ``"semi"``: those of them with d_an > d_ap.
        normalize: embeddings to unit length first.

    Returns:
        The loss of the whole batch, 0 without a triplet; the margin (or log 2) where all embeddings coincide.

    Example:
        >>> triplet(torch.ones(4, 2), torch.tensor([0, 0, 1, 1]))
        tensor(0.3000)

    References:
        Schroff et al. 2015, "FaceNet: A Unified Embedding for Face Recognition and Clustering"; Hermans et al. 2017, "In
        Defense of the Triplet Loss for Person Re-Identification".
    """
    z = unit_rows(embeddings) if normalize else widened(embeddings)
    distance = safe_norm(z[:, None] - z[None])
    positive, negative = _pairs(labels)
    if mining == "hard":
        far = torch.where(positive, distance, -math.inf).amax(1)
        near = torch.where(negative, distance, math.inf).amin(1)
        valid = positive.any(1) & negative.any(1)
        values = _hinge(torch.where(valid, far - near, 0.0), margin)
        return mean_over(torch.where(valid, values, 0.0).sum(), valid.sum().to(z.dtype))
    valid = positive[:, :, None] & negative[:, None, :]
    gap = distance[:, :, None] - distance[:, None, :]
    values = _hinge(gap, margin)
    counted = valid & (values > 0) & ((gap < 0) if mining == "semi" else torch.ones_like(valid))
    return mean_over(torch.where(counted, values, 0.0).sum(), counted.sum().to(z.dtype))


def _pairs(labels: Tensor) -> tuple[Bool[Tensor, "b b"], Bool[Tensor, "b b"]]:
    same = labels[:, None] == labels[None]
    return same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device), ~same


def _hinge(gap: Tensor, margin: float | None) -> Tensor:
    return F.softplus(gap) if margin is None else torch.clamp(gap + margin, min=0.0)


TripletLoss = module_of(triplet, "TripletLoss")


@loss("embeddings", gamma="(0, ∞)", margin="(−∞, ∞)")
def circle(
    embeddings: Float[Tensor, "b k"],
    labels: Int[Tensor, " b"],
    *,
    margin: float = 0.25,
    gamma: float = 256.0,
    detach_weight: bool = True,
) -> Float[Tensor, ""]:
    """Circle loss: each cosine is weighed by how far it is from its optimum; a pair's boundary is a circle.

    softplus(lse_n γα_n(s_n − m) + lse_p −γα_p(s_p − 1 + m)) with α_p = [1 + m − s_p]_+, α_n = [s_n + m]_+ held constant.
    For one pair the exponent vanishes on s_n² + (1 − s_p)² = 2m².

    Args:
        embeddings: one a sample.
        labels: class indices.
        margin: m.
        gamma: γ, 256 for faces, 80 for retrieval.
        detach_weight: as released; the gradient is then not that of the value.

    Returns:
        Mean over anchors with a positive and a negative.

    Example:
        >>> circle(torch.eye(4), torch.tensor([0, 0, 1, 1]), gamma=1.0)
        tensor(1.7575)

    References:
        Sun et al. 2020, "Circle Loss: A Unified Perspective of Pair Similarity Optimization".
    """
    z = unit_rows(embeddings)
    s = z @ z.T
    positive, negative = _pairs(labels)
    weight = s.detach() if detach_weight else s
    up = -gamma * torch.clamp(1 + margin - weight, min=0.0) * (s - 1 + margin)
    down = gamma * torch.clamp(weight + margin, min=0.0) * (s - margin)
    return _joint_softplus(up, down, positive, negative)


def _joint_softplus(up: Tensor, down: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """Mean over complete anchors of softplus(lse over positives + lse over negatives)."""
    valid = positive.any(1) & negative.any(1)
    ups = torch.logsumexp(torch.where(positive | ~valid[:, None], up, NEGLIGIBLE), 1)
    downs = torch.logsumexp(torch.where(negative | ~valid[:, None], down, NEGLIGIBLE), 1)
    return mean_over(torch.where(valid, F.softplus(ups + downs), 0.0).sum(), valid.sum().to(up.dtype))


CircleLoss = module_of(circle, "CircleLoss")


@loss("embeddings", alpha="(0, ∞)", beta="(0, ∞)", threshold="(−∞, ∞)", epsilon="(−∞, ∞)")
def multi_similarity(
    embeddings: Float[Tensor, "b k"],
    labels: Int[Tensor, " b"],
    *,
    alpha: float = 2.0,
    beta: float = 50.0,
    threshold: float = 1.0,
    epsilon: float = 0.1,
) -> Float[Tensor, ""]:
    """Multi-similarity: soft counts of positives below and negatives above a threshold, among the pairs worth mining.

    Negatives stay if above the weakest positive less ε, positives if below the strongest negative plus ε; then
    (1/α) log(1 + Σ_P e^{−α(s − λ)}) + (1/β) log(1 + Σ_N e^{β(s − λ)}). The released code has β = 40, λ = 0.5.

    Args:
        embeddings: one a sample.
        labels: class indices.
        alpha: sharpness of positives.
        beta: sharpness of negatives.
        threshold: λ.
        epsilon: ε.

    Returns:
        Sum over anchors over the batch size; anchors without a surviving pair count 0.

    Example:
        >>> multi_similarity(torch.eye(4), torch.tensor([0, 0, 1, 1]))
        tensor(1.0635)

    References:
        Wang et al. 2019, "Multi-Similarity Loss with General Pair Weighting for Deep Metric Learning".
    """
    z = unit_rows(embeddings)
    s = z @ z.T
    positive, negative = _pairs(labels)
    weakest = torch.where(positive, s, math.inf).amin(1, keepdim=True)
    strongest = torch.where(negative, s, -math.inf).amax(1, keepdim=True)
    kept_positive = positive & (s < strongest + epsilon)
    kept_negative = negative & (s > weakest - epsilon)
    return (
        _soft_count(-alpha * (s - threshold), kept_positive) / alpha
        + _soft_count(beta * (s - threshold), kept_negative) / beta
    ).mean()


def _soft_count(exponents: Tensor, kept: Tensor) -> Tensor:
    """log(1 + Σ_kept e^x) of each row."""
    padded = torch.cat([torch.where(kept, exponents, NEGLIGIBLE), torch.zeros_like(exponents[:, :1])], 1)
    return torch.logsumexp(padded, 1)


MultiSimilarityLoss = module_of(multi_similarity, "MultiSimilarityLoss")


@loss("other", margin="[−1, 1]")
def ccl(
    user: Float[Tensor, "b k"],
    positive: Float[Tensor, "b k"],
    negatives: Float[Tensor, "b n k"],
    *,
    margin: float = 0.8,
    weight: float = 1.0,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """Cosine contrastive loss of recommenders: (1 − cos₊) + w mean_j [cos_j − m]_+; easy negatives have no gradient.

    Args:
        user: embeddings.
        positive: an item of each user.
        negatives: sampled items.
        margin: m, 0.3 to 0.9 by data set.
        weight: w, 1 to 1000 by data set.
        reduction: over users.

    Returns:
        The reduced loss.

    Example:
        >>> ccl(torch.ones(1, 2), torch.ones(1, 2), torch.ones(1, 3, 2))
        tensor(0.2000)

    References:
        Mao et al. 2021, "SimpleX: A Simple and Strong Baseline for Collaborative Filtering".
    """
    u = unit_rows(user)
    up = (u * unit_rows(positive)).sum(1)
    down = (u[:, None] * unit(widened(negatives))).sum(2)
    return reduced((1 - up) + weight * torch.clamp(down - margin, min=0.0).mean(1), reduction)


CCLLoss = module_of(ccl, "CCLLoss")


@loss("other", margin="[0, ∞)")
def proto_triplet(
    query: Float[Tensor, "b k"],
    prototypes: Float[Tensor, "c k"],
    labels: Int[Tensor, " b"],
    *,
    margin: float = 0.3,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """Triplet of a query, its class's prototype and the nearest other one: [d(q, c_y) − min_{k≠y} d(q, c_k) + m]_+.

    Args:
        query: embeddings.
        prototypes: one a class.
        labels: class indices.
        margin: m.
        reduction: over queries.

    Returns:
        The reduced loss.

    Example:
        >>> proto_triplet(torch.zeros(1, 2), torch.eye(2), torch.tensor([0]))
        tensor(0.3000)

    References:
        Snell et al. 2017, "Prototypical Networks for Few-shot Learning"; Schroff et al. 2015, "FaceNet: A Unified
        Embedding for Face Recognition and Clustering".
    """
    distance = safe_norm(widened(query)[:, None] - widened(prototypes)[None])
    own = distance.gather(1, labels[:, None])[:, 0]
    other = distance.scatter(1, labels[:, None], math.inf).amin(1)
    return reduced(torch.clamp(own - other + margin, min=0.0), reduction)


ProtoTripletLoss = module_of(proto_triplet, "ProtoTripletLoss")


@loss("other", margin="[0, ∞)")
def pair_contrastive(
    u: Float[Tensor, "b k"],
    v: Float[Tensor, "b k"],
    same: Float[Tensor, " b"],
    *,
    margin: float = 1.0,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """The first contrastive loss: y d² + (1 − y)[m − d]₊², d the Euclidean distance of a pair.

    Args:
        u: embeddings.
        v: embeddings.
        same: 1 for pairs of one class, 0 for others.
        margin: m.
        reduction: over pairs.

    Returns:
        The reduced loss.

    Example:
        >>> pair_contrastive(torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1))
        tensor(1.)

    References:
        Hadsell et al. 2006, "Dimensionality Reduction by Learning an Invariant Mapping".
    """
    difference = widened(u) - widened(v)
    pull, push = difference.square().sum(1), torch.clamp(margin - safe_norm(difference), min=0.0).square()
    return reduced(same * pull + (1 - same) * push, reduction)


PairContrastiveLoss = module_of(pair_contrastive, "PairContrastiveLoss")
