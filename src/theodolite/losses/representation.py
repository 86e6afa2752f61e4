"""Losses that spread or shape representations: alignment, uniformity, KoLeo, dispersion, whitening, I-Con, tempered InfoNCE."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from theodolite.losses.contract import Reduction, reduced, widened
from theodolite.losses.numerics import NEGLIGIBLE, safe_norm, unit
from theodolite.losses.registry import loss, module_of
from theodolite.losses.tiles import at_full_precision, unit_rows


@loss("views", alpha="(0, ∞)")
def alignment(
    u: Float[Tensor, "b k"], v: Float[Tensor, "b k"], *, alpha: float = 2.0, reduction: Reduction = "mean"
) -> Float[Tensor, "..."]:
    """Distance of unit embeddings of two views, |u − v|^α; for α = 2 it is 2 − 2 cos.

    Args:
        u: first view.
        v: second view.
        alpha: α.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        The reduced loss.

    Example:
        >>> alignment(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
        tensor(2.)

    References:
        Wang and Isola 2020, "Understanding Contrastive Representation Learning through Alignment and Uniformity on the
        Hypersphere".
    """
    difference = unit_rows(u) - unit_rows(v)
    if alpha == 2:
        return reduced(difference.square().sum(1), reduction)
    return reduced(safe_norm(difference) ** alpha, reduction)


AlignmentLoss = module_of(alignment, "AlignmentLoss")


@loss("other", t="(0, ∞)")
def uniformity(u: Float[Tensor, "b k"], *, t: float = 2.0) -> Float[Tensor, ""]:
    """Log of the mean Gaussian potential of pairs of unit embeddings: 0 at collapse, −4t for an antipodal pair.

    Args:
        u: embeddings.
        t: inverse width.

    Returns:
        The loss of the whole batch.

    Example:
        >>> uniformity(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
        tensor(-8.)

    References:
        Wang and Isola 2020, "Understanding Contrastive Representation Learning through Alignment and Uniformity on the
        Hypersphere".
    """
    z = unit_rows(u)
    first, second = torch.triu_indices(len(z), len(z), 1, device=z.device)
    exponents = -t * (z[first] - z[second]).square().sum(1)
    return torch.logsumexp(exponents, 0) - math.log(len(first))


UniformityLoss = module_of(uniformity, "UniformityLoss")


@loss("other", coupled=True, eps="[0, ∞)")
def koleo(u: Float[Tensor, "b k"], *, eps: float = 1e-8, reduction: Reduction = "mean") -> Float[Tensor, "..."]:
    """−log of the distance of each unit embedding to its nearest neighbour: spreads them evenly.

    Args:
        u: embeddings.
        eps: added to distances.
        reduction: over samples.

    Returns:
        The reduced loss.

    Example:
        >>> koleo(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
        tensor(-0.6931)

    References:
        Sablayrolles et al. 2019, "Spreading vectors for similarity search".
    """
    with at_full_precision(u):
        z = unit_rows(u)
        cosines = (z @ z.T).detach().fill_diagonal_(-2.0)
        return reduced(-torch.log(safe_norm(z - z[cosines.argmax(1)]) + eps), reduction)


KoLeoLoss = module_of(koleo, "KoLeoLoss")


@loss("other", temperature="(0, ∞)", margin="[0, ∞)")
def dispersive(
    features: Float[Tensor, "b *d"],
    *,
    kind: Literal["l2", "cosine", "hinge", "covariance"] = "l2",
    temperature: float = 0.5,
    margin: float = 1.0,
) -> Float[Tensor, ""]:
    """Repulsion of the hidden features of a batch, without positives; added with weight 0.5 in diffusion models.

    ``"l2"``: log mean_ij e^{−|h_i − h_j|²/τ}, i = j included as released; ``"cosine"``: the same with 1 − cos;
    ``"hinge"``: mean_{i≠j} [ε − |h_i − h_j|²]₊²; ``"covariance"``: squared off-diagonal covariances.

    Args:
        features: of one layer; all but the first axis are flattened.
        kind: which repulsion.
        temperature: τ.
        margin: ε.

    Returns:
        The loss of the whole batch: 0 at collapse for the first two.

    Example:
        >>> dispersive(torch.ones(3, 2))
        tensor(0.)

    References:
        Wang and He 2025, "Diffuse and Disperse: Image Generation with Representation Regularization".
    """
    h = widened(features).flatten(1)
    n = len(h)
    if kind == "covariance":
        centred = h - h.mean(0)
        covariance = centred.T @ centred / (n - 1)
        return (covariance - torch.diag(torch.diagonal(covariance))).square().sum()
    if kind == "cosine":
        z = unit(h)
        return torch.logsumexp((-(1 - z @ z.T) / temperature).flatten(), 0) - 2 * math.log(n)
    squared = (h[:, None] - h[None]).square().sum(2)
    if kind == "l2":
        return torch.logsumexp((-squared / temperature).flatten(), 0) - 2 * math.log(n)
    apart = ~torch.eye(n, dtype=torch.bool, device=h.device)
    return torch.where(apart, torch.clamp(margin - squared, min=0.0).square(), 0.0).sum() / (n * (n - 1))


DispersiveLoss = module_of(dispersive, "DispersiveLoss")


@loss("views", iterations="[1, ∞)", trace_weight="(−∞, ∞)")
def intl(
    u: Float[Tensor, "b k"],
    v: Float[Tensor, "b k"],
    *,
    iterations: int = 4,
    trace_weight: float | None = None,
) -> Float[Tensor, ""]:
    """Iterative normalisation with trace loss: whitened views agree, and every whitened axis keeps unit variance.

    Args:
        u: first view.
        v: second view.
        iterations: Newton steps of the inverse square root of the covariance.
        trace_weight: 0.01(log₂ b − 3) by default.

    Returns:
        The loss of the whole batch.

    Example:
        >>> round(float(intl(torch.eye(4)[:, :2], torch.eye(4)[:, :2], iterations=20)), 4)
        0.0

    References:
        Weng et al. 2024, "Modulate Your Spectrum in Self-Supervised Learning".
    """
    weight = 0.01 * (math.log2(len(u)) - 3) if trace_weight is None else trace_weight
    a, b = whitened(widened(u), iterations=iterations), whitened(widened(v), iterations=iterations)
    agreement = (unit(a) - unit(b)).square().sum(1).mean()
    spread = (1 - a.var(0)).square().sum() + (1 - b.var(0)).square().sum()
    return agreement + weight * spread


def whitened(z: Float[Tensor, "b k"], *, iterations: int) -> Float[Tensor, "b k"]:
    """Return centred features times the inverse root of their covariance, by Newton's iteration."""
    centred = z - z.mean(0)
    covariance = centred.T @ centred / (len(z) - 1)
    trace = torch.diagonal(covariance).sum().clamp(min=1e-12)
    scaled = covariance / trace
    identity = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
    # the coupled form of p ← 1.5p − 0.5p³Σ: equal in exact arithmetic, but rounding errors do not grow (Higham 2008)
    root, inverse = scaled, identity
    for _ in range(iterations):
        step = 1.5 * identity - 0.5 * inverse @ root
        root, inverse = root @ step, step @ inverse
    return centred @ inverse / trace.sqrt()


INTLLoss = module_of(intl, "INTLLoss")


@loss("other", debias="[0, 1]")
def icon(
    supervision: Float[Tensor, "b n"],
    log_q: Float[Tensor, "b n"],
    *,
    debias: float = 0.0,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """KL from a neighbourhood distribution p(j|i) to a learned q(j|i), the form that many losses share.

    One-hot p is InfoNCE; p uniform on the class is supervised contrastive less the entropy of p; p over classes with
    q = softmax(z) is cross-entropy; Gaussian p and q is stochastic neighbour embedding.

    Args:
        supervision: p, rows sum to 1.
        log_q: see :func:`log_neighbours`.
        debias: α, mixes p with the uniform distribution.
        reduction: over rows.

    Returns:
        The reduced loss, ≥ 0.

    Example:
        >>> icon(torch.tensor([[1.0, 0.0]]), torch.log(torch.tensor([[0.5, 0.5]])))
        tensor(0.6931)

    References:
        Alshammari et al. 2025, "I-Con: A Unifying Framework for Representation Learning".
    """
    p = (1 - debias) * widened(supervision) + debias / supervision.shape[1]
    seen = p > 0
    cross = torch.where(seen, p * torch.where(seen, log_q, 0.0), 0.0)
    return reduced((torch.special.xlogy(p, p) - cross).sum(1), reduction)


IConLoss = module_of(icon, "IConLoss")


def log_neighbours(
    embeddings: Float[Tensor, "b k"],
    *,
    kernel: Literal["gaussian", "cosine", "student"] = "gaussian",
    scale: float = 1.0,
) -> Float[Tensor, "b b"]:
    """Return log q(j|i) over the other samples: ∝ e^{−d²/2σ²}, e^{cos/τ} or (1 + d²)^{−1}; a sample never picks itself.

    Args:
        embeddings: one a sample.
        kernel: which.
        scale: σ of the Gaussian, τ of the cosine.

    Returns:
        Log-probabilities, −∞ on the diagonal.

    References:
        Alshammari et al. 2025, "I-Con: A Unifying Framework for Representation Learning".
    """
    z = widened(embeddings)
    if kernel == "cosine":
        scores = unit(z) @ unit(z).T / scale
    else:
        squared = (z[:, None] - z[None]).square().sum(2)
        scores = -torch.log1p(squared) if kernel == "student" else -squared / (2 * scale**2)
    own = torch.eye(len(z), dtype=torch.bool, device=z.device)
    log_q = scores - torch.logsumexp(scores.masked_fill(own, NEGLIGIBLE), 1, keepdim=True)
    return log_q.masked_fill(own, -math.inf)


@loss("other", rho="[0, ∞)")
def isogclr(
    scores: Float[Tensor, "b n"],
    positives: Float[Tensor, " b"],
    temperatures: Float[Tensor, " b"],
    *,
    rho: float = 0.1,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """Contrast with a temperature of its own for each anchor: τ log mean_j e^{(s_ij − s_ii)/τ} + τρ.

    Minimised over τ it is the largest mean gap over distributions within KL ρ of uniform, so anchors with many near
    duplicates end with a larger τ. Optimise the temperatures with the model, and keep them above 0.05.

    Args:
        scores: cosines s_ij of the negatives.
        positives: cosine s_ii.
        temperatures: τ of each anchor.
        rho: radius ρ.
        reduction: over anchors.

    Returns:
        The reduced loss.

    Example:
        >>> isogclr(torch.zeros(1, 3), torch.zeros(1), torch.ones(1), rho=0.5)
        tensor(0.5000)

    References:
        Qiu et al. 2023, "Not All Semantics are Created Equal: Contrastive Self-supervised Learning with Automatic
        Temperature Individualization".
    """
    tau = widened(temperatures)
    gaps = (widened(scores) - widened(positives)[:, None]) / tau[:, None]
    return reduced(tau * (torch.logsumexp(gaps, 1) - math.log(scores.shape[1]) + rho), reduction)


ISOGCLRLoss = module_of(isogclr, "ISOGCLRLoss")
