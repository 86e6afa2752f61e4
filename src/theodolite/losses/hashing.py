"""Deep hashing: features trained towards a binary code for each class."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from theodolite.losses.contract import Reduction, reduced
from theodolite.losses.registry import loss, module_of
from theodolite.losses.tiles import unit_rows


@loss("other", scale="(0, ∞)", margin="(−∞, ∞)")
def orthohash(
    features: Float[Tensor, "b k"],
    codes: Float[Tensor, "c k"],
    target: Int[Tensor, " b"] | Float[Tensor, "b c"],
    *,
    scale: float = 8.0,
    margin: float = 0.2,
    kind: Literal["cosine", "angle"] = "cosine",
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """Deep hashing in one loss: cross-entropy of the cosines to the classes' binary codes, with a margin.

    Args:
        features: before the sign, after a BatchNorm without affine part, which balances the bits over a batch.
        codes: of ±1, e.g. :func:`hadamard_codes`.
        target: class indices, or 0 and 1 for several labels a sample, which then share the target and the margin.
        scale: s.
        margin: taken from the cosine of the true code, or added to its angle.
        kind: where the margin acts.
        reduction: over samples.

    Returns:
        The reduced loss.

    Example:
        >>> orthohash(torch.ones(1, 2), hadamard_codes(2, 2), torch.tensor([0]), margin=0.0)
        tensor(0.0003)

    References:
        Hoe et al. 2021, "One Loss for All: Deep Hashing with a Single Cosine Similarity based Learning Objective".
    """
    cosines = unit_rows(features) @ unit_rows(codes).T
    wanted = target.to(cosines.dtype) if target.is_floating_point() else F.one_hot(target, len(codes)).to(cosines.dtype)
    held = cosines.clamp(-1 + 1e-6, 1 - 1e-6)  # arccos has an infinite slope at ±1
    moved = cosines - margin if kind == "cosine" else torch.cos(torch.arccos(held) + margin)
    log_p = F.log_softmax(scale * torch.where(wanted > 0, moved, cosines), 1)
    shares = wanted / wanted.sum(1, keepdim=True).clamp(min=1.0)
    return reduced(-(shares * log_p).sum(1), reduction)


OrthoHashLoss = module_of(orthohash, "OrthoHashLoss")


def hadamard_codes(classes: int, bits: int) -> Float[Tensor, "c k"]:
    """Return orthogonal codes of ±1, rows of a Hadamard matrix of size 2^m; their first bit is the same in all.

    Raises:
        ValueError: unless bits is a power of two, at least the number of classes.
    """
    if bits < classes or bits & (bits - 1):
        raise ValueError(
            f"Hadamard codes need a power of two of bits, at least one a class. Found {bits} bits for {classes} classes; "
            f"draw random signs instead."
        )
    matrix = torch.ones(1, 1)
    while len(matrix) < bits:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix[:classes]
