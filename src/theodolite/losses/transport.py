"""Distances of distributions and of series: Sinkhorn divergence, soft dynamic time warping, Bures–Wasserstein."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from theodolite.losses.contract import Reduction, reduced, widened
from theodolite.losses.numerics import safe_norm
from theodolite.losses.registry import loss, module_of


@loss("other", p="[1, 2]", blur="(0, ∞)", steps="[1, ∞)")
def sinkhorn_divergence(
    x: Float[Tensor, "n k"],
    y: Float[Tensor, "m k"],
    *,
    p: float = 2.0,
    blur: float = 0.05,
    weights_x: Float[Tensor, " n"] | None = None,
    weights_y: Float[Tensor, " m"] | None = None,
    steps: int = 100,
    envelope: bool = False,
) -> Float[Tensor, ""]:
    """Debiased entropic transport OT_ε(α, β) − ½OT_ε(α, α) − ½OT_ε(β, β), cost |x − y|^p/p, ε = blur^p.

    Non-negative, 0 iff the distributions are equal; for blur → 0 the Wasserstein distance to the p, over p.

    Cost: 3 steps of n·m numbers in the log domain; differentiating keeps them all unless ``envelope``.

    Args:
        x: points of α.
        y: points of β.
        p: 1 or 2.
        blur: length below which points are not told apart.
        weights_x: of α with sum 1, uniform by default.
        weights_y: of β.
        steps: symmetric updates of the potentials.
        envelope: hold the potentials constant in the gradient: right at convergence and far less memory, but the
            second derivative is then wrong. Leave it off for curvature.

    Returns:
        The divergence.

    Example:
        >>> sinkhorn_divergence(torch.zeros(2, 1), torch.zeros(2, 1))
        tensor(0.)

    References:
        Feydy et al. 2019, "Interpolating between Optimal Transport and MMD using Sinkhorn Divergences".
    """
    a, b = widened(x), widened(y)
    log_a, log_b = _log_weights(a, weights_x), _log_weights(b, weights_y)
    epsilon = blur**p
    across = _entropic(_costs(a, b, p), log_a, log_b, epsilon, steps, envelope)
    own_a = _entropic(_costs(a, a, p), log_a, log_a, epsilon, steps, envelope)
    own_b = _entropic(_costs(b, b, p), log_b, log_b, epsilon, steps, envelope)
    return across - 0.5 * own_a - 0.5 * own_b


def domain_alignment(
    features: Sequence[Float[Tensor, "_ k"]], *, p: float = 2.0, blur: float = 0.05
) -> Float[Tensor, ""]:
    """Return the sum of Sinkhorn divergences over all pairs of domains: 0 iff their features are distributed alike.

    Args:
        features: of each domain, of any number of samples.
        p: 1 or 2.
        blur: length below which points are not told apart.
    """
    pairs = itertools.combinations(features, 2)
    return torch.stack([sinkhorn_divergence(x, y, p=p, blur=blur) for x, y in pairs]).sum()


def _log_weights(points: Tensor, weights: Tensor | None) -> Tensor:
    if weights is None:
        return torch.full_like(points[:, 0], 1 / len(points)).log()
    return widened(weights).clamp(min=1e-30).log()


def _costs(x: Tensor, y: Tensor, p: float) -> Tensor:
    difference = x[:, None] - y[None]
    return difference.square().sum(2) / 2 if p == 2 else safe_norm(difference) ** p / p


def _entropic(cost: Tensor, log_a: Tensor, log_b: Tensor, epsilon: float, steps: int, envelope: bool) -> Tensor:
    """Dual value ⟨a, f⟩ + ⟨b, g⟩ after symmetric log-domain updates."""

    def row_update(g: Tensor, cost: Tensor) -> Tensor:
        return -epsilon * torch.logsumexp(log_b + (g - cost) / epsilon, 1)

    def column_update(f: Tensor, cost: Tensor) -> Tensor:
        return -epsilon * torch.logsumexp(log_a[:, None] + (f[:, None] - cost) / epsilon, 0)

    f, g = torch.zeros_like(log_a), torch.zeros_like(log_b)
    with torch.set_grad_enabled(torch.is_grad_enabled() and not envelope):
        fixed = cost.detach() if envelope else cost
        for _ in range(steps):
            f, g = (f + row_update(g, fixed)) / 2, (g + column_update(f, fixed)) / 2
    # with constant potentials one of the two updates carries the plan as its derivative in the cost, both would carry it twice
    f, g = row_update(g, cost), column_update(f, fixed)
    value: Tensor = (log_a.exp() * f).sum() + (log_b.exp() * g).sum()
    return value


SinkhornDivergence = module_of(sinkhorn_divergence, "SinkhornDivergence")


@loss("other", gamma="(0, ∞)")
def soft_dtw(
    x: Float[Tensor, "b n k"], y: Float[Tensor, "b m k"], *, gamma: float = 1.0, reduction: Reduction = "mean"
) -> Float[Tensor, "..."]:
    """Dynamic time warping with a soft minimum, of squared distances: smooth, and negative for equal series.

    R_ij = |x_i − y_j|² + min^γ(R_{i−1,j}, R_{i,j−1}, R_{i−1,j−1}), min^γ = −γ log Σ e^{−·/γ}.

    Cost: n + m steps along anti-diagonals.

    Args:
        x: series.
        y: series.
        gamma: γ > 0; towards 0 it is dynamic time warping.
        reduction: over series.

    Returns:
        The reduced loss.

    Example:
        >>> soft_dtw(torch.zeros(1, 1, 1), torch.ones(1, 1, 1))
        tensor(1.)

    References:
        Cuturi and Blondel 2017, "Soft-DTW: a Differentiable Loss Function for Time-Series".
    """
    a, b = widened(x), widened(y)
    cost = (a[:, :, None] - b[:, None]).square().sum(3)
    n, m = cost.shape[1:]
    rows = torch.arange(n + 1, device=cost.device)
    wall = 1e10  # larger than any path, and finite so that its derivative is 0 and not NaN
    before = cost.new_full((len(cost), n + 1), wall)
    last = before.scatter(1, rows[:1].expand(len(cost), 1), 0.0)  # R_00 on diagonal 0
    for diagonal in range(1, n + m + 1):
        columns = diagonal - rows
        inside = (rows >= 1) & (columns >= 1) & (columns <= m)
        step = cost[:, (rows - 1).clamp(min=0), (columns - 1).clamp(0, m - 1)]
        ways = torch.stack([_shifted(last, wall), last, _shifted(before, wall)])
        best = -gamma * torch.logsumexp(-ways / gamma, 0)
        before, last = last, torch.where(inside, step + best, wall)
    return reduced(last[:, n], reduction)


def _shifted(values: Tensor, wall: float) -> Tensor:
    return torch.cat([torch.full_like(values[:, :1], wall), values[:, :-1]], 1)


SoftDTWLoss = module_of(soft_dtw, "SoftDTWLoss")


@loss("other", ridge="[0, ∞)", steps="[1, ∞)")
def bures_wasserstein(
    a: Float[Tensor, "k k"], b: Float[Tensor, "k k"], *, ridge: float = 0.0, steps: int = 30
) -> Float[Tensor, ""]:
    """Squared Wasserstein distance of centred Gaussians: tr A + tr B − 2 tr(A^½ B A^½)^½, A and B plus ridge·I.

    Its gradient in A is I − B^½(B^½AB^½)^{−½}B^½. The Hessian grows without bound near a loss of rank, which the ridge
    tames. The root is found by Newton's iteration, whose derivatives also exist where eigenvalues coincide.

    Cost: ``steps`` inversions of k × k matrices.

    Args:
        a: covariance, positive definite with the ridge.
        b: covariance, likewise.
        ridge: τ.
        steps: of Newton's iteration; 30 are enough for condition numbers of 1e12.

    Returns:
        The squared distance.

    Example:
        >>> bures_wasserstein(torch.eye(2), 4 * torch.eye(2))
        tensor(2.0000)

    References:
        Bhatia et al. 2019, "On the Bures–Wasserstein distance between positive definite matrices".
    """
    identity = torch.eye(len(a), dtype=widened(a).dtype, device=a.device)
    first, second = (0.5 * (m + m.mT) + ridge * identity for m in (widened(a), widened(b)))
    factor = torch.linalg.cholesky(first)
    middle = factor.mT @ second @ factor
    traces: Tensor = torch.trace(first) + torch.trace(second) - 2 * torch.trace(_root(middle, steps))
    return traces


def _root(matrix: Tensor, steps: int) -> Tensor:
    """Square root of a positive definite matrix by the product form of Denman and Beavers."""
    scale = torch.linalg.matrix_norm(matrix)
    root = matrix / scale
    inverse = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    for _ in range(steps):
        root, inverse = (root + torch.linalg.inv(inverse)) / 2, (inverse + torch.linalg.inv(root)) / 2
    scaled: Tensor = root * scale.sqrt()
    return scaled


BuresWassersteinLoss = module_of(bures_wasserstein, "BuresWassersteinLoss")
