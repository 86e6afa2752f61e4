"""Which part of which parameter an operation reads, and gradients of what was computed from parameters before."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from theodolite.operators.capture.factored import Factored
from theodolite.operators.capture.layouts import Layout
from theodolite.operators.capture.rows import Rows
from theodolite.operators.capture.site import Operand
from theodolite.operators.capture.use import Block, Use, whole_block


class Parameters:
    """The selected parameters of a pass.

    Args:
        names: in the order of the problem.
        tensors: the leaves.

    Attributes:
        names: by the identity of the tensor.
    """

    def __init__(self, names: Sequence[str], tensors: Sequence[Tensor]) -> None:
        self.tensors = tuple(tensors)
        self.names = {id(tensor): name for name, tensor in zip(names, tensors, strict=True)}


def uses_of(operand: Operand, site: int, D: Tensor, layout: Layout, parameters: Parameters) -> list[Use]:
    """The uses of parameters behind one operand: itself, the parameter it views, or all that it was computed from."""
    block = block_of(operand.tensor, parameters)
    if block is not None:
        use = operand.recipe(block, site, D, layout)
        return [_rows_first(use)]
    seeming = whole_block("", tuple(operand.tensor.shape))
    use = operand.recipe(seeming, site, D, layout)
    return pulled_back(operand.tensor, use.materialise(), site, parameters)


def block_of(tensor: Tensor, parameters: Parameters) -> Block | None:
    """The part of a parameter that a tensor is, None if it was computed or reads an entry twice."""
    base = tensor if tensor._base is None else tensor._base
    name = parameters.names.get(id(base))
    if name is None or (0 in tensor.stride() and tensor.numel() > 1) or not base.is_contiguous():
        return None
    offset = int(tensor.storage_offset() - base.storage_offset())
    return Block(name, tuple(tensor.shape), tensor.stride(), offset, tuple(base.shape))


def sources(tensor: Tensor, parameters: Parameters) -> set[str]:
    """Names of the parameters that a tensor is, views or was computed from."""
    block = block_of(tensor, parameters)
    if block is not None:
        return {block.parameter}
    ones = torch.ones_like(tensor)
    found = torch.autograd.grad(tensor, list(parameters.tensors), ones, retain_graph=True, allow_unused=True)
    return {name for name, part in zip(parameters.names.values(), found, strict=True) if part is not None}


def pulled_back(derived: Tensor, rows: Tensor, site: int, parameters: Parameters) -> list[Use]:
    """Per-sample gradients of a computed tensor as gradients of the parameters that it was computed from.

    Cost: one backward pass through that computation for each sample.
    """
    tensors = parameters.tensors
    per_sample = [torch.autograd.grad(derived, tensors, row, retain_graph=True, allow_unused=True) for row in rows]
    found: list[Use] = []
    for name, tensor, parts in zip(parameters.names.values(), tensors, zip(*per_sample, strict=True), strict=True):
        known = [part for part in parts if part is not None]
        if known:
            block = whole_block(name, tuple(tensor.shape))
            found.append(Rows(block, "other", site, torch.stack(known)))
    return found


def _rows_first(use: Use) -> Use:
    """The transpose of a weight that is read transposed, so that both readings have one block."""
    block = use.block
    if not isinstance(use, Factored) or len(block.shape) != 2 or block.strides[0] >= block.strides[1]:
        return use
    turned = Block(block.parameter, block.shape[::-1], block.strides[::-1], block.offset, block.whole)
    return Factored(turned, use.kind, use.site, A=use.A, D=use.D, transposed=not use.transposed)
