"""Other maps from logits to probabilities, with their losses: Taylor, spherical, sparsemax, top-k softmax."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from theodolite.losses.contract import Reduction, over_classes, reduced, widened
from theodolite.losses.hessian import OutputHessian
from theodolite.losses.registry import loss, module_of


@loss("classes")
def taylor_softmax_ce(
    logits: Float[Tensor, "b c *d"],
    target: Int[Tensor, "b *d"],
    *,
    order: int = 2,
    weight: Float[Tensor, " c"] | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """Negative log-likelihood of p_i ∝ Σ_{k≤n} z_i^k/k!, positive for even n; not shift-invariant.

    Args:
        logits: classes along the second axis.
        target: class indices, or ``ignore_index``.
        order: n, even.
        weight, ignore_index, reduction: as in ``F.cross_entropy``.

    Returns:
        The reduced loss.

    Raises:
        ValueError: if the order is odd.

    Example:
        >>> taylor_softmax_ce(torch.zeros(1, 4), torch.tensor([0]))
        tensor(1.3863)

    References:
        de Brébisson and Vincent 2016, "An Exploration of Softmax Alternatives Belonging to the Spherical Loss Family".
    """
    if order < 2 or order % 2:
        raise ValueError(
            f"The Taylor softmax needs an even order, whose polynomial is positive everywhere. Found order = {order}."
        )

    def values(rows: Tensor, classes: Tensor) -> Tensor:
        scores = _exponential_series(rows, order)
        return torch.log(scores.sum(1)) - torch.log(scores.gather(1, classes[:, None])[:, 0])

    return over_classes(values, logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)


def taylor_softmax_ce_grad(
    logits: Float[Tensor, "n c"], target: Int[Tensor, " n"], *, order: int = 2
) -> Float[Tensor, "n c"]:
    """Return t'/Σt − (t'_y/t_y) e for each sample."""
    scores, slopes = _exponential_series(logits, order), _exponential_series(logits, order - 1)
    true = target[:, None]
    return (slopes / scores.sum(1, keepdim=True)).scatter_add(1, true, -(slopes / scores).gather(1, true))


def _exponential_series(z: Tensor, order: int) -> Tensor:
    """Σ_{k≤n} z^k/k! by Horner's rule."""
    total = torch.ones_like(z)
    for k in range(order, 0, -1):
        total = 1 + total * z / k
    return total


TaylorSoftmaxCE = module_of(taylor_softmax_ce, "TaylorSoftmaxCE")


@loss("classes", eps="[0, ∞)")
def spherical_softmax_ce(
    logits: Float[Tensor, "b c *d"],
    target: Int[Tensor, "b *d"],
    *,
    eps: float = 1e-6,
    weight: Float[Tensor, " c"] | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """Negative log-likelihood of p_i ∝ z_i² + ε: even in every logit, scale-invariant for ε = 0.

    Args:
        logits: classes along the second axis.
        target: class indices, or ``ignore_index``.
        eps: ε > 0 keeps log z_y² finite.
        weight, ignore_index, reduction: as in ``F.cross_entropy``.

    Returns:
        The reduced loss.

    Example:
        >>> spherical_softmax_ce(torch.ones(1, 4), torch.tensor([0]))
        tensor(1.3863)

    References:
        de Brébisson and Vincent 2016, "An Exploration of Softmax Alternatives Belonging to the Spherical Loss Family".
    """

    def values(rows: Tensor, classes: Tensor) -> Tensor:
        scores = rows.square() + eps
        return torch.log(scores.sum(1)) - torch.log(scores.gather(1, classes[:, None])[:, 0])

    return over_classes(values, logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)


SphericalSoftmaxCE = module_of(spherical_softmax_ce, "SphericalSoftmaxCE")


def sparsemax(logits: Float[Tensor, "*b c"]) -> Float[Tensor, "*b c"]:
    """Return the Euclidean projection of the logits onto the probability simplex.

    Cost: one sort along the last axis.

    Args:
        logits: classes along the last axis.

    Returns:
        Probabilities, many of them exactly 0.

    Example:
        >>> sparsemax(torch.tensor([1.0, 0.5, -1.0]))
        tensor([0.7500, 0.2500, 0.0000])

    References:
        Martins and Astudillo 2016, "From Softmax to Sparsemax: A Sparse Model of Attention and Multi-Label
        Classification".
    """
    rows = widened(logits)
    return torch.relu(rows - _threshold(rows))


@loss("classes")
def sparsemax_loss(
    logits: Float[Tensor, "b c *d"],
    target: Int[Tensor, "b *d"] | Float[Tensor, "b c"],
    *,
    weight: Float[Tensor, " c"] | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """The Fenchel–Young loss of sparsemax: convex, 0 iff the true logit leads by 1.

    L = −q·z + ½ Σ_{j∈S}(z_j² − τ²) + ½|q|², S the support of sparsemax(z) and τ its threshold.

    Args:
        logits: classes along the second axis.
        target: class indices, ``ignore_index``, or distributions q (then ``weight`` does not apply).
        weight, ignore_index, reduction: as in ``F.cross_entropy``.

    Returns:
        The reduced loss.

    Example:
        >>> sparsemax_loss(torch.tensor([[0.0, 0.0]]), torch.tensor([0]))
        tensor(0.2500)

    References:
        Martins and Astudillo 2016, "From Softmax to Sparsemax: A Sparse Model of Attention and Multi-Label
        Classification".
    """
    if target.is_floating_point():
        shifted, conjugate = _shifted_and_conjugate(widened(logits))
        return reduced(conjugate - (target * shifted).sum(1) + 0.5 * target.square().sum(1), reduction)

    def values(rows: Tensor, classes: Tensor) -> Tensor:
        shifted, conjugate = _shifted_and_conjugate(rows)
        return conjugate - shifted.gather(1, classes[:, None])[:, 0] + 0.5

    return over_classes(values, logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)


def _shifted_and_conjugate(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Logits with their maximum at 0 (the loss is shift-invariant, z² is not), and ½ Σ_S (z² − τ²)."""
    shifted = rows - rows.amax(1, keepdim=True)
    threshold = _threshold(shifted)
    inside = torch.relu(shifted - threshold)  # not clamp, whose slope of 1 at a tie would count a class outside
    return shifted, 0.5 * (inside * (shifted + threshold)).sum(1)


def _threshold(rows: Tensor) -> Tensor:
    """τ with Σ [z − τ]_+ = 1."""
    ordered = rows.sort(dim=-1, descending=True).values
    ranks = torch.arange(1, rows.shape[-1] + 1, device=rows.device, dtype=rows.dtype)
    totals = ordered.cumsum(-1)
    size = (1 + ranks * ordered > totals).sum(-1, keepdim=True).clamp(min=1)  # 0 of NaN, which stays NaN
    return (totals.gather(-1, size - 1) - 1) / size


def sparsemax_loss_grad(logits: Float[Tensor, "n c"], target: Int[Tensor, " n"]) -> Float[Tensor, "n c"]:
    """Return sparsemax(z) − e for each sample."""
    p = sparsemax(logits)
    return p.scatter_add(1, target[:, None], -torch.ones_like(p[:, :1]))


def sparsemax_loss_hess(logits: Float[Tensor, "n c"], target: Int[Tensor, " n"]) -> OutputHessian:
    """Return diag 1_S − 1_S 1_Sᵀ/|S| for each sample."""
    inside = (sparsemax(logits) > 0).to(logits.dtype)
    return OutputHessian(inside, inside[:, None], -1 / inside.sum(1, keepdim=True))


SparsemaxLoss = module_of(sparsemax_loss, "SparsemaxLoss")


@loss("classes", k="[1, ∞)")
def sparse_softmax_ce(
    logits: Float[Tensor, "b c *d"],
    target: Int[Tensor, "b *d"],
    *,
    k: int = 20,
    weight: Float[Tensor, " c"] | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """Cross-entropy normalised over the k largest logits: log Σ_{top k} e^z − z_y, between 0 and cross-entropy.

    Args:
        logits: classes along the second axis.
        target: class indices, or ``ignore_index``.
        k: how many logits enter the normaliser; at least C means all of them.
        weight, ignore_index, reduction: as in ``F.cross_entropy``.

    Returns:
        The reduced loss.

    Example:
        >>> sparse_softmax_ce(torch.tensor([[0.0, 0.0, -1.0]]), torch.tensor([0]), k=2)
        tensor(0.6931)

    References:
        Sun et al. 2021, "Sparse-softmax: A Simpler and Faster Alternative Softmax Transformation".
    """

    def values(rows: Tensor, classes: Tensor) -> Tensor:
        if k >= rows.shape[1]:
            return F.cross_entropy(rows, classes, reduction="none")
        top = rows.topk(k, dim=1).values
        return torch.logsumexp(top, 1) - rows.gather(1, classes[:, None])[:, 0]

    return over_classes(values, logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)


def sparse_softmax_ce_grad(
    logits: Float[Tensor, "n c"], target: Int[Tensor, " n"], *, k: int = 20
) -> Float[Tensor, "n c"]:
    """Return the top-k softmax minus e for each sample."""
    p = _top_softmax(logits, k)
    return p.scatter_add(1, target[:, None], -torch.ones_like(p[:, :1]))


def sparse_softmax_ce_hess(logits: Float[Tensor, "n c"], target: Int[Tensor, " n"], *, k: int = 20) -> OutputHessian:
    """Return diag p − ppᵀ of the top-k softmax for each sample, over the k classes alone."""
    top = logits.topk(min(k, logits.shape[1]), dim=1)
    p = torch.softmax(top.values, 1)
    return OutputHessian(p, p[:, None], -torch.ones_like(p[:, :1]), logits.shape[1], top.indices)


def _top_softmax(logits: Tensor, k: int) -> Tensor:
    top = logits.topk(min(k, logits.shape[1]), dim=1)
    return torch.zeros_like(logits).scatter(1, top.indices, torch.softmax(top.values, 1))


SparseSoftmaxCE = module_of(sparse_softmax_ce, "SparseSoftmaxCE")
