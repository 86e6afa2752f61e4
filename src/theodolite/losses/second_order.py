"""Why no loss can elicit a distribution over class probabilities from labels: a checker with counterexamples."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

SecondOrderLoss = Callable[[Tensor, Tensor, int], Tensor]


class SecondOrderCheck(NamedTuple):
    """What labels alone can tell a second-order learner.

    Args:
        certain: expected loss of each candidate report when the truth is a point at the mean probability.
        spread: the same when the truth is spread over the corners with that mean.
        best: index of the best candidate, the same for both truths.
        epistemic: mutual information of the best candidate in nats, which the labels did not determine.
    """

    certain: Float[Tensor, " r"]
    spread: Float[Tensor, " r"]
    best: int
    epistemic: float


def check_second_order(
    loss: SecondOrderLoss,
    atoms: Float[Tensor, "r a c"],
    weights: Float[Tensor, "r a"],
    mean: Float[Tensor, " c"],
) -> SecondOrderCheck:
    """Compare the expected loss of candidate reports under two truths that have one mean and opposite uncertainty.

    The learner sees labels y ~ θ, θ ~ Q*, so its expected loss depends on Q* through the mean of θ alone: a fully
    certain and a maximally uncertain truth have the same minimiser, and no loss is strictly proper for reports Q.

    Args:
        loss: of a report's atoms (a, c), their weights (a,), and a label.
        atoms: class probabilities of each candidate report.
        weights: of the atoms, with sum 1.
        mean: θ̄, the mean class probabilities of both truths.

    Returns:
        Expected losses under both truths, the minimiser and its epistemic share.

    Example:
        >>> report = torch.tensor([[[0.5, 0.5]]])
        >>> found = check_second_order(
        ...     lambda theta, w, y: -(w * torch.log(theta[:, y])).sum(), report, torch.ones(1, 1), torch.tensor([0.5, 0.5])
        ... )
        >>> bool(found.certain == found.spread)
        True

    References:
        Bengs et al. 2023, "On Second-Order Scoring Rules for Epistemic Uncertainty Quantification".
    """
    single = torch.stack(
        [torch.stack([loss(a, w, y) for y in range(len(mean))]) for a, w in zip(atoms, weights, strict=True)]
    )
    certain = _expected(single, mean[None], torch.ones_like(mean[:1]))
    spread = _expected(single, torch.eye(len(mean), dtype=mean.dtype), mean)
    best = int(certain.argmin())
    return SecondOrderCheck(certain, spread, best, mutual_information(atoms[best], weights[best]))


def _expected(single: Tensor, truths: Tensor, masses: Tensor) -> Tensor:
    """Σ_θ Q*(θ) Σ_y θ_y L(·, y)."""
    per_truth = torch.stack([mass * (single @ theta) for theta, mass in zip(truths, masses, strict=True)])
    total: Tensor = per_truth.sum(0)
    return total


def mutual_information(atoms: Float[Tensor, "a c"], weights: Float[Tensor, " a"]) -> float:
    """Return H(θ̄) − E H(θ) in nats, the epistemic share of a report's uncertainty."""

    def entropy(p: Tensor) -> Tensor:
        total: Tensor = torch.special.xlogy(p, p).sum(-1)
        return -total

    return float(entropy(weights @ atoms) - weights @ entropy(atoms))
