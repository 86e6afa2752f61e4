"""A learned link from scores to probabilities that keeps the loss proper: gradients of convex networks."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from theodolite.losses.contract import Reduction, smoothed_cross_entropy, widened


class ConvexGradient(nn.Module):
    """The map x ↦ ∇F(x) of a strongly convex F = softplus(a)·N(x) + softplus(b)·|x|²/2, N an input-convex network.

    Its Jacobian is symmetric with eigenvalues of at least softplus(b), so the map is one-to-one. The gradient is written
    out, so that it can be differentiated, batched and compiled like any layer.

    Args:
        size: of x.
        width: hidden units of N.
        depth: hidden layers of N.

    References:
        Amos et al. 2017, "Input Convex Neural Networks".
    """

    def __init__(self, size: int, *, width: int = 32, depth: int = 2) -> None:
        super().__init__()
        self.convexity = nn.Parameter(torch.tensor(0.0))
        self.identity = nn.Parameter(torch.tensor(math.log(math.e - 1)))  # softplus gives 1
        self.skips = nn.ParameterList(torch.randn(width, size) / math.sqrt(size) for _ in range(depth))
        self.shifts = nn.ParameterList(torch.zeros(width) for _ in range(depth))
        self.passes = nn.ParameterList(torch.randn(width, width) for _ in range(depth - 1))
        self.out = nn.Parameter(torch.randn(width))

    def forward(self, x: Float[Tensor, "*b k"]) -> Float[Tensor, "*b k"]:
        """Return the gradient at each row."""
        weights = [F.softplus(raw) / raw.shape[-1] for raw in self.passes]  # ≥ 0 keeps N convex
        direct = [x @ skip.T + shift for skip, shift in zip(self.skips, self.shifts, strict=True)]
        before = [direct[0]]
        for weight, straight in zip(weights, direct[1:], strict=True):
            before.append(F.softplus(before[-1]) @ weight.T + straight)
        slope = F.softplus(self.out) / len(self.out) * torch.sigmoid(before[-1])
        gradient = slope @ self.skips[-1]
        for k in range(len(weights) - 1, -1, -1):
            slope = (slope @ weights[k]) * torch.sigmoid(before[k])
            gradient = gradient + slope @ self.skips[k]
        moved: Tensor = F.softplus(self.convexity) * gradient + F.softplus(self.identity) * x
        return moved


class LegendreLink(nn.Module):
    """Negative log-likelihood through a learned invertible link: proper for every value of its parameters.

    Scores z ∈ R^{C−1} pass through blocks x ↦ ∇F(x); p = softmax([x, 0]). Train its parameters with the model's; with the
    convex networks switched off it is multinomial logistic loss.

    Args:
        classes: C.
        blocks: maps in a row.
        width: hidden units of each convex network.
        depth: their hidden layers.
        reduction: over samples.

    Example:
        >>> link = LegendreLink(3, blocks=1)
        >>> link(torch.zeros(4, 2), torch.tensor([0, 1, 2, 0])).shape
        torch.Size([])

    References:
        Lam et al. 2023, "LegendreTron: Uprising Proper Multiclass Loss Learning".
    """

    def __init__(
        self, classes: int, *, blocks: int = 2, width: int = 32, depth: int = 2, reduction: Reduction = "mean"
    ) -> None:
        super().__init__()
        self.reduction: Reduction = reduction
        self.blocks = nn.Sequential(*(ConvexGradient(classes - 1, width=width, depth=depth) for _ in range(blocks)))

    def forward(self, scores: Float[Tensor, "b k"], target: Int[Tensor, " b"]) -> Float[Tensor, "..."]:
        """Return the loss."""
        return smoothed_cross_entropy(
            self.logits(scores), target, weight=None, ignore_index=-100, label_smoothing=0.0, reduction=self.reduction
        )

    def logits(self, scores: Float[Tensor, "b k"]) -> Float[Tensor, "b c"]:
        """Return the linked scores with a 0 appended: their softmax is the prediction."""
        linked = self.blocks(widened(scores))
        return torch.cat([linked, torch.zeros_like(linked[:, :1])], 1)
