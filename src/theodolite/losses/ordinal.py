"""Regression on the sphere: features of ordered bins cover it along a curve of even speed (SRL)."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from theodolite.losses.contract import Reduction, reduced, widened
from theodolite.losses.numerics import unit
from theodolite.losses.registry import loss, module_of
from theodolite.losses.tiles import unit_rows


@loss("other")
def enveloping(surrogates: Float[Tensor, "l k"], points: Float[Tensor, "j k"]) -> Float[Tensor, ""]:
    """One minus the mean over fixed points of the sphere of their largest cosine to a bin's surrogate: coverage.

    Args:
        surrogates: one feature a bin, see :class:`BinSurrogates`.
        points: spread over the sphere and kept through a run, see :func:`sphere_points`.

    Returns:
        The loss of the whole set.

    Example:
        >>> enveloping(torch.eye(2), torch.eye(2))
        tensor(0.)

    References:
        Dong et al. 2025, "Improve Representation for Imbalanced Regression through Geometric Constraints".
    """
    return 1 - (unit_rows(points) @ unit_rows(surrogates).T).amax(1).mean()


EnvelopingLoss = module_of(enveloping, "EnvelopingLoss")


@loss("other")
def homogeneity(
    surrogates: Float[Tensor, "l k"],
    values: Float[Tensor, " l"],
    *,
    kind: Literal["integral", "released"] = "integral",
) -> Float[Tensor, ""]:
    """Evenness of the curve of surrogates: Σ_b |s_{b+1} − s_b|² / (y_{b+1} − y_b).

    By Cauchy–Schwarz at least (length)²/(range of y), with equality at even speed. The released form, −Σ⟨s_b, s_{b+1}⟩ +
    0.1 Var⟨s_b, s_{b+1}⟩, does not know the labels: it is for bins of one width.

    Args:
        surrogates: one feature a bin, in the order of the bins.
        values: label of each bin, increasing.
        kind: which form.

    Returns:
        The loss of the whole set.

    Example:
        >>> homogeneity(torch.eye(2), torch.tensor([0.0, 2.0]))
        tensor(1.)

    References:
        Dong et al. 2025, "Improve Representation for Imbalanced Regression through Geometric Constraints".
    """
    s = unit_rows(surrogates)
    if kind == "released":
        cosines = (s[1:] * s[:-1]).sum(1)
        return -cosines.sum() + 0.1 * cosines.var(correction=0)
    return ((s[1:] - s[:-1]).square().sum(1) / values.to(s.dtype).diff()).sum()


HomogeneityLoss = module_of(homogeneity, "HomogeneityLoss")


@loss("other", temperature="(0, ∞)")
def surrogate_pull(
    features: Float[Tensor, "b k"],
    bins: Int[Tensor, " b"],
    surrogates: Float[Tensor, "l k"],
    *,
    temperature: float = 0.1,
    weighted: bool = True,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """Contrast of each feature with the surrogates of all bins, far bins weighing more: (|b_i − b| + 1)/max.

    Args:
        features: one a sample.
        bins: bin of each sample.
        surrogates: one a bin, held constant.
        temperature: τ.
        weighted: weigh bins by their distance; otherwise all the same.
        reduction: over samples.

    Returns:
        The reduced loss.

    Example:
        >>> surrogate_pull(torch.eye(2), torch.tensor([0, 1]), torch.eye(2), temperature=1.0, weighted=False)
        tensor(0.3133)

    References:
        Dong et al. 2025, "Improve Representation for Imbalanced Regression through Geometric Constraints".
    """
    scores = unit_rows(features) @ unit_rows(surrogates).detach().T / temperature
    distance = (bins[:, None] - torch.arange(len(surrogates), device=bins.device)[None]).abs() + 1
    weight = (distance / distance.amax(1, keepdim=True)).to(scores.dtype)
    denominator = scores + torch.log(weight) if weighted else scores
    return reduced(torch.logsumexp(denominator, 1) - scores.gather(1, bins[:, None])[:, 0], reduction)


SurrogatePullLoss = module_of(surrogate_pull, "SurrogatePullLoss")


def sphere_points(count: int, size: int, *, seed: int = 0) -> Float[Tensor, "j k"]:
    """Return points uniform on the unit sphere, the same for the same seed."""
    return unit(torch.randn(count, size, generator=torch.Generator().manual_seed(seed)))


class BinSurrogates(nn.Module):
    """A feature for every bin of the labels: the batch's mean where the batch has the bin, else that of past epochs.

    Both losses above need the whole range of labels, which no batch has. Call :meth:`end_epoch` after each epoch.

    Args:
        bins: number of bins.
        size: of the features.
        momentum: of the average over epochs.

    References:
        Dong et al. 2025, "Improve Representation for Imbalanced Regression through Geometric Constraints".
    """

    kept: Tensor
    total: Tensor
    known: Tensor

    def __init__(self, bins: int, size: int, *, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("kept", torch.zeros(bins, size))
        self.register_buffer("total", torch.zeros(bins, size))
        self.register_buffer("known", torch.zeros(bins, dtype=torch.bool))

    def forward(self, features: Float[Tensor, "b k"], bins: Int[Tensor, " b"]) -> Float[Tensor, "l k"]:
        """Return unit surrogates of all bins seen so far or now, in their order, with the batch's gradient."""
        z = unit_rows(features)
        member = F.one_hot(bins, len(self.kept)).to(z.dtype)
        sums, present = member.T @ z, member.sum(0) > 0
        if self.training:
            self.total += sums.detach().to(self.total.dtype)
        every = torch.where(present[:, None], sums, self.kept.to(z.dtype))
        return unit(every[present | self.known])

    def rows(self, bins: Int[Tensor, " b"]) -> Int[Tensor, " l"]:
        """Return which bins the surrogates of such a batch stand for."""
        present = torch.zeros_like(self.known)
        present[bins] = True
        return (present | self.known).nonzero()[:, 0]

    def end_epoch(self) -> None:
        """Mix the epoch's means into the kept surrogates, and start the next epoch's."""
        seen = self.total.square().sum(1) > 0
        fresh = unit(widened(self.total))
        mixed = torch.where(self.known[:, None], self.momentum * self.kept + (1 - self.momentum) * fresh, fresh)
        self.kept = torch.where(seen[:, None], unit(mixed), self.kept)
        self.known = self.known | seen
        self.total = torch.zeros_like(self.total)
