"""Losses towards learned class vectors and sets: mean fields, submodular sets, ordered sorting."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from theodolite.losses.numerics import NEGLIGIBLE
from theodolite.losses.registry import loss, module_of
from theodolite.losses.tiles import unit_rows


@loss("other", lam="[0, ∞)", power="(0, ∞)")
def mean_field_contrastive(
    embeddings: Float[Tensor, "b k"],
    fields: Float[Tensor, "c k"],
    labels: Int[Tensor, " b"],
    *,
    positive_margin: float = 0.02,
    negative_margin: float = 0.3,
    lam: float = 0.0,
    power: float = 2.0,
) -> Float[Tensor, ""]:
    """Contrastive loss against one learned mean field a class instead of all pairs: cost b·C.

    mean_i {[d_iy − m_P]_+ + Σ_{c≠y}[m_N − d_ic]_+} + λ mean_c Σ_{c'≠c}[m_N − D_cc']_+^q, d and D being 1 − cos.

    Args:
        embeddings: one a sample.
        fields: learned class vectors; give them a learning rate about 100 times larger.
        labels: class indices.
        positive_margin: m_P.
        negative_margin: m_N.
        lam: λ.
        power: q.

    Returns:
        The loss of the whole batch.

    Example:
        >>> mean_field_contrastive(torch.eye(2), torch.eye(2), torch.tensor([0, 1]))
        tensor(0.)

    References:
        Furusawa 2024, "Mean Field Theory in Deep Metric Learning".
    """
    f, m = unit_rows(embeddings), unit_rows(fields)
    distance, between = 1 - f @ m.T, 1 - m @ m.T
    own = F.one_hot(labels, len(m)).to(f.dtype)
    pull = torch.clamp(distance - positive_margin, min=0.0)
    push = torch.clamp(negative_margin - distance, min=0.0)
    apart = torch.clamp(negative_margin - between, min=0.0) ** power * (1 - torch.eye(len(m), device=m.device))
    return (own * pull + (1 - own) * push).sum(1).mean() + lam * apart.sum(1).mean()


MeanFieldContrastiveLoss = module_of(mean_field_contrastive, "MeanFieldContrastiveLoss")


@loss("other", alpha="(0, ∞)", beta="(0, ∞)", lam="[0, ∞)", power="(0, ∞)")
def mean_field_multi_similarity(
    embeddings: Float[Tensor, "b k"],
    fields: Float[Tensor, "c k"],
    labels: Int[Tensor, " b"],
    *,
    base: float = 0.8,
    alpha: float = 0.5,
    beta: float = 80.0,
    lam: float = 0.0,
    power: float = 2.0,
) -> Float[Tensor, ""]:
    """Class-wise multi-similarity against mean fields: soft counts of class averages, the sum inside the logarithm.

    With e⁺ = e^{α(d + b − 1)}, e⁻ = e^{−β(d + b − 1)} averaged over the samples of a class, C_B classes in the batch:
    (1/αC_B) Σ_c log(1 + ē⁺_cc) + (1/2βC_B) Σ_{c≠c'} log(1 + ē⁻_cc' + ē⁻_c'c) + λ mean_c Σ_{c'≠c} sp_β(1 − b − D_cc')^q.

    Args:
        embeddings: one a sample.
        fields: learned class vectors.
        labels: class indices.
        base: b, base similarity.
        alpha: sharpness of positives, 0.01 to 2.
        beta: sharpness of negatives.
        lam: λ.
        power: q.

    Returns:
        The loss of the whole batch; absent classes average to 0.

    Example:
        >>> mean_field_multi_similarity(torch.eye(2), torch.eye(2), torch.tensor([0, 1]))
        tensor(1.2888)

    References:
        Furusawa 2024, "Mean Field Theory in Deep Metric Learning".
    """
    f, m = unit_rows(embeddings), unit_rows(fields)
    gap = base - f @ m.T  # d + b − 1
    own = F.one_hot(labels, len(m)).to(f.dtype)
    counts = own.sum(0)
    per_class = own.T / counts.clamp(min=1)[:, None]
    present = (counts > 0).sum().clamp(min=1)
    pull = torch.log1p(torch.diagonal(per_class @ torch.exp(alpha * gap)))
    # β·gap reaches 80 × 1.8: the averages stay in the log domain
    log_share = (
        torch.where(per_class > 0, torch.log(per_class.clamp(min=1e-30)), NEGLIGIBLE)[:, :, None] - beta * gap[None]
    )
    occupied = (counts > 0)[:, None]
    log_push = torch.logsumexp(torch.where(occupied[:, :, None], log_share, 0.0), 1)
    log_push = torch.where(occupied, log_push, -1e4)
    both = torch.logsumexp(torch.stack([log_push, log_push.T]), 0)
    apart = 1 - torch.eye(len(m), dtype=f.dtype, device=m.device)
    push = (F.softplus(both) * apart).sum()
    spread = (F.softplus(beta * (1 - base - (1 - m @ m.T))) / beta) ** power * apart
    return pull.sum() / (alpha * present) + push / (2 * beta * present) + lam * spread.sum(1).mean()


MeanFieldMultiSimilarityLoss = module_of(mean_field_multi_similarity, "MeanFieldMultiSimilarityLoss")


@loss("embeddings", lam="[0, ∞)")
def submodular(
    embeddings: Float[Tensor, "b k"],
    labels: Int[Tensor, " b"],
    *,
    function: Literal["facility", "graph-cut", "logdet"] = "facility",
    correlation: bool = False,
    lam: float = 1.0,
) -> Float[Tensor, ""]:
    """Classes as sets under a submodular function of cosines: Σ_k f(A_k)/|A_k|, minimised.

    Facility location Σ_{i∉A} max_{j∈A} S_ij, graph cut Σ_{i∈A, j∉A} S_ij − λ Σ_{i,j∈A} S_ij, or log det(S_A + I). The
    correlation form subtracts f of the whole batch.

    Args:
        embeddings: one a sample.
        labels: class indices.
        function: f.
        correlation: total correlation instead of total information.
        lam: λ of the graph cut.

    Returns:
        The loss of the whole batch.

    Example:
        >>> submodular(torch.eye(2), torch.tensor([0, 1]), function="logdet")
        tensor(1.3863)

    References:
        Majee et al. 2024, "SCoRe: Submodular Combinatorial Representation Learning".
    """
    z = unit_rows(embeddings)
    s = z @ z.T
    total = s.new_zeros(())
    for label in labels.unique():
        inside = labels == label
        total = total + set_value(s, inside, function=function, lam=lam) / inside.sum()
    everything = torch.ones_like(labels, dtype=torch.bool)
    return total - set_value(s, everything, function=function, lam=lam) if correlation else total


def set_value(
    similarity: Float[Tensor, "b b"], inside: Tensor, *, function: str, lam: float = 1.0
) -> Float[Tensor, ""]:
    """Return f(A) for a set of rows given as a mask."""
    within, across = similarity[inside][:, inside], similarity[~inside][:, inside]
    if function == "facility":
        return across.amax(1).sum() if across.numel() else similarity.new_zeros(())
    if function == "graph-cut":
        return across.sum() - lam * within.sum()
    volume: Tensor = torch.linalg.slogdet(within + torch.eye(len(within), dtype=within.dtype, device=within.device))[1]
    return volume


SubmodularLoss = module_of(submodular, "SubmodularLoss")


@loss("other", hardest="[1, ∞)", steepness="(0, ∞)", lam="[0, 1)")
def group_ordering(
    anchor: Float[Tensor, "b k"],
    positives: Float[Tensor, "b p k"],
    negatives: Float[Tensor, "b n k"],
    *,
    hardest: int = 10,
    steepness: float = 1.0,
    lam: float = 0.25,
) -> Float[Tensor, ""]:
    """Every positive should rank above every hard negative: cross-entropy of soft ranks from a sorting network.

    Cosines of the hardest negatives and of the positives pass m layers of odd–even swaps, each a mix of neighbours with
    f = ½ + arctan(β d/|d|^λ)/π; the probability that an input lands in the upper ranks is compared with whether it is a
    positive. Partners carry no gradient.

    Cost: m layers of m² numbers, m = positives + hardest; keep it below 32.

    Args:
        anchor: embeddings.
        positives: of each anchor.
        negatives: of each anchor.
        hardest: how many negatives enter.
        steepness: β.
        lam: λ in [0, 1).

    Returns:
        Mean over inputs and anchors.

    Example:
        >>> group_ordering(torch.eye(2)[:1], torch.eye(2)[None, :1], torch.eye(2)[None, 1:])
        tensor(0.2877)

    References:
        Shvetsova et al. 2023, "Learning by Sorting: Self-supervised Learning with Group Ordering Constraints"; Petersen
        et al. 2021, "Differentiable Sorting Networks for Scalable Sorting and Ranking Supervision".
    """
    z = unit_rows(anchor)[:, None]
    up = (z * unit_rows(positives.flatten(0, 1)).reshape(positives.shape).detach()).sum(2)
    down = (z * unit_rows(negatives.flatten(0, 1)).reshape(negatives.shape).detach()).sum(2)
    down = down.topk(min(hardest, down.shape[1]), dim=1).values
    inputs = torch.cat([down.sort(dim=1).values, up.sort(dim=1).values], 1)
    ranks = soft_permutation(inputs, steepness=steepness, lam=lam)[0]
    upper = ranks[:, :, down.shape[1] :].sum(2).clamp(1e-7, 1 - 1e-7)
    wanted = (torch.arange(inputs.shape[1], device=inputs.device) >= down.shape[1]).to(upper.dtype)
    return F.binary_cross_entropy(upper, wanted.expand_as(upper))


def soft_permutation(
    values: Float[Tensor, "b m"], *, steepness: float = 1.0, lam: float = 0.25
) -> tuple[Float[Tensor, "b m m"], Float[Tensor, "b m"]]:
    """Return P with P_ij the probability that input i gets rank j (ascending), and the softly sorted values.

    P is doubly stochastic; for a steepness to infinity it is the permutation that sorts.
    """
    m = values.shape[1]
    p = torch.eye(m, dtype=values.dtype, device=values.device).expand(len(values), m, m)
    for layer in range(m):
        start = layer % 2
        stop = start + 2 * ((m - start) // 2)
        if stop == start:
            continue
        a, b = values[:, start:stop:2], values[:, start + 1 : stop : 2]
        d = (b - a) / (b - a).abs().add(1e-10) ** lam
        f = 0.5 + torch.arctan(steepness * d) / math.pi
        values = _interleave(values, f * a + (1 - f) * b, (1 - f) * a + f * b, start, stop)
        left, right, mix = p[:, :, start:stop:2], p[:, :, start + 1 : stop : 2], f[:, None]
        p = _interleave(p, mix * left + (1 - mix) * right, (1 - mix) * left + mix * right, start, stop)
    return p, values


def _interleave(whole: Tensor, first: Tensor, second: Tensor, start: int, stop: int) -> Tensor:
    """Replace columns start:stop by first and second in turn."""
    middle = torch.stack([first, second], -1).flatten(-2)
    return torch.cat([whole[..., :start], middle, whole[..., stop:]], -1)


GroupOrderingLoss = module_of(group_ordering, "GroupOrderingLoss")
