"""Losses on margins between logits: Crammer–Singer hinge, label-distributionally robust, binary hinges, random ensembles."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from theodolite.losses.contract import Reduction, over_classes, reduced, widened
from theodolite.losses.hessian import OutputHessian
from theodolite.losses.registry import loss, module_of


@loss("classes", margin="[0, ∞)")
def crammer_singer(
    logits: Float[Tensor, "b c *d"],
    target: Int[Tensor, "b *d"],
    *,
    margin: float = 1.0,
    weight: Float[Tensor, " c"] | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """The multi-class hinge [m − z_y + max_{k≠y} z_k]_+ (``F.multi_margin_loss`` sums over k instead).

    Args:
        logits: classes along the second axis.
        target: class indices, or ``ignore_index``.
        margin: the lead that costs nothing.
        weight, ignore_index, reduction: as in ``F.cross_entropy``.

    Returns:
        The reduced loss.

    Example:
        >>> crammer_singer(torch.tensor([[0.5, 0.0]]), torch.tensor([0]))
        tensor(0.5000)

    References:
        Crammer and Singer 2001, "On the Algorithmic Implementation of Multiclass Kernel-based Vector Machines".
    """

    def values(rows: Tensor, classes: Tensor) -> Tensor:
        true = rows.gather(1, classes[:, None])
        runner_up = rows.scatter(1, classes[:, None], -math.inf).amax(1)
        return torch.clamp(margin - true[:, 0] + runner_up, min=0.0)

    return over_classes(values, logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)


CrammerSingerLoss = module_of(crammer_singer, "CrammerSingerLoss")


@loss("values", power="[1, ∞)")
def hinge(
    scores: Float[Tensor, "*b"], signs: Float[Tensor, "*b"], *, power: float = 1.0, reduction: Reduction = "mean"
) -> Float[Tensor, "..."]:
    """The binary hinge [1 − y f]_+^power, y = ±1.

    Args:
        scores: f.
        signs: y, −1 or 1.
        power: 1, or 2 for the squared hinge.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        The reduced loss.

    Example:
        >>> hinge(torch.tensor([0.5]), torch.tensor([-1.0]), power=2.0)
        tensor(2.2500)

    References:
        Cortes and Vapnik 1995, "Support-Vector Networks".
    """
    return reduced(torch.clamp(1 - widened(signs) * widened(scores), min=0.0) ** power, reduction)


HingeLoss = module_of(hinge, "HingeLoss")


@loss("classes", lam="(0, ∞)", margin="(−∞, ∞)")
def ldr_kl(
    logits: Float[Tensor, "b c *d"],
    target: Int[Tensor, "b *d"],
    *,
    lam: float = 1.0,
    margin: float = 0.0,
    normalize: bool = False,
    weight: Float[Tensor, " c"] | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """Label-distributionally robust loss: the worst label distribution q at price λ KL(q‖uniform).

    λ log mean_k e^{δ_k/λ} = max_q q·δ − λ KL(q‖1/C), δ_k = z_k − z_y + c[k ≠ y]. For λ = 1, c = 0 it is cross-entropy
    − log C; for λ → 0 the Crammer–Singer hinge; for λ → ∞ the mean of δ. Convex in the logits for every λ.

    Args:
        logits: classes along the second axis.
        target: class indices, or ``ignore_index``.
        lam: λ > 0.
        margin: c.
        normalize: divide each sample's logits by mean |z| first, as the release does (then not convex).
        weight, ignore_index, reduction: as in ``F.cross_entropy``.

    Returns:
        The reduced loss.

    Example:
        >>> ldr_kl(torch.zeros(1, 4), torch.tensor([0]), margin=1.0)
        tensor(0.8280)

    References:
        Zhu, Ying and Yang 2023, "Label Distributionally Robust Losses for Multi-class Classification: Consistency,
        Robustness and Adaptivity".
    """

    def values(rows: Tensor, classes: Tensor) -> Tensor:
        if normalize:
            rows = _of_unit_size(rows)
        if margin:  # z − ce has the gaps δ
            rows = rows.scatter_add(1, classes[:, None], rows.new_tensor(-margin).expand(len(rows), 1))
        worst = F.cross_entropy(rows if lam == 1 else rows / lam, classes, reduction="none") - math.log(rows.shape[1])
        return worst if lam == 1 else lam * worst

    return over_classes(values, logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)


def ldr_kl_grad(
    logits: Float[Tensor, "n c"], target: Int[Tensor, " n"], *, lam: float = 1.0, margin: float = 0.0
) -> Float[Tensor, "n c"]:
    """Return q − e, q the worst label distribution, for each sample (without ``normalize``)."""
    q = torch.softmax(_gaps(logits, target, margin, False) / lam, 1)
    return q.scatter_add(1, target[:, None], -torch.ones_like(q[:, :1]))


def ldr_kl_hess(
    logits: Float[Tensor, "n c"], target: Int[Tensor, " n"], *, lam: float = 1.0, margin: float = 0.0
) -> OutputHessian:
    """Return (diag q − qqᵀ)/λ for each sample (without ``normalize``)."""
    q = torch.softmax(_gaps(logits, target, margin, False) / lam, 1)
    return OutputHessian(q / lam, q[:, None], torch.full_like(q[:, :1], -1 / lam))


def _of_unit_size(rows: Tensor) -> Tensor:
    return rows / rows.abs().mean(1, keepdim=True).clamp(min=1e-12)


def _gaps(rows: Tensor, classes: Tensor, margin: float, normalize: bool) -> Tensor:
    if normalize:
        rows = _of_unit_size(rows)
    gaps = rows - rows.gather(1, classes[:, None]) + margin
    return gaps.scatter(1, classes[:, None], 0.0)


LDRKLLoss = module_of(ldr_kl, "LDRKLLoss")


class ALDRKLLoss(nn.Module):
    """The adaptive form of :func:`ldr_kl`: every training example has its own λ, small once it is confident.

    λ_i = λ_0(1 − KL(q_i‖uniform)/(α log C)) with q_i from the previous λ_i, detached, so λ_i stays in
    [λ_0(1 − 1/α), λ_0]. The loss adds −(α log C / 2λ_0)(λ_i − λ_0)², which has no gradient in the logits.

    Args:
        examples: number of training examples, each with a stored λ.
        lam0: λ_0.
        alpha: α > 1.
        margin: c.
        normalize: as in :func:`ldr_kl`.
        reduction: over the batch.

    References:
        Zhu, Ying and Yang 2023, "Label Distributionally Robust Losses for Multi-class Classification: Consistency,
        Robustness and Adaptivity".
    """

    lam: Tensor

    def __init__(
        self,
        examples: int,
        *,
        lam0: float = 1.0,
        alpha: float = 2.0,
        margin: float = 1.0,
        normalize: bool = False,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        self.lam0, self.alpha, self.margin = lam0, alpha, margin
        self.normalize, self.reduction = normalize, reduction
        self.register_buffer("lam", torch.full((examples,), lam0))

    def forward(
        self, logits: Float[Tensor, "b c"], target: Int[Tensor, " b"], index: Int[Tensor, " b"]
    ) -> Float[Tensor, "..."]:
        """Return the loss of a batch whose examples have these indices, and store their new λ (in training mode)."""
        rows, log_c = widened(logits), math.log(logits.shape[1])
        gaps = _gaps(rows, target, self.margin, self.normalize)
        lam = self._updated(gaps.detach(), self.lam[index].to(gaps.dtype), log_c)
        if self.training:
            self.lam[index] = lam.to(self.lam.dtype)
        robust = lam * (torch.logsumexp(gaps / lam[:, None], 1) - log_c)
        return reduced(robust - self.alpha * log_c / (2 * self.lam0) * (lam - self.lam0) ** 2, self.reduction)

    def _updated(self, gaps: Tensor, lam: Tensor, log_c: float) -> Tensor:
        log_q = torch.log_softmax(gaps / lam[:, None], 1)
        divergence = (log_q.exp() * log_q).sum(1) + log_c
        return self.lam0 * (1 - divergence / (self.alpha * log_c))


class EnsLoss(nn.Module):
    """A new random convex, calibrated, binary margin loss on every batch.

    Only its derivative is drawn: −u_i, u = min(e^ξ, 1) (or the Box–Cox form [1 + λξ]_+^{1/λ}), ξ standard normal, sorted
    so that the largest slope falls on the smallest margin, and divided by the margin beyond 1. The value returned is
    the pseudo-loss mean(φ'(s)·s) with φ' held constant: its gradient is right, its value is not a loss to report.

    Args:
        period: batches between two draws of λ.
        seed: of the draws.

    References:
        Dai 2024, "EnsLoss: Stochastic Calibrated Loss Ensembles for Preventing Overfitting in Classification". The
        distribution of λ, uniform on [0, 1], is our choice.
    """

    def __init__(self, *, period: int = 10, seed: int = 0) -> None:
        super().__init__()
        self.period, self.seed = period, seed
        self._generator = torch.Generator().manual_seed(seed)
        self._batches, self._power = 0, 0.0

    def forward(self, scores: Float[Tensor, " b"], signs: Float[Tensor, " b"]) -> Float[Tensor, ""]:
        """Return a scalar whose gradient is that of the drawn loss at these margins."""
        if self._batches % self.period == 0:
            self._power = float(torch.rand((), generator=self._generator))
        self._batches += 1
        margins = widened(signs) * widened(scores)
        return (self.slopes(margins.detach()) * margins).mean()

    def slopes(self, margins: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Draw the derivative at each margin: negative, and non-decreasing in the margin."""
        noise = torch.randn(margins.shape, generator=self._generator).to(margins)
        grown = (
            torch.exp(noise) if self._power == 0 else torch.clamp(1 + self._power * noise, min=0.0) ** (1 / self._power)
        )
        drawn = torch.empty_like(margins)
        drawn[margins.argsort()] = grown.clamp(max=1.0).sort(descending=True).values
        return -(drawn / margins.clamp(min=1.0) + 1e-6)
