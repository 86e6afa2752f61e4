"""Convolutions as linear maps of unfolded inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from theodolite.operators.capture.factored import Factored
from theodolite.operators.capture.layouts import Layout
from theodolite.operators.capture.rows import Rows
from theodolite.operators.capture.saved import Saved
from theodolite.operators.capture.site import Plan, Recipe
from theodolite.operators.capture.use import Block, Use

# Bytes of unfolded inputs above which gradients are materialised for a few samples at a time.
UNFOLDED = 16 * 2**20


def convolution(rank: int) -> Callable[..., Plan]:
    """The handler of a convolution over ``rank`` dimensions."""

    def handler(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Plan:
        windows = _windows(rank, weight, stride=stride, padding=padding, dilation=dilation)
        return _plan(rank, input, weight, bias, windows, groups, transposed=False)

    return handler


def transposed_convolution(rank: int) -> Callable[..., Plan]:
    """The handler of a transposed convolution: an ordinary one from outputs to inputs, so that the two change places.

    What an output padding adds beyond the last full window has no weight in the sum.
    """

    def handler(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        dilation: Any = 1,
    ) -> Plan:
        windows = _windows(rank, weight, stride=stride, padding=padding, dilation=dilation)
        return _plan(rank, input, weight, bias, windows, groups, transposed=True)

    return handler


def _windows(rank: int, weight: Tensor, *, stride: Any, padding: Any, dilation: Any) -> Callable[[Tensor], Tensor]:
    """What turns images into their windows under a kernel, (images, positions, channels × kernel)."""
    kernel, dilations = tuple(weight.shape[2:]), _tuple(dilation, rank)
    sides = _sides(padding, kernel, dilations)
    return lambda images: _unfolded(F.pad(images, sides), kernel, _tuple(stride, rank), dilations)


def _plan(
    rank: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    windows: Callable[[Tensor], Tensor],
    groups: int,
    *,
    transposed: bool,
) -> Plan:
    if input.dim() != rank + 2:
        raise TypeError
    saved = Saved(input)

    def recipe(block: Block, site: int, D: Tensor, layout: Layout) -> Use:
        inputs, outputs = layout.fold(saved.tensor, rank + 1), layout.fold(D, rank + 1)
        unfolded, other = (outputs, inputs) if transposed else (inputs, outputs)
        return _use(block, site, unfolded, other, windows, groups)

    recipes: dict[int, Recipe] = {id(weight): recipe}
    if bias is not None:
        recipes[id(bias)] = _bias
    return Plan(recipes, trailing=rank + 1)


def _bias(block: Block, site: int, D: Tensor, layout: Layout) -> Use:
    folded = layout.fold(D, D.dim() - 1)
    return Rows(block, "shift", site, folded.sum([1, *range(3, folded.dim())]))


def _use(
    block: Block, site: int, inputs: Tensor, outputs: Tensor, unfold: Callable[[Tensor], Tensor], groups: int
) -> Use:
    """Outer products of unfolded inputs and outputs, both (samples, images, channels, …)."""
    samples, _images = inputs.shape[:2]
    D = outputs.flatten(3).transpose(2, 3).reshape(samples, -1, outputs.shape[2])
    size = D.shape[1] * block.columns * groups * D.element_size()
    if groups == 1 and samples * size <= UNFOLDED:
        A = unfold(inputs.flatten(0, 1)).reshape(samples, D.shape[1], -1)
        return Factored(block, "convolution", site, A=A, D=D)
    step = max(1, UNFOLDED // max(1, size))
    parts = []
    for start in range(0, samples, step):
        piece = slice(start, start + step)
        A = unfold(inputs[piece].flatten(0, 1)).reshape(-1, D.shape[1], groups, block.columns)
        parts.append(torch.einsum("btgl,btgk->bglk", D[piece].unflatten(2, (groups, -1)), A))
    return Rows(block, "convolution", site, torch.cat(parts))


def _unfolded(images: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """Windows of padded images, (images, positions, channels × kernel)."""
    windows = images
    for axis, (size, step, spread) in enumerate(zip(kernel, stride, dilation, strict=True), start=2):
        windows = windows.unfold(axis, (size - 1) * spread + 1, step)[..., ::spread]
    rank = len(kernel)
    order = [0, *range(2, 2 + rank), 1, *range(2 + rank, 2 + 2 * rank)]
    return windows.permute(order).flatten(1 + rank).flatten(1, rank)


def _sides(padding: Any, kernel: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """Padding on both sides of every dimension, the last dimension first."""
    rank = len(kernel)
    if padding == "valid":
        return [0] * (2 * rank)
    if padding == "same":
        totals = [spread * (size - 1) for size, spread in zip(kernel, dilation, strict=True)]
        return [side for total in reversed(totals) for side in (total // 2, total - total // 2)]
    return [side for width in reversed(_tuple(padding, rank)) for side in (width, width)]


def _tuple(value: Any, rank: int) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * rank
    found = tuple(value)
    return found * rank if len(found) == 1 else found
