"""Losses that reshape the cross-entropy by the confidence in the true class: focal, dual focal, poly, comp-sum, pass@N."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from theodolite.losses.contract import Reduction, over_classes, reduced, widened
from theodolite.losses.numerics import capped_exp, log1mexp
from theodolite.losses.registry import loss, module_of
from theodolite.losses.through_ce import gradient_from, hessian_from, of_cross_entropy, true_and_rest


@loss("classes", gamma="[0, ∞)")
def focal(
    logits: Float[Tensor, "b c *d"],
    target: Int[Tensor, "b *d"],
    *,
    gamma: float = 2.0,
    weight: Float[Tensor, " c"] | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """Cross-entropy times (1 − p_y)^γ: samples that are already right count little. Not convex in the logits.

    Args:
        logits: classes along the second axis.
        target: class indices, or ``ignore_index``.
        gamma: focusing; 0 is cross-entropy.
        weight, ignore_index, reduction: as in ``F.cross_entropy`` (the weight is the paper's α).

    Returns:
        The reduced loss.

    Example:
        >>> focal(torch.zeros(1, 4), torch.tensor([0]))
        tensor(0.7798)

    References:
        Lin et al. 2017, "Focal Loss for Dense Object Detection".
    """

    def phi(u: Tensor) -> Tensor:
        return true_and_rest(u)[1] ** gamma * u

    return of_cross_entropy(phi, logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)


def _focal_slopes(u: Tensor, *, gamma: float = 2.0) -> tuple[Tensor, Tensor]:
    p, q = true_and_rest(u)
    first = q**gamma + gamma * p * u * q ** (gamma - 1)
    return first, gamma * p * q ** (gamma - 2) * (2 * q - u * q + (gamma - 1) * p * u)


focal_grad, focal_hess = gradient_from(_focal_slopes), hessian_from(_focal_slopes)
FocalLoss = module_of(focal, "FocalLoss")


@loss("classes", gamma="[0, ∞)")
def dual_focal(
    logits: Float[Tensor, "b c *d"],
    target: Int[Tensor, "b *d"],
    *,
    gamma: float = 5.0,
    weight: Float[Tensor, " c"] | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """Focal loss on the gap to the runner-up: −(1 − p_y + p_j)^γ log p_y, p_j the largest probability below p_y.

    p_j is strictly below p_y, as in the released code: where the true class is not on top, it is the best class
    *below* the true one, and 0 where there is none. The loss jumps where two probabilities cross p_y.

    Args:
        logits: classes along the second axis.
        target: class indices, or ``ignore_index``.
        gamma: focusing; 0 is cross-entropy.
        weight, ignore_index, reduction: as in ``F.cross_entropy``.

    Returns:
        The reduced loss, never below the focal loss of the same γ.

    Example:
        >>> dual_focal(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0]))
        tensor(0.0266)

    References:
        Tao et al. 2023, "Dual Focal Loss for Calibration".
    """

    def values(rows: Tensor, classes: Tensor) -> Tensor:
        log_p = F.log_softmax(rows, 1)
        u = -log_p.gather(1, classes[:, None])[:, 0]
        below = torch.where(log_p < -u[:, None], log_p, -math.inf).amax(1)
        p_below = torch.where(below.isinf(), 0.0, torch.exp(torch.where(below.isinf(), 0.0, below)))
        return (true_and_rest(u)[1] + p_below) ** gamma * u

    return over_classes(values, logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)


DualFocalLoss = module_of(dual_focal, "DualFocalLoss")


@loss("classes")
def poly(
    logits: Float[Tensor, "b c *d"],
    target: Int[Tensor, "b *d"],
    *,
    coefficients: Sequence[float] = (1.0,),
    weight: Float[Tensor, " c"] | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """Cross-entropy with the leading terms of its series Σ (1 − p_y)^j / j shifted by ε_j (Poly-N).

    Args:
        logits: classes along the second axis.
        target: class indices, or ``ignore_index``.
        coefficients: ε_1, ε_2, …; one of them is Poly-1, its value 1 for general use, 2 for ImageNet.
        weight, ignore_index, reduction: as in ``F.cross_entropy``.

    Returns:
        The reduced loss.

    Example:
        >>> poly(torch.zeros(1, 4), torch.tensor([0]))
        tensor(2.1363)

    References:
        Leng et al. 2022, "PolyLoss: A Polynomial Expansion Perspective of Classification Loss Functions".
    """

    def phi(u: Tensor) -> Tensor:
        q = true_and_rest(u)[1]
        return u + sum(epsilon * q**j for j, epsilon in enumerate(coefficients, 1))

    return of_cross_entropy(phi, logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)


def _poly_slopes(u: Tensor, *, coefficients: Sequence[float] = (1.0,)) -> tuple[Tensor, Tensor]:
    p, q = true_and_rest(u)
    first, second = torch.ones_like(u), torch.zeros_like(u)
    for j, epsilon in enumerate(coefficients, 1):
        first = first + epsilon * j * q ** (j - 1) * p
        bend = (j - 1) * q ** (j - 2) * p if j > 1 else 0.0
        second = second + epsilon * j * p * (bend - q ** (j - 1))
    return first, second


poly_grad, poly_hess = gradient_from(_poly_slopes), hessian_from(_poly_slopes)
PolyLoss = module_of(poly, "PolyLoss")


@loss("classes", epsilon="(−∞, ∞)", gamma="[0, ∞)")
def poly_focal(
    logits: Float[Tensor, "b c *d"],
    target: Int[Tensor, "b *d"],
    *,
    epsilon: float = 1.0,
    gamma: float = 2.0,
    weight: Float[Tensor, " c"] | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """Focal loss with its leading term shifted: focal + ε(1 − p_y)^{γ+1} (Poly-1 of the focal loss).

    Args:
        logits: classes along the second axis.
        target: class indices, or ``ignore_index``.
        epsilon: the shift.
        gamma: focusing.
        weight, ignore_index, reduction: as in ``F.cross_entropy``.

    Returns:
        The reduced loss.

    Example:
        >>> poly_focal(torch.zeros(1, 4), torch.tensor([0]))
        tensor(1.2017)

    References:
        Leng et al. 2022, "PolyLoss: A Polynomial Expansion Perspective of Classification Loss Functions".
    """

    def phi(u: Tensor) -> Tensor:
        q = true_and_rest(u)[1]
        return q**gamma * u + epsilon * q ** (gamma + 1)

    return of_cross_entropy(phi, logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)


def _poly_focal_slopes(u: Tensor, *, epsilon: float = 1.0, gamma: float = 2.0) -> tuple[Tensor, Tensor]:
    p, q = true_and_rest(u)
    first, second = _focal_slopes(u, gamma=gamma)
    return (
        first + epsilon * (gamma + 1) * q**gamma * p,
        second + epsilon * (gamma + 1) * p * q ** (gamma - 1) * (gamma * p - q),
    )


poly_focal_grad, poly_focal_hess = gradient_from(_poly_focal_slopes), hessian_from(_poly_focal_slopes)
PolyFocalLoss = module_of(poly_focal, "PolyFocalLoss")


@loss("classes", tau="[0, ∞)")
def comp_sum(
    logits: Float[Tensor, "b c *d"],
    target: Int[Tensor, "b *d"],
    *,
    tau: float = 1.0,
    weight: Float[Tensor, " c"] | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """The family (p_y^{τ−1} − 1)/(1 − τ): sum-exponential, cross-entropy, generalised cross-entropy, mean absolute error.

    τ = 0 is Σ_{j≠y} e^{z_j − z_y}, τ = 1 cross-entropy, 1 < τ < 2 generalised cross-entropy of q = τ − 1, τ = 2 is
    1 − p_y. Convex in the logits iff τ ≤ 1. For τ < 1 the loss grows exponentially; beyond a cross-entropy of
    30/(1 − τ) it continues along its tangent, so that it stays finite.

    Args:
        logits: classes along the second axis.
        target: class indices, or ``ignore_index``.
        tau: τ ≥ 0.
        weight, ignore_index, reduction: as in ``F.cross_entropy``.

    Returns:
        The reduced loss.

    Example:
        >>> comp_sum(torch.zeros(1, 4), torch.tensor([0]), tau=2.0)
        tensor(0.7500)

    References:
        Mao et al. 2023, "Cross-Entropy Loss Functions: Theoretical Analysis and Applications".
    """

    def phi(u: Tensor) -> Tensor:
        return comp_sum_value(u, tau)

    return of_cross_entropy(phi, logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)


def comp_sum_value(u: Float[Tensor, "*d"], tau: float) -> Float[Tensor, "*d"]:
    """Return the comp-sum loss of a cross-entropy u."""
    slope = 1 - tau
    if slope == 0:
        return u
    if slope < 0:
        return torch.expm1(slope * u) / slope
    small = slope * u < 1.0  # expm1 where it matters, the capped exponential where it may overflow
    near = torch.expm1(torch.where(small, slope * u, 0.0))
    return torch.where(small, near, capped_exp(slope * u) - 1) / slope


def _comp_sum_slopes(u: Tensor, *, tau: float = 1.0) -> tuple[Tensor, Tensor]:
    slope = 1 - tau
    first = torch.exp((slope * u).clamp(max=30.0))
    return first, torch.where(slope * u > 30.0, 0.0, slope * first)


comp_sum_grad, comp_sum_hess = gradient_from(_comp_sum_slopes), hessian_from(_comp_sum_slopes)
CompSumLoss = module_of(comp_sum, "CompSumLoss")


@loss("classes", samples="[1, ∞)")
def dco(
    logits: Float[Tensor, "b c *d"],
    target: Int[Tensor, "b *d"],
    *,
    samples: int = 16,
    weight: Float[Tensor, " c"] | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """Pass@N: −log(1 − (1 − p_y)^N), the surprise that none of N draws is right.

    The gradient is that of cross-entropy times F = N p (1 − p)^{N−1} / (1 − (1 − p)^N) in (0, 1]: confidence beyond
    what N draws need is not rewarded.

    Args:
        logits: classes along the second axis.
        target: class indices, or ``ignore_index``.
        samples: N; 1 is cross-entropy.
        weight, ignore_index, reduction: as in ``F.cross_entropy``.

    Returns:
        The reduced loss.

    Example:
        >>> dco(torch.zeros(1, 4), torch.tensor([0]), samples=4)
        tensor(0.3804)

    References:
        Chen et al. 2025, "Rethinking Fine-Tuning when Scaling Test-Time Compute: Limiting Confidence Improves
        Mathematical Reasoning" (direct coverage optimisation).
    """

    def phi(u: Tensor) -> Tensor:
        return _pass_at_n(u, samples)

    return of_cross_entropy(phi, logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)


@loss("other", samples="[1, ∞)")
def dco_sequence(
    log_prob: Float[Tensor, " b"], *, samples: int = 16, reduction: Reduction = "mean"
) -> Float[Tensor, "..."]:
    """Pass@N of whole sequences, from the log-probability of each right answer; see :func:`dco`.

    Args:
        log_prob: log-probabilities of the right answers, ≤ 0.
        samples: N.
        reduction: over answers.

    Returns:
        The reduced loss.

    Example:
        >>> dco_sequence(torch.tensor([-1.0]), samples=1)
        tensor(1.)

    References:
        Chen et al. 2025, "Rethinking Fine-Tuning when Scaling Test-Time Compute: Limiting Confidence Improves
        Mathematical Reasoning".
    """
    return reduced(_pass_at_n(-widened(log_prob), samples), reduction)


def _pass_at_n(u: Tensor, samples: int) -> Tensor:
    """−log(1 − (1 − p)^N) at p = e^{−u}: directly, or by its series in p where e^{−u} may vanish."""
    misses = -samples * log1mexp(u.clamp(min=1e-12))  # −N log(1 − p)
    rare = misses < 1e-5  # then p < 1e-5 and p³ is below the precision of float64
    common = -log1mexp(torch.where(rare, 1.0, misses))
    p, expected = torch.exp(-u), torch.where(rare, misses, 0.0)
    return torch.where(rare, u - math.log(samples) - p / 2 - 5 * p**2 / 24 + expected / 2 - expected**2 / 24, common)


def _dco_slopes(u: Tensor, *, samples: int = 16) -> tuple[Tensor, Tensor]:
    p, q = true_and_rest(u)
    log_q = log1mexp(u.clamp(min=1e-12))
    hit = -torch.expm1(samples * log_q)  # 1 − (1 − p)^N
    ratio = torch.where(hit > 0, p * samples / torch.where(hit > 0, hit, 1.0), 1.0)
    first = ratio * torch.exp((samples - 1) * log_q)
    # d log F / du = −1 + (N − 1)p/q + F, from F = Np q^{N−1}/hit
    return first, first * (first - 1 + (samples - 1) * p / q)


dco_grad, dco_hess = gradient_from(_dco_slopes), hessian_from(_dco_slopes)
DCOLoss = module_of(dco, "DCOLoss")
DCOSequenceLoss = module_of(dco_sequence, "DCOSequenceLoss")
