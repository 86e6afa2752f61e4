"""What products, convolutions and look-ups do to the marks of their operands."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from theodolite.landscapes.paths.matching.call import Call
from theodolite.landscapes.paths.matching.marks import Mark, Marks, support


def _product(call: Call, first: Tensor, second: Tensor) -> Marks:
    """first @ second: an elementwise product over (…, m, k, n), summed over k."""
    operands = [
        (first.unsqueeze(-1), tuple(np.expand_dims(mark, -1) for mark in call.marks_of(first))),
        (second.unsqueeze(-3), tuple(np.expand_dims(mark, -3) for mark in call.marks_of(second))),
    ]
    return call.marker.reduce(call.marker.meet(operands), [first.dim() - 1], keep=False)


def mm(call: Call) -> list[Marks]:
    """A matrix product, or one for each of a batch."""
    return [_product(call, call.args[0], call.args[1])]


def addmm(call: Call) -> list[Marks]:
    """A matrix product with a bias."""
    bias, first, second = call.args[:3]
    found = _product(call, first, second)
    shape = (*first.shape[:-1], second.shape[-1])
    product = torch.arange(torch.Size(shape).numel()).view(shape)  # taken to differ wherever it is not marked
    return [call.marker.meet([(product, found), (bias, call.marks_of(bias))])]


def convolution(call: Call) -> list[Marks]:
    """Axes of the kernel meet channels; those of its window stay where they are."""
    inputs, weight, bias = call.args[0], call.args[1], call.args[2]
    groups, transposed = call.get("groups", 1), call.get("transposed", False)
    kernel = {support(mark): mark for mark in call.marks_of(weight)}
    out, into = kernel.pop((int(transposed),), None), kernel.pop((1 - int(transposed),), None)
    channels = [mark for mark in call.marks_of(inputs) if support(mark) == (1,)]
    call.marker.fix(tuple(kernel.values()), given=True)
    call.marker.fix(tuple(mark for mark in call.marks_of(inputs) if support(mark) != (1,)))
    if groups == 1:
        _meet_channels(call, into, channels)
    elif groups == inputs.shape[1] and into is None:  # every channel by itself, which gives one or several
        _meet_channels(call, out, [mark.repeat(weight.shape[0] // groups, axis=1) for mark in channels])
    else:
        call.marker.fix(tuple(mark for mark in (out, into, *channels) if mark is not None))
    if out is None:
        return []
    for mark in call.marks_of(bias) if bias is not None else ():
        call.marker.units.unite(mark.ravel(), out.ravel())
    return [call.marker.meet([(weight.new_zeros(1), (as_channels(out, inputs.dim()),))])]


def _meet_channels(call: Call, kernel: Mark | None, channels: list[Mark]) -> None:
    """An axis of a kernel meets the channels of its inputs; one that meets none meets data, or a constant."""
    if kernel is None or not channels:
        call.marker.fix(tuple(mark for mark in (kernel, *channels) if mark is not None), given=True)
        return
    for mark in channels:
        call.marker.units.unite(kernel.ravel(), mark.ravel())


def as_channels(ids: Mark, rank: int) -> Mark:
    """A mark of channels in the shape of what has them."""
    return ids.reshape([-1 if axis == 1 else 1 for axis in range(rank)])


def embedding(call: Call) -> list[Marks]:
    """Rows are told apart by the indices that ask for them."""
    weight, indices = call.args[0], call.args[1]
    columns = tuple(mark for mark in call.marks_of(weight) if support(mark) == (1,))
    call.marker.fix(tuple(mark for mark in call.marks_of(weight) if support(mark) != (1,)), given=True)
    return [tuple(mark.reshape((1,) * indices.dim() + (-1,)) for mark in columns)]
