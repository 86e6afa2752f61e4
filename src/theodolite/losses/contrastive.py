"""Contrastive losses of two views: InfoNCE, CLIP, NT-Xent and SigLIP, dense or in tiles of bounded memory."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from theodolite.losses.contract import Reduction, reduced
from theodolite.losses.registry import loss, module_of
from theodolite.losses.tiles import at_full_precision, log_normalizers, softplus_sum, unit_rows

LOG_TEN = math.log(10.0)


@loss("views", coupled=True, temperature="(0, ∞)", tile="[1, ∞)")
def info_nce(
    u: Float[Tensor, "b k"],
    v: Float[Tensor, "b k"],
    *,
    temperature: float | Float[Tensor, ""] = 0.1,
    symmetric: bool = True,
    tile: int | None = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """−log softmax of each pair's cosine over its row (and column) of cosines, divided by the temperature.

    The gradient in the cosines is (p_ij − 1[i = j])/τ: its rows sum to 0, negatives share it by their softmax.
    Computed in float32 also under autocast. Equal embeddings give log b.

    Cost: b² k multiplications and, with a tile, b·tile numbers of memory; tiles are computed again in each backward pass.

    Args:
        u: first view.
        v: second view, row i the positive of u's row i.
        temperature: τ, a number or a learnable tensor.
        symmetric: average over both directions.
        tile: rows and columns at a time; None keeps the b × b matrix.
        reduction: over pairs.

    Returns:
        The reduced loss.

    Example:
        >>> info_nce(torch.eye(2), torch.eye(2), temperature=1.0)
        tensor(0.3133)

    References:
        van den Oord et al. 2018, "Representation Learning with Contrastive Predictive Coding"; Cheng et al. 2024,
        "Breaking the Memory Barrier: Near Infinite Batch Size Scaling for Contrastive Loss".
    """
    with at_full_precision(u):
        return reduced(_paired(unit_rows(u), unit_rows(v), 1 / temperature, symmetric, tile), reduction)


def _paired(u: Tensor, v: Tensor, scale: float | Tensor, symmetric: bool, tile: int | None) -> Tensor:
    if tile is None and not symmetric:
        return F.cross_entropy(scale * (u @ v.T), torch.arange(len(u), device=u.device), reduction="none")
    rows, columns = log_normalizers(u, v, scale, tile=tile)
    positive = scale * (u * v).sum(1)
    return (rows + columns) / 2 - positive if symmetric else rows - positive


InfoNCELoss = module_of(info_nce, "InfoNCELoss")


@loss("other", coupled=True, max_scale="(0, ∞)", tile="[1, ∞)")
def clip(
    image: Float[Tensor, "b k"],
    text: Float[Tensor, "b k"],
    log_scale: Float[Tensor, ""],
    *,
    max_scale: float = 100.0,
    tile: int | None = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """Symmetric InfoNCE with a learnable scale e^t of the cosines, held at ``max_scale`` or below.

    Start t at log(1/0.07). Above the bound t has no gradient: clamp the parameter itself after each step.

    Args:
        image: embeddings.
        text: embeddings, row i belongs to image i.
        log_scale: t.
        max_scale: bound of e^t.
        tile: as in :func:`info_nce`.
        reduction: over pairs.

    Returns:
        The reduced loss.

    Example:
        >>> clip(torch.eye(2), torch.eye(2), torch.tensor(0.0))
        tensor(0.3133)

    References:
        Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision".
    """
    with at_full_precision(image):
        scale = torch.exp(log_scale.to(unit_rows(image).dtype).clamp(max=math.log(max_scale)))
        return reduced(_paired(unit_rows(image), unit_rows(text), scale, True, tile), reduction)


CLIPLoss = module_of(clip, "CLIPLoss")


@loss("views", coupled=True, temperature="(0, ∞)", tile="[1, ∞)")
def nt_xent(
    u: Float[Tensor, "b k"],
    v: Float[Tensor, "b k"],
    *,
    temperature: float | Float[Tensor, ""] = 0.5,
    tile: int | None = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """InfoNCE among all 2b views, each against every other view but itself.

    Args:
        u: first view.
        v: second view, row i the positive of u's row i.
        temperature: τ.
        tile: as in :func:`info_nce`.
        reduction: over the 2b views.

    Returns:
        The reduced loss.

    Example:
        >>> nt_xent(torch.ones(2, 3), torch.ones(2, 3))
        tensor(1.0986)

    References:
        Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations".
    """
    with at_full_precision(u):
        scale = 1 / temperature
        every = torch.cat([unit_rows(u), unit_rows(v)])
        rows, _ = log_normalizers(every, every, scale, tile=tile, skip_diagonal=True)
        positive = scale * (every * every.roll(len(u), 0)).sum(1)
        return reduced(rows - positive, reduction)


NTXentLoss = module_of(nt_xent, "NTXentLoss")


@loss("views", log_scale="(−∞, ∞)", bias="(−∞, ∞)", tile="[1, ∞)")
def siglip(
    u: Float[Tensor, "b k"],
    v: Float[Tensor, "b k"],
    *,
    log_scale: float | Float[Tensor, ""] = LOG_TEN,
    bias: float | Float[Tensor, ""] = -10.0,
    tile: int | None = None,
) -> Float[Tensor, ""]:
    """Every pair a yes-or-no question: −(1/b) Σ_ij log σ(y_ij(e^t s_ij + c)), y = 1 on the diagonal, −1 elsewhere.

    Args:
        u: first view.
        v: second view, row i the positive of u's row i.
        log_scale: t, a number or a learnable tensor.
        bias: c, likewise.
        tile: as in :func:`info_nce`.

    Returns:
        Sum over all pairs, over b.

    Example:
        >>> siglip(torch.ones(1, 2), torch.ones(1, 2), log_scale=0.0, bias=0.0)
        tensor(0.3133)

    References:
        Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training".
    """
    with at_full_precision(u):
        a, b = unit_rows(u), unit_rows(v)
        scale = torch.exp(log_scale) if isinstance(log_scale, Tensor) else math.exp(log_scale)
        negatives = softplus_sum(a, b, scale, bias, tile=tile)
        # a positive pair was counted as a negative one: softplus(−x) − softplus(x) = −x
        return (negatives - (scale * (a * b).sum(1) + bias).sum()) / len(a)


SigLIPLoss = module_of(siglip, "SigLIPLoss")
