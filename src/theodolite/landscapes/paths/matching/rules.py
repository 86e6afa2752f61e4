"""What each operation does to the marks of its operands."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree

from theodolite.landscapes.paths.matching.call import Call, Rule, tensors_of
from theodolite.landscapes.paths.matching.contractions import addmm, as_channels, convolution, embedding, mm
from theodolite.landscapes.paths.matching.marks import Mark, Marks, support
from theodolite.landscapes.paths.matching.units import FIXED


def rule_of(call: Call) -> Rule | None:
    """The rule for an operation, None where there is none."""
    if call.name in _RULES:
        return _RULES[call.name]
    return _elementwise if torch.Tag.pointwise in call.func.tags else None


def _elementwise(call: Call) -> list[Marks]:
    return [call.marker.meet([(tensor, call.marks_of(tensor)) for tensor in tensors_of((call.args, call.kwargs))])]


def _same(call: Call) -> list[Marks]:
    """A copy, or an assignment of the last tensor to the first."""
    *_, source = tensors_of(call.args)
    target = call.args[0]
    marks = call.marks_of(source)
    return [tuple(mark.reshape((1,) * (target.dim() - mark.ndim) + mark.shape) for mark in marks)]


def _unmarked(call: Call) -> list[Marks]:
    """A constant in the shape of its operand."""
    return []


def _positional(call: Call) -> list[Marks]:
    """Entries are told apart by their places, as classes are by a target."""
    for tensor in tensors_of((call.args, call.kwargs)):
        call.marker.fix(call.marks_of(tensor), given=True)
    return []


# ------------------------------------------------------------------------------------------------------- moving entries


def _moved(call: Call) -> list[Marks]:
    """One tensor whose entries are moved: the operation itself is asked where they go."""
    tensor, marks = call.args[0], call.marks_of(call.args[0])
    indices = [index for index in tensors_of((call.args[1:], call.kwargs)) if call.marks_of(index)]
    if indices:
        call.marker.fix(tuple(mark for index in indices for mark in call.marks_of(index)) + marks)
        return []
    args = _pytree.tree_map(lambda leaf: leaf.cpu() if isinstance(leaf, Tensor) else leaf, call.args[1:])
    if call.name == "constant_pad_nd":
        args = (args[0], FIXED)
    # What a view is of memory, entries spread over a tensor have to be copied for.
    func = torch.reshape if call.name in ("view", "_unsafe_view") else call.func
    outputs = [list(tensors_of(func(_spread(mark, tensor.shape), *args, **call.kwargs))) for mark in marks]
    return [call.marker.move(parts) for parts in zip(*outputs, strict=True)]


def _spread(mark: Mark, shape: torch.Size) -> Tensor:
    return torch.from_numpy(mark.copy()).expand(shape)


def _cat(call: Call) -> list[Marks]:
    tensors = [tensor for tensor in call.args[0] if tensor.dim() > 1 or tensor.numel()]
    axis = call.get("dim", 0) % tensors[0].dim()
    return [_joined(call, tensors, [call.marks_of(tensor) for tensor in tensors], axis)]


def _stack(call: Call) -> list[Marks]:
    tensors = list(call.args[0])
    axis = call.get("dim", 0) % (tensors[0].dim() + 1)
    marks = [tuple(np.expand_dims(mark, axis) for mark in call.marks_of(tensor)) for tensor in tensors]
    return [_joined(call, [tensor.unsqueeze(axis) for tensor in tensors], marks, axis)]


def _joined(call: Call, tensors: list[Tensor], marks: list[Marks], axis: int) -> Marks:
    """Along the joined axis marks follow one another; along all others they meet, as what comes later treats them alike."""
    along = [[mark for mark in each if axis in support(mark)] for each in marks]
    across = [tuple(mark for mark in each if axis not in support(mark)) for each in marks]
    operands = [(tensor.narrow(axis, 0, 1), each) for tensor, each in zip(tensors, across, strict=True)]
    met = call.marker.meet(operands) if any(across) else ()
    if not any(along):
        return met
    if any(len(each) > 1 for each in along):
        call.marker.fix(tuple(mark for each in along for mark in each))
        return met
    ids = [
        each[0] if each else np.full((1,) * tensor.dim(), FIXED) for tensor, each in zip(tensors, along, strict=True)
    ]
    parts = [_spread(mark, tensor.shape) for mark, tensor in zip(ids, tensors, strict=True)]
    return met + call.marker.move([torch.cat(parts, dim=axis)])


# --------------------------------------------------------------------------------------- sums, softmax, norms, pooling


def _reduced(call: Call) -> list[Marks]:
    tensor = call.args[0]
    dims = call.get("dim")
    dims = [dims] if isinstance(dims, int) else dims
    axes = [dim % tensor.dim() for dim in dims] if dims else list(range(tensor.dim()))
    keep = bool(call.get("keepdim", False)) and bool(dims)
    return [call.marker.reduce(call.marks_of(tensor), axes, keep=keep)] * 2


def _softmax(call: Call) -> list[Marks]:
    tensor = call.args[0]
    return [call.marker.normalise(call.marks_of(tensor), [call.get("dim") % tensor.dim()])]


def _layer_norm(call: Call) -> list[Marks]:
    tensor, shape = call.args[0], call.args[1]
    axes = range(tensor.dim() - len(shape), tensor.dim())
    marks = call.marker.normalise(call.marks_of(tensor), list(axes))
    affine = [value for value in (call.get("weight"), call.get("bias")) if value is not None]
    return [call.marker.meet([(tensor, marks), *((value, call.marks_of(value)) for value in affine)])]


def _batch_norm(call: Call) -> list[Marks]:
    tensor = call.args[0]
    rank = tensor.dim()
    operands = [(tensor, call.marks_of(tensor))]
    for value in call.args[1:5]:
        if isinstance(value, Tensor):
            shaped = value.reshape([-1 if axis == 1 else 1 for axis in range(rank)])
            operands.append((shaped, tuple(as_channels(mark, rank) for mark in call.marks_of(value))))
    return [call.marker.meet(operands)]


def _group_norm(call: Call) -> list[Marks]:
    tensor, groups = call.args[0], call.get("group")
    channels = [mark for mark in call.marks_of(tensor) if support(mark) == (1,)]
    call.marker.fix(tuple(mark for mark in call.marks_of(tensor) if support(mark) != (1,)))
    if 1 < groups < tensor.shape[1]:
        for mark in channels:
            call.marker.units.sum_rows(mark.reshape(groups, -1))
    operands = [(tensor, tuple(channels))]
    for value in (call.get("weight"), call.get("bias")):
        if value is not None:
            marks = tuple(as_channels(mark, tensor.dim()) for mark in call.marks_of(value))
            operands.append((value.reshape([-1 if axis == 1 else 1 for axis in range(tensor.dim())]), marks))
    return [call.marker.meet(operands)]


def _spatial(axes: int) -> Rule:
    """Pooling and resizing along the last axes."""

    def rule(call: Call) -> list[Marks]:
        tensor = call.args[0]
        first = tensor.dim() - axes
        apart = tuple(mark for mark in call.marks_of(tensor) if all(axis < first for axis in support(mark)))
        call.marker.fix(tuple(mark for mark in call.marks_of(tensor) if any(axis >= first for axis in support(mark))))
        return [call.marker.normalise(apart, [])] * 2

    return rule


def _named(rule: Rule, names: str) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


_MOVES = """view _unsafe_view reshape _reshape_alias t transpose permute unsqueeze squeeze expand slice select narrow split
    split_with_sizes unsafe_split unsafe_split_with_sizes unsafe_chunk chunk unbind repeat repeat_interleave flip roll index_select
    index constant_pad_nd movedim diagonal unfold pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle"""
_SUMS = """mean sum amax amin var std prod logsumexp max min linalg_vector_norm norm any all var_mean std_mean"""
_CONSTANTS = """zeros_like ones_like full_like empty_like rand_like randn_like new_zeros new_ones new_full new_empty
    _local_scalar_dense sym_size is_same_size"""

_RULES: dict[str, Rule] = {
    **_named(_moved, _MOVES),
    **_named(_cat, "cat"),
    **_named(_stack, "stack"),
    **_named(_same, "clone detach alias _to_copy contiguous lift_fresh copy"),
    **_named(_unmarked, _CONSTANTS),
    **_named(_reduced, _SUMS),
    **_named(_softmax, "_softmax _log_softmax _safe_softmax softmax log_softmax"),
    **_named(_elementwise, "masked_fill where gelu silu relu leaky_relu threshold hardtanh clamp lerp addcmul addcdiv"),
    **_named(_positional, "nll_loss_forward nll_loss2d_forward"),
    **_named(mm, "mm bmm"),
    **_named(addmm, "addmm baddbmm"),
    **_named(convolution, "convolution _convolution"),
    **_named(embedding, "embedding"),
    **_named(_layer_norm, "native_layer_norm _fused_rms_norm"),
    **_named(
        _batch_norm, "native_batch_norm cudnn_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training"
    ),
    **_named(_batch_norm, "_batch_norm_with_update _batch_norm_no_update miopen_batch_norm"),
    **_named(_group_norm, "native_group_norm"),
    **_named(
        _spatial(1), "max_pool1d_with_indices avg_pool1d _adaptive_avg_pool1d upsample_nearest1d upsample_linear1d"
    ),
    **_named(
        _spatial(2), "max_pool2d_with_indices avg_pool2d _adaptive_avg_pool2d adaptive_max_pool2d upsample_nearest2d"
    ),
    **_named(_spatial(2), "upsample_bilinear2d upsample_bicubic2d reflection_pad2d replication_pad2d"),
    **_named(
        _spatial(3), "max_pool3d_with_indices avg_pool3d _adaptive_avg_pool3d adaptive_max_pool3d upsample_nearest3d"
    ),
}
