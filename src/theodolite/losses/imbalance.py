"""Losses for unequal class counts: label-distribution-aware margins, deferred weights, vector scaling, integrated risk."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from theodolite.losses.checks import Counts, Interval, class_counts, class_targets
from theodolite.losses.contract import Reduction, smoothed_cross_entropy, widened
from theodolite.losses.hessian import OutputHessian
from theodolite.losses.registry import loss, module_of


@loss("classes", counts=class_counts, max_margin="[0, ∞)", scale="(0, ∞)", label_smoothing="[0, 1]")
def ldam(
    logits: Float[Tensor, "b c *d"],
    target: Int[Tensor, "b *d"],
    *,
    counts: Counts,
    max_margin: float = 0.5,
    scale: float = 30.0,
    label_smoothing: float = 0.0,
    weight: Float[Tensor, " c"] | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """Cross-entropy of s(z − m_y e_y) with margins m_j ∝ n_j^{−1/4}: rare classes must lead by more.

    Made for logits that are cosines; use :func:`drw_weights` as ``weight`` late in training.

    Args:
        logits: classes along the second axis.
        target: class indices, or ``ignore_index``.
        counts: training examples of each class.
        max_margin: margin of the rarest class.
        scale: s.
        label_smoothing: as in ``F.cross_entropy``.
        weight, ignore_index, reduction: as in ``F.cross_entropy``.

    Returns:
        The reduced loss.

    Example:
        >>> ldam(torch.zeros(1, 2), torch.tensor([1]), counts=torch.tensor([16, 1]), scale=1.0)
        tensor(0.9741)

    References:
        Cao et al. 2019, "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss".
    """
    shifted = _less_margin(widened(logits), target, ldam_margins(counts, max_margin=max_margin), ignore_index)
    return smoothed_cross_entropy(
        scale * shifted,
        target,
        weight=weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction=reduction,
    )


def ldam_margins(counts: Counts, *, max_margin: float = 0.5) -> Float[Tensor, " c"]:
    """Return the margin of each class, ∝ n^{−1/4} with the largest equal to ``max_margin``.

    Raises:
        ValueError: a class has no example; its margin would take that of all others.
    """
    class_counts("ldam_margins", "counts", counts)
    given = torch.as_tensor(counts)
    raw = given.to(given.dtype if given.is_floating_point() else torch.get_default_dtype()) ** -0.25
    return max_margin * raw / raw.max()


def ldam_grad(
    logits: Float[Tensor, "n c"],
    target: Int[Tensor, " n"],
    *,
    counts: Counts,
    max_margin: float = 0.5,
    scale: float = 30.0,
) -> Float[Tensor, "n c"]:
    """Return s(p − e), p the softmax of the scaled logits less their margin, for each sample."""
    p = torch.softmax(scale * _less_margin(logits, target, ldam_margins(counts, max_margin=max_margin), -100), 1)
    return scale * (p - F.one_hot(target, p.shape[1]))


def ldam_hess(
    logits: Float[Tensor, "n c"],
    target: Int[Tensor, " n"],
    *,
    counts: Counts,
    max_margin: float = 0.5,
    scale: float = 30.0,
) -> OutputHessian:
    """Return s²(diag p − ppᵀ) for each sample."""
    p = torch.softmax(scale * _less_margin(logits, target, ldam_margins(counts, max_margin=max_margin), -100), 1)
    return OutputHessian(scale**2 * p, p[:, None], torch.full_like(p[:, :1], -(scale**2)))


def _less_margin(logits: Tensor, target: Tensor, margins: Tensor, ignore_index: int) -> Tensor:
    classes = torch.where(target == ignore_index, 0, target)[:, None]
    margin = margins.to(logits)[classes]
    return logits.scatter_add(1, classes, -margin)


LDAMLoss = module_of(ldam, "LDAMLoss")


def drw_weights(counts: Counts, *, beta: float = 0.9999) -> Float[Tensor, " c"]:
    """Return class weights ∝ (1 − β)/(1 − β^n), the inverse effective number of examples, with sum C.

    Args:
        counts: training examples of each class.
        beta: in [0, 1]; 0 gives equal weights, 1 inverse frequencies.

    Returns:
        Weights, to be set once training is in its last phase (deferred re-weighting).

    Raises:
        ValueError: a class has no example, or β is outside [0, 1].

    Example:
        >>> drw_weights(torch.tensor([1, 1]))
        tensor([1., 1.])

    References:
        Cui et al. 2019, "Class-Balanced Loss Based on Effective Number of Samples"; Cao et al. 2019, "Learning
        Imbalanced Datasets with Label-Distribution-Aware Margin Loss".
    """
    class_counts("drw_weights", "counts", counts)
    Interval("[0, 1]")("drw_weights", "beta", beta)
    given = torch.as_tensor(counts)
    if beta == 0:
        return torch.ones(len(given), device=given.device)
    effective = given.double() if beta == 1 else -torch.expm1(given.double() * math.log(beta))
    weights = 1 / effective
    return (weights * len(given) / weights.sum()).to(torch.get_default_dtype())


@loss("classes", counts=class_counts, gamma="(−∞, ∞)", tau="(−∞, ∞)", label_smoothing="[0, 1]")
def vs_loss(
    logits: Float[Tensor, "b c *d"],
    target: Int[Tensor, "b *d"],
    *,
    counts: Counts,
    gamma: float = 0.15,
    tau: float = 1.25,
    label_smoothing: float = 0.0,
    weight: Float[Tensor, " c"] | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """Vector scaling: cross-entropy of Δ ⊙ z + ι, Δ_k = (n_k/n_max)^γ, ι_k = τ log(n_k/n).

    γ = 0 is logit adjustment; with τ = 1 its minimiser's softmax(z) is the class-balanced posterior.

    Args:
        logits: classes along the second axis.
        target: class indices, or ``ignore_index``.
        counts: training examples of each class.
        gamma: multiplicative adjustment.
        tau: additive adjustment.
        label_smoothing: as in ``F.cross_entropy``.
        weight, ignore_index, reduction: as in ``F.cross_entropy``.

    Returns:
        The reduced loss.

    Example:
        >>> vs_loss(torch.zeros(1, 2), torch.tensor([1]), counts=torch.tensor([3, 1]), tau=1.0)
        tensor(1.3863)

    References:
        Kini et al. 2021, "Label-Imbalanced and Group-Sensitive Classification under Overparameterization"; Menon et
        al. 2021, "Long-tail learning via logit adjustment".
    """
    return smoothed_cross_entropy(
        _rescaled(widened(logits), counts, gamma, tau)[0],
        target,
        weight=weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction=reduction,
    )


def vs_loss_grad(
    logits: Float[Tensor, "n c"],
    target: Int[Tensor, " n"],
    *,
    counts: Counts,
    gamma: float = 0.15,
    tau: float = 1.25,
) -> Float[Tensor, "n c"]:
    """Return Δ ⊙ (p − e) for each sample."""
    rescaled, delta = _rescaled(logits, counts, gamma, tau)
    return delta * (torch.softmax(rescaled, 1) - F.one_hot(target, logits.shape[1]))


def vs_loss_hess(
    logits: Float[Tensor, "n c"],
    target: Int[Tensor, " n"],
    *,
    counts: Counts,
    gamma: float = 0.15,
    tau: float = 1.25,
) -> OutputHessian:
    """Return Δ(diag p − ppᵀ)Δ for each sample."""
    rescaled, delta = _rescaled(logits, counts, gamma, tau)
    p = torch.softmax(rescaled, 1)
    return OutputHessian(delta**2 * p, (delta * p)[:, None], -torch.ones_like(p[:, :1]))


def _rescaled(logits: Tensor, counts: Counts, gamma: float, tau: float) -> tuple[Tensor, Tensor]:
    counted = torch.as_tensor(counts, dtype=logits.dtype, device=logits.device)
    delta = ((counted / counted.max()) ** gamma).reshape(-1, *[1] * (logits.ndim - 2))
    offset = (tau * torch.log(counted / counted.sum())).reshape(delta.shape)
    return torch.addcmul(offset, delta, logits), delta


VSLoss = module_of(vs_loss, "VSLoss")


@loss("other", alpha="[0, ∞)", beta="[0, ∞)")
def density_normalised_edge(
    logits: Float[Tensor, "b c *d"],
    target: Int[Tensor, "b *d"],
    *,
    background: int = 0,
    alpha: float = 1.0,
    beta: float = 1.0,
    weight: Float[Tensor, " c"] | None = None,
    ignore_index: int = -100,
) -> Float[Tensor, ""]:
    """Cross-entropy of foreground and background, both divided by the number of foreground items.

    Adding background items leaves the gradient of a foreground item as it was, where a mean would dilute it. The
    background's own total may grow; β is there for it. No foreground: divided by 1.

    Args:
        logits: classes along the second axis.
        target: class indices, or ``ignore_index``.
        background: the class that is not foreground.
        alpha: weight of the foreground.
        beta: weight of the background.
        weight, ignore_index: as in ``F.cross_entropy``.

    Returns:
        The loss of the whole set.

    Example:
        >>> density_normalised_edge(torch.zeros(3, 2), torch.tensor([0, 0, 1]))
        tensor(2.0794)

    References:
        Knyazev et al. 2020, "Graph Density-Aware Losses for Novel Compositions in Scene Graph Generation".
    """
    class_targets("density_normalised_edge", logits, target, ignore_index=ignore_index)
    single = smoothed_cross_entropy(
        logits, target, weight=weight, ignore_index=ignore_index, label_smoothing=0.0, reduction="none"
    )
    inside = (target != background) & (target != ignore_index)
    weighted = single * torch.where(inside, single.new_tensor(alpha), single.new_tensor(beta))
    return weighted.sum() / inside.sum().clamp(min=1)


DensityNormalisedEdgeLoss = module_of(density_normalised_edge, "DensityNormalisedEdgeLoss")


@loss("other", counts=class_counts, utility_weight="[0, ∞)", max_margin="[0, ∞)", scale="(0, ∞)", log_floor="(−∞, 0]")
def integrated_risk(
    logits: Float[Tensor, "k b c"],
    target: Int[Tensor, " b"],
    *,
    counts: Counts,
    utility: Float[Tensor, "c c"] | None = None,
    class_weights: Float[Tensor, " c"] | None = None,
    utility_weight: float = 500.0,
    max_margin: float = 0.5,
    scale: float = 30.0,
    log_floor: float = -10.0,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """Long-tailed loss of an ensemble by Bayesian decision theory: margins, class weights and the cost of each error.

    Each member pays w_y CE(z − s m_y e_y) − (1/A) Σ_c w_c U(y, c) log p_c; negative utilities push the probability of
    costly errors down. log p is floored, since the second term has no lower bound otherwise (our choice).

    Args:
        logits: one matrix an ensemble member; classes ordered by falling count.
        target: class indices.
        counts: training examples of each class.
        utility: U(true, predicted), e.g. :func:`tail_sensitive_utility`; None leaves the term out, as before re-weighting.
        class_weights: w, 1/n_c after the re-weighting epoch; ones by default. They scale the loss: rescale to mean 1 to
            keep the learning rate.
        utility_weight: 1/A.
        max_margin: margin of the rarest class.
        scale: s.
        log_floor: least log-probability that is counted.
        reduction: over samples, after the mean over members.

    Returns:
        The reduced loss; add :func:`ensemble_repulsion`.

    Example:
        >>> integrated_risk(torch.zeros(1, 1, 2), torch.tensor([0]), counts=torch.tensor([1, 1]), max_margin=0.0)
        tensor(0.6931)

    References:
        Li et al. 2023, "Long-tailed Classification from a Bayesian-decision-theory Perspective".
    """
    rows = widened(logits)
    weights = torch.ones_like(rows[0, 0]) if class_weights is None else class_weights.to(rows.dtype)
    margin = scale * ldam_margins(counts, max_margin=max_margin)
    log_p = F.log_softmax(torch.stack([_less_margin(member, target, margin, -100) for member in rows]), 2)
    single = -weights[target] * log_p.gather(2, target.expand(len(rows), -1)[:, :, None])[:, :, 0]
    if utility is not None:
        costs = weights * utility.to(rows.dtype)[target]
        single = single - utility_weight * (costs * log_p.clamp(min=log_floor)).sum(2)
    averaged = single.mean(0)
    return averaged if reduction == "none" else averaged.sum() if reduction == "sum" else averaged.mean()


IntegratedRiskLoss = module_of(integrated_risk, "IntegratedRiskLoss")


def ensemble_repulsion(heads: Float[Tensor, "k n"], *, epoch: int, decay: float = 40.0) -> Float[Tensor, ""]:
    """Return −½ e^{−epoch/decay} mean_j log Var_k(θ_j): members are pushed apart early in training.

    Raises:
        ValueError: for fewer than two members, whose variance is 0.
    """
    if len(heads) < 2:
        raise ValueError(f"Repulsion needs at least two ensemble members. Found {len(heads)}; leave the term out.")
    return -0.5 * math.exp(-epoch / decay) * torch.log(heads.var(0) + 1e-12).mean()


def tail_sensitive_utility(counts: Counts, *, cost: float = -0.1) -> Float[Tensor, "c c"]:
    """Return U(y, c): 1 where right, ``cost`` where a class is mistaken for a more frequent one, else 0."""
    given = torch.as_tensor(counts)
    more_frequent = (given[None, :] > given[:, None]).to(torch.get_default_dtype())
    return torch.eye(len(given), device=given.device) + cost * more_frequent


def utility_decision(probabilities: Float[Tensor, "b c"], utility: Float[Tensor, "c a"]) -> Int[Tensor, " b"]:
    """Return the class of highest expected utility Σ_y p(y|x) U(y, ·); the identity gives the most probable class."""
    return (probabilities @ utility.to(probabilities.dtype)).argmax(1)


def false_head_rate(
    predicted: Int[Tensor, " b"],
    target: Int[Tensor, " b"],
    *,
    classes: int,
    shares: Sequence[float] = (0.25, 0.5, 0.75),
) -> float:
    """Return the share of tail samples that are taken for head classes, averaged over where the head ends.

    Args:
        predicted: class indices.
        target: class indices; classes ordered by falling count.
        classes: C.
        shares: ρ; classes below ⌊ρC + ½⌋ are the head.

    Returns:
        The rate in [0, 1]; splits without a tail sample are left out, NaN if all are.

    Example:
        >>> false_head_rate(torch.tensor([0, 3]), torch.tensor([3, 3]), classes=4, shares=(0.5,))
        0.5

    References:
        Li et al. 2023, "Long-tailed Classification from a Bayesian-decision-theory Perspective".
    """
    rates = []
    for share in shares:
        head = math.floor(share * classes + 0.5)
        tail = target >= head
        if bool(tail.any()):
            rates.append(float((predicted[tail] < head).double().mean()))
    return sum(rates) / len(rates) if rates else math.nan
