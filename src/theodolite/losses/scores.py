"""Scores of predictions, without gradient: ranking, probabilities, regression, language models, rejection."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def confusion_counts(
    predicted: Int[Tensor, " b"], target: Int[Tensor, " b"], *, classes: int
) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"], Float[Tensor, " c"], Float[Tensor, " c"]]:
    """Return TP, FN, FP, TN of each class against the rest.

    A metric of them averaged over classes is its macro form; of their sums, its micro form.

    Example:
        >>> from theodolite.losses import f_score
        >>> counts = confusion_counts(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 2]), classes=3)
        >>> f_score(*counts).mean(), f_score(*(part.sum() for part in counts))
        (tensor(0.5556, dtype=torch.float64), tensor(0.6667, dtype=torch.float64))
    """
    table = torch.bincount(target * classes + predicted, minlength=classes**2).reshape(classes, classes).double()
    hit = torch.diagonal(table)
    missed, raised = table.sum(1) - hit, table.sum(0) - hit
    return hit, missed, raised, table.sum() - hit - missed - raised


def roc_auc(scores: Float[Tensor, " b"], labels: Bool[Tensor, " b"]) -> float:
    """Return the probability that a positive outranks a negative, ties counting a half; NaN without both kinds.

    References:
        Hanley and McNeil 1982, "The Meaning and Use of the Area under a Receiver Operating Characteristic (ROC) Curve".
    """
    positives, negatives = int(labels.sum()), int((~labels).sum())
    if positives == 0 or negatives == 0:
        return math.nan
    ranks = _ranks(scores)
    return float((ranks[labels].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def average_precision(scores: Float[Tensor, " b"], labels: Bool[Tensor, " b"]) -> float:
    """Return Σ (R_k − R_{k−1}) P_k over the distinct scores, not interpolated; 0 without a positive."""
    order = scores.argsort(descending=True)
    hits = labels[order].double().cumsum(0)
    last = torch.ones_like(order, dtype=torch.bool)  # the last of equal scores: ties enter together
    last[:-1] = scores[order].diff() != 0
    hits, seen = hits[last], torch.arange(1, len(order) + 1, device=order.device)[last]
    total = float(labels.sum())
    gained = torch.cat([hits[:1], hits.diff()])
    return float((gained * hits / seen).sum() / total) if total else 0.0


def log_score(probabilities: Float[Tensor, "b c"], target: Int[Tensor, " b"]) -> float:
    """Return the mean of −log p_y, in nats; infinite where a true class was excluded."""
    return float(-probabilities.double().gather(1, target[:, None]).log().mean())


def brier_score(probabilities: Float[Tensor, "b c"], target: Int[Tensor, " b"]) -> float:
    """Return the mean of |p − e|², from 0 to 2 (twice the binary convention).

    References:
        Brier 1950, "Verification of Forecasts Expressed in Terms of Probability".
    """
    p = probabilities.double()
    true = p.gather(1, target[:, None])[:, 0]
    return float((p.square().sum(1) - 2 * true + 1).mean())


def r_squared(prediction: Float[Tensor, " b"], target: Float[Tensor, " b"], *, predictors: int = 0) -> float:
    """Return 1 − Σe²/Σ(y − ȳ)², with a number of predictors adjusted for their degrees of freedom."""
    y = target.double()
    share = (y - prediction.double()).square().sum() / (y - y.mean()).square().sum()
    return float(1 - share * (len(y) - 1) / (len(y) - 1 - predictors))


def pearson(x: Float[Tensor, " b"], y: Float[Tensor, " b"]) -> float:
    """Return the linear correlation; NaN where one of them is constant."""
    a, b = x.double() - x.double().mean(), y.double() - y.double().mean()
    size = a.norm() * b.norm()
    return float(a @ b / size) if float(size) > 0 else math.nan


def spearman(x: Float[Tensor, " b"], y: Float[Tensor, " b"]) -> float:
    """Return the correlation of ranks, equal values sharing their mean rank."""
    return pearson(_ranks(x), _ranks(y))


def perplexity(log_probabilities: Float[Tensor, "*b"]) -> float:
    """Return e to the mean negative log-probability of the tokens: over a corpus, not a mean over batches."""
    return float(torch.exp(-log_probabilities.double().mean()))


def coverage_curve(
    scores: Float[Tensor, " b"], correct: Bool[Tensor, " b"]
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """Return coverage k/b and the error rate among the k highest scores, for every k: what rejecting the rest leaves.

    References:
        Geifman and El-Yaniv 2017, "Selective Classification for Deep Neural Networks".
    """
    wrong = (~correct)[scores.argsort(descending=True)].double()
    counts = torch.arange(1, len(wrong) + 1, device=wrong.device).double()
    return counts / len(wrong), wrong.cumsum(0) / counts


def _ranks(values: Tensor) -> Tensor:
    """Ranks from 1; equal values share their mean rank."""
    _, group, sizes = torch.unique(values, return_inverse=True, return_counts=True)
    last = sizes.cumsum(0)
    mean_ranks: Tensor = last - (sizes - 1) / 2
    return mean_ranks[group].double()
