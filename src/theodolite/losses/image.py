"""Losses of images and boxes: multi-scale structural similarity, total variation, overlaps of boxes, topology."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from theodolite.losses.contract import Reduction, reduced, widened
from theodolite.losses.registry import loss, module_of

SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


@loss("other", span="(0, ∞)")
def ms_ssim(
    x: Float[Tensor, "b c h w"], y: Float[Tensor, "b c h w"], *, span: float = 1.0, reduction: Reduction = "mean"
) -> Float[Tensor, "..."]:
    """1 − multi-scale structural similarity: luminance at the coarsest scale, contrast and structure at all.

    An 11 × 11 Gaussian window (σ 1.5) at five scales; images too small for five use fewer with rescaled weights.
    Negative structure terms count as 0.

    Args:
        x: images of at least 11 × 11.
        y: images.
        span: largest value less the smallest.
        reduction: over images.

    Returns:
        The reduced loss.

    Raises:
        ValueError: if the images are smaller than the window.

    Example:
        >>> ms_ssim(torch.ones(1, 1, 16, 16), torch.ones(1, 1, 16, 16))
        tensor(0.)

    References:
        Wang et al. 2003, "Multi-scale structural similarity for image quality assessment".
    """
    side = min(x.shape[-2:])
    if side < 11:
        raise ValueError(f"Structural similarity needs images of at least 11 × 11. Found {tuple(x.shape[-2:])}.")
    levels = min(len(SCALES), 1 + int(math.log2(side / 11)))
    weights = [w / sum(SCALES[:levels]) for w in SCALES[:levels]]
    a, b = widened(x), widened(y)
    window = _gaussian(a)
    product = a.new_ones(len(a), a.shape[1])
    for level, weight in enumerate(weights):
        if level:
            a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
        luminance, structure = _similarities(a, b, window, span)
        term = structure * luminance if level == levels - 1 else structure
        product = product * _root(term.mean((2, 3)), weight)
    return reduced(1 - product.mean(1), reduction)


def _gaussian(like: Tensor) -> Float[Tensor, "1 1 11 11"]:
    offsets = torch.arange(-5, 6, dtype=like.dtype, device=like.device)
    line = torch.softmax(-(offsets**2) / (2 * 1.5**2), 0)
    return torch.outer(line, line)[None, None]


def _similarities(a: Tensor, b: Tensor, window: Tensor, span: float) -> tuple[Tensor, Tensor]:
    channels = a.shape[1]

    def local(image: Tensor) -> Tensor:
        return F.conv2d(image, window.expand(channels, 1, 11, 11), groups=channels)

    mean_a, mean_b = local(a), local(b)
    var_a, var_b = local(a * a) - mean_a**2, local(b * b) - mean_b**2
    covariance = local(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return luminance, (2 * covariance + c2) / (var_a + var_b + c2)


def _root(value: Tensor, exponent: float) -> Tensor:
    positive = value > 1e-8
    return torch.where(positive, torch.where(positive, value, 1.0) ** exponent, 0.0)


MSSSIMLoss = module_of(ms_ssim, "MSSSIMLoss")


@loss("other")
def total_variation(x: Float[Tensor, "b c h w"]) -> Float[Tensor, ""]:
    """Mean absolute difference of neighbouring pixels, along both axes.

    Args:
        x: images.

    Returns:
        The loss of the whole batch.

    Example:
        >>> total_variation(torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]]))
        tensor(1.)

    References:
        Rudin et al. 1992, "Nonlinear total variation based noise removal algorithms".
    """
    z = widened(x)
    return z.diff(dim=-1).abs().mean() + z.diff(dim=-2).abs().mean()


TotalVariationLoss = module_of(total_variation, "TotalVariationLoss")


def psnr(x: Float[Tensor, "*b"], y: Float[Tensor, "*b"], *, span: float = 1.0) -> Float[Tensor, ""]:
    """Return 10 log₁₀(span²/mean squared error), a score in decibels."""
    return 10 * torch.log10(span**2 / (widened(x) - widened(y)).square().mean())


@loss("other")
def box_overlap(
    boxes: Float[Tensor, "b 4"],
    target: Float[Tensor, "b 4"],
    *,
    kind: Literal["iou", "giou", "diou", "ciou"] = "giou",
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """1 − overlap of boxes (x₁, y₁, x₂, y₂), plus what keeps a gradient where they are apart.

    ``"giou"`` adds the empty share of the enclosing box, ``"diou"`` the squared distance of centres over the enclosing
    diagonal's square, ``"ciou"`` also a term for the aspect ratio, whose weight is held constant.

    Args:
        boxes: with x₁ < x₂ and y₁ < y₂.
        target: boxes.
        kind: which.
        reduction: over boxes.

    Returns:
        The reduced loss.

    Example:
        >>> box_overlap(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[0.5, 0.0, 1.5, 1.0]]))
        tensor(0.6667)

    References:
        Rezatofighi et al. 2019, "Generalized Intersection over Union: A Metric and A Loss for Bounding Box Regression";
        Zheng et al. 2020, "Distance-IoU Loss: Faster and Better Learning for Bounding Box Regression".
    """
    a, b = widened(boxes), widened(target)
    inner = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(1)
    size_a, size_b = a[:, 2:] - a[:, :2], b[:, 2:] - b[:, :2]
    union = size_a.prod(1) + size_b.prod(1) - inner
    outer = torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])
    values = 1 - inner / union
    if kind == "giou":
        values = values + 1 - union / outer.prod(1)
    elif kind in ("diou", "ciou"):
        centres = (a[:, :2] + a[:, 2:] - b[:, :2] - b[:, 2:]) / 2
        values = values + centres.square().sum(1) / outer.square().sum(1)
    if kind == "ciou":
        shapes = torch.arctan(size_b[:, 0] / size_b[:, 1]) - torch.arctan(size_a[:, 0] / size_a[:, 1])
        v = 4 / math.pi**2 * shapes.square()
        weight = v / (1 - inner / union + v).clamp(min=1e-12)
        values = values + weight.detach() * v
    return reduced(values, reduction)


BoxOverlapLoss = module_of(box_overlap, "BoxOverlapLoss")


@loss("other")
def topological_autoencoder(inputs: Float[Tensor, "b *d"], latent: Float[Tensor, "b k"]) -> Float[Tensor, ""]:
    """Keep the connected components of the inputs in the latent space: distances agree on both minimum spanning trees.

    ½|A^X[π_X] − A^Z[π_X]|² + ½|A^Z[π_Z] − A^X[π_Z]|², A distances over their largest, π the edges of the trees, which
    are the pairings of zero-dimensional persistence. The edges are held constant.

    Cost: b² distances and a spanning tree of each.

    Args:
        inputs: one a sample; constant in training, but differentiated if asked.
        latent: codes.

    Returns:
        The loss of the whole batch.

    Example:
        >>> topological_autoencoder(torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.0], [2.0], [6.0]]))
        tensor(0.)

    References:
        Moor et al. 2020, "Topological Autoencoders".
    """
    a, b = _relative_distances(widened(inputs).flatten(1)), _relative_distances(widened(latent))
    i, j = spanning_tree(a.detach()).unbind(1)
    k, m = spanning_tree(b.detach()).unbind(1)
    return 0.5 * (a[i, j] - b[i, j]).square().sum() + 0.5 * (a[k, m] - b[k, m]).square().sum()


def _relative_distances(x: Tensor) -> Tensor:
    squared = (x[:, None] - x[None]).square().sum(2)
    off = squared > 0
    distance = torch.where(off, torch.where(off, squared, 1.0).sqrt(), 0.0)
    return distance / distance.max().clamp(min=1e-12)


def spanning_tree(distances: Float[Tensor, "n n"]) -> Int[Tensor, "m 2"]:
    """Return the edges of a minimum spanning tree, by Prim's algorithm."""
    n = len(distances)
    nearest, parent = distances[0].clone(), torch.zeros(n, dtype=torch.long, device=distances.device)
    nearest[0] = math.inf
    reached = torch.zeros(n, dtype=torch.bool, device=distances.device)
    reached[0] = True
    edges = []
    for _ in range(n - 1):
        new = int(torch.where(reached, math.inf, nearest).argmin())
        edges.append((int(parent[new]), new))
        reached[new] = True
        closer = distances[new] < nearest
        nearest, parent = torch.where(closer, distances[new], nearest), torch.where(closer, new, parent)
    return torch.tensor(edges, dtype=torch.long, device=distances.device).reshape(-1, 2)


TopologicalAutoencoderLoss = module_of(topological_autoencoder, "TopologicalAutoencoderLoss")
