"""Losses and scores of calibration: h-calibration, correctness-aware confidence, angular visual hardness, rejection."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from theodolite.losses.contract import Reduction, reduced, widened
from theodolite.losses.numerics import capped_exp
from theodolite.losses.registry import loss, module_of


@loss("other", window="[1, ∞)", tolerance="[0, ∞)", bins="[1, ∞)")
def h_calibration(
    probabilities: Float[Tensor, "b c"],
    target: Int[Tensor, " b"],
    *,
    window: int | None = None,
    tolerance: float = 0.0,
    bins: int = 15,
) -> Float[Tensor, ""]:
    """Calibration error of all b·c probabilities over a sliding window of neighbouring ones, clustered, differentiable.

    Probabilities and outcomes are sorted by probability; T = |window mean of p − o|, which equals
    |window mean of p(1 − o) − window mean of (1 − p)o|; [T − ε]_+ is averaged inside 1-D k-means clusters of p, then
    over clusters, so that the crowd of small probabilities does not outweigh the rest.

    Cost: one sort of b·c values.

    Args:
        probabilities: after the calibrator that is being fitted.
        target: class indices.
        window: √(bc) between 100 and 1000 by default (our choice), at most bc.
        tolerance: ε.
        bins: number of clusters.

    Returns:
        The loss of the whole set.

    Example:
        >>> h_calibration(torch.tensor([[0.5, 0.5], [0.5, 0.5]]), torch.tensor([0, 1]))
        tensor(0.)

    References:
        Huang et al. 2025, "h-calibration: Rethinking Classifier Recalibration with Probabilistic Error-Bounded
        Objective". Window default reconstructed.
    """
    p = widened(probabilities).reshape(-1)
    outcomes = F.one_hot(target, probabilities.shape[1]).to(p.dtype).reshape(-1)
    order = p.detach().argsort()
    p, outcomes = p[order], outcomes[order]
    width = min(len(p), window if window is not None else int(min(max(len(p) ** 0.5, 100), 1000)))
    gaps = _window_mean(p - outcomes, width).abs()
    cluster, found = _clusters(_window_mean(p.detach(), width), bins)
    excess = torch.clamp(gaps - tolerance, min=0.0)
    totals = torch.zeros(found, dtype=p.dtype, device=p.device).index_add(0, cluster, excess)
    sizes = torch.bincount(cluster, minlength=found)
    return (totals / sizes.clamp(min=1)).sum() / (sizes > 0).sum()


def _window_mean(values: Tensor, width: int) -> Tensor:
    return F.avg_pool1d(values[None, None], width, stride=1)[0, 0]


def _clusters(values: Tensor, bins: int, steps: int = 30) -> tuple[Tensor, int]:
    """Lloyd's algorithm on sorted numbers, started at their quantiles."""
    centres = values[torch.linspace(0, len(values) - 1, bins, device=values.device).long()].unique()
    for _ in range(steps):
        cluster = torch.bucketize(values, (centres[1:] + centres[:-1]) / 2)
        sizes = torch.bincount(cluster, minlength=len(centres)).clamp(min=1)
        moved = torch.zeros_like(centres).index_add(0, cluster, values) / sizes
        centres = torch.where(torch.bincount(cluster, minlength=len(centres)) > 0, moved, centres)
    return torch.bucketize(values, (centres[1:] + centres[:-1]) / 2), len(centres)


HCalibrationLoss = module_of(h_calibration, "HCalibrationLoss")


@loss("other")
def correctness_aware(
    confidence: Float[Tensor, " b"], correct: Bool[Tensor, " b"], *, reduction: Reduction = "mean"
) -> Float[Tensor, "..."]:
    """Squared error between the confidence and whether the frozen classifier was right: the Brier score of confidence.

    On a wrong sample it lowers the confidence, where cross-entropy would raise the true class instead.

    Args:
        confidence: largest probability after the calibrator that is being fitted.
        correct: whether the prediction was right.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        The reduced loss.

    Example:
        >>> correctness_aware(torch.tensor([0.8]), torch.tensor([False]))
        tensor(0.6400)

    References:
        Liu et al. 2024, "Optimizing Calibration by Gaining Aware of Prediction Correctness".
    """
    return reduced((widened(confidence) - correct.to(widened(confidence).dtype)).square(), reduction)


CorrectnessAwareLoss = module_of(correctness_aware, "CorrectnessAwareLoss")


@loss("other", cost="(0, 1)", alpha="(0, ∞)", beta="(0, ∞)")
def reject_surrogate(
    scores: Float[Tensor, " b"],
    correct: Bool[Tensor, " b"],
    *,
    cost: float = 0.05,
    alpha: float = 4.0,
    beta: float = 2.0,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """Learning when to reject a fixed predictor: 1[wrong] e^{αr/2} + c e^{−βr}, accepted iff r > 0.

    Convex in r. With η the probability of an error its minimiser is log(2βc/(αη))/(α/2 + β), so β = α/2 is the one
    choice whose sign is the Bayes rule, accept iff η < c; then c e^{−αr} estimates η. Exponentials beyond e^30 continue
    along their tangent.

    Args:
        scores: r.
        correct: whether the frozen predictor was right.
        cost: c in (0, 1), the price of a rejection where an error costs 1.
        alpha: sharpness.
        beta: α/2 for calibration.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        The reduced loss.

    Example:
        >>> reject_surrogate(torch.tensor([0.0]), torch.tensor([False]), cost=0.25)
        tensor(1.2500)

    References:
        Mohri et al. 2024, "Learning to Reject with a Fixed Predictor: Application to Decontextualization".
    """
    r = widened(scores)
    wrong = torch.where(correct, 0.0, capped_exp(alpha * r / 2))
    return reduced(wrong + cost * capped_exp(-beta * r), reduction)


RejectSurrogateLoss = module_of(reject_surrogate, "RejectSurrogateLoss")


def angular_hardness(
    features: Float[Tensor, "b k"], weights: Float[Tensor, "c k"], target: Int[Tensor, " b"]
) -> Float[Tensor, " b"]:
    """Return the angle to the true class's weights as a share of the angles to all classes.

    A score, not a loss: 0 is aligned with the true class, 1/C orthogonal to all.

    Args:
        features: inputs of the head.
        weights: of the head, one row a class.
        target: class indices.

    Returns:
        Values in [0, 1].

    Example:
        >>> angular_hardness(torch.tensor([[0.0, 0.0, 1.0]]), torch.eye(3)[:2], torch.tensor([0]))
        tensor([0.5000])

    References:
        Chen et al. 2020, "Angular Visual Hardness".
    """
    cosines = F.normalize(widened(features), dim=1) @ F.normalize(widened(weights), dim=1).T
    angles = torch.arccos(cosines.clamp(-1.0, 1.0))
    return angles.gather(1, target[:, None])[:, 0] / angles.sum(1)


def expected_calibration_error(
    probabilities: Float[Tensor, "b c"], target: Int[Tensor, " b"], *, bins: int = 15, equal_mass: bool = False
) -> Float[Tensor, ""]:
    """Return the mean gap between confidence and accuracy over bins of confidence, weighed by their share.

    Args:
        probabilities: of each class.
        target: class indices.
        bins: how many.
        equal_mass: bins of equally many samples instead of equal width.

    Returns:
        A score in [0, 1].

    Example:
        >>> expected_calibration_error(torch.tensor([[0.8, 0.2]]), torch.tensor([0]))
        tensor(0.2000)

    References:
        Guo et al. 2017, "On Calibration of Modern Neural Networks".
    """
    confidence, predicted = widened(probabilities).max(1)
    correct = (predicted == target).to(confidence.dtype)
    if equal_mass:
        bin_of = confidence.argsort().argsort() * bins // len(confidence)
    else:
        bin_of = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gaps = torch.zeros(bins, dtype=confidence.dtype, device=confidence.device).index_add(
        0, bin_of, confidence - correct
    )
    return gaps.abs().sum() / len(confidence)
