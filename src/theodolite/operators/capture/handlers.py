"""What each operation does with its parameters: recipes for the per-sample gradients."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from theodolite.operators.capture.convolutions import convolution, transposed_convolution
from theodolite.operators.capture.factored import Factored
from theodolite.operators.capture.layouts import Layout
from theodolite.operators.capture.lookup import Lookup
from theodolite.operators.capture.pointwise import broadcast, replayed
from theodolite.operators.capture.rows import Rows
from theodolite.operators.capture.saved import Saved
from theodolite.operators.capture.site import Plan, Recipe
from theodolite.operators.capture.use import Block, Use

Handler = Callable[..., Plan | None]


def plan_for(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], parametric: list[Tensor]) -> Plan | None:
    """How to get per-sample gradients at one call, None if only a loop over samples can."""
    handler = HANDLERS.get(func)
    wanted = {id(tensor) for tensor in parametric}
    if handler is not None:
        try:
            plan = handler(*args, **kwargs)
        except TypeError:  # called in a form that the handler does not know
            plan = None
        if plan is not None and wanted <= plan.recipes.keys():
            return plan
    return replayed(func, args, kwargs, parametric)


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Plan:
    if weight.dim() != 2:
        raise TypeError
    recipes = {id(weight): _outer(input, transposed=False)}
    if bias is not None:
        recipes[id(bias)] = _summed(1)
    return Plan(recipes, trailing=1)


def _addmm(input: Tensor, mat1: Tensor, mat2: Tensor) -> Plan:
    if input.dim() != 1:
        raise TypeError
    return Plan({id(mat2): _outer(mat1, transposed=True), id(input): _summed(1)}, trailing=1)


def _matmul(input: Tensor, other: Tensor) -> Plan:
    if other.dim() != 2 or input.dim() < 2:
        raise TypeError
    return Plan({id(other): _outer(input, transposed=True)}, trailing=1)


def _embedding(
    weight: Tensor, indices: Tensor, padding_idx: int = -1, scale_grad_by_freq: bool = False, sparse: bool = False
) -> Plan:
    if scale_grad_by_freq or sparse:
        raise TypeError

    def recipe(block: Block, site: int, D: Tensor, layout: Layout) -> Use:
        ids = layout.fold(indices.unsqueeze(-1), 1).squeeze(-1)
        gradients = layout.fold(D, 1)
        if padding_idx >= 0:
            gradients = gradients * (ids != padding_idx).unsqueeze(-1)
        return Lookup(block, site, ids=ids, D=gradients)

    return Plan({id(weight): recipe}, trailing=1)


def _outer(input: Tensor, *, transposed: bool) -> Recipe:
    saved = Saved(input)

    def recipe(block: Block, site: int, D: Tensor, layout: Layout) -> Use:
        return Factored(
            block, "linear", site, A=layout.fold(saved.tensor, 1), D=layout.fold(D, 1), transposed=transposed
        )

    return recipe


def _summed(trailing: int, *, channels_first: bool = False) -> Recipe:
    """A bias: output gradients summed over positions."""

    def recipe(block: Block, site: int, D: Tensor, layout: Layout) -> Use:
        folded = layout.fold(D, trailing)
        return Rows(block, "shift", site, _onto_channels(folded) if channels_first else folded.sum(1))

    return recipe


def _onto_channels(folded: Tensor) -> Tensor:
    """(samples, positions, channels, …) summed over all but samples and channels."""
    return folded.sum([1, *range(3, folded.dim())])


def _normalised(normalise: Callable[[Tensor], Tensor], input: Tensor, trailing: int, *, channels_first: bool) -> Recipe:
    """The scale of a norm layer: output gradients times the normalised input, which is computed again."""
    saved = Saved(input)

    def recipe(block: Block, site: int, D: Tensor, layout: Layout) -> Use:
        folded = layout.fold(D * normalise(saved.tensor), trailing)
        return Rows(block, "scale", site, _onto_channels(folded) if channels_first else folded.sum(1))

    return recipe


def _norm_plan(
    normalise: Callable[[Tensor], Tensor],
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    trailing: int,
    channels_first: bool,
) -> Plan:
    recipes: dict[int, Recipe] = {}
    if weight is not None:
        recipes[id(weight)] = _normalised(normalise, input, trailing, channels_first=channels_first)
    if bias is not None:
        recipes[id(bias)] = _summed(trailing, channels_first=channels_first)
    return Plan(recipes, trailing)


def _layer_norm(
    input: Tensor,
    normalized_shape: list[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Plan:
    shape = list(normalized_shape)
    normalise = partial(F.layer_norm, normalized_shape=shape, eps=eps)
    return _norm_plan(normalise, input, weight, bias, trailing=len(shape), channels_first=False)


def _rms_norm(
    input: Tensor, normalized_shape: list[int], weight: Tensor | None = None, eps: float | None = None
) -> Plan:
    shape = list(normalized_shape)
    normalise = partial(F.rms_norm, normalized_shape=shape, eps=eps)
    return _norm_plan(normalise, input, weight, None, trailing=len(shape), channels_first=False)


def _group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Plan:
    normalise = partial(F.group_norm, num_groups=num_groups, eps=eps)
    return _norm_plan(normalise, input, weight, bias, trailing=input.dim() - 1, channels_first=True)


def _batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Plan | None:
    if training:
        return None
    normalise = partial(F.batch_norm, running_mean=running_mean, running_var=running_var, eps=eps)
    return _norm_plan(normalise, input, weight, bias, trailing=input.dim() - 1, channels_first=True)


def _add(input: Any, other: Any, *, alpha: float = 1) -> Plan:
    recipes: dict[int, Recipe] = {}
    if isinstance(input, Tensor):
        recipes[id(input)] = broadcast(1.0)
    if isinstance(other, Tensor):
        recipes[id(other)] = broadcast(float(alpha))
    return Plan(recipes, trailing=0)


def _add_(input: Tensor, other: Any, *, alpha: float = 1) -> Plan:
    return Plan({id(other): broadcast(float(alpha))}, trailing=0)


def _mul(input: Any, other: Any) -> Plan:
    if not (isinstance(input, Tensor) and isinstance(other, Tensor)) or input is other:
        raise TypeError
    return Plan({id(input): broadcast(Saved(other)), id(other): broadcast(Saved(input))}, trailing=0)


HANDLERS: dict[Any, Handler] = {
    F.linear: _linear,
    torch.addmm: _addmm,
    torch.mm: _matmul,
    torch.matmul: _matmul,
    torch.Tensor.mm: _matmul,
    torch.Tensor.matmul: _matmul,
    torch.Tensor.__matmul__: _matmul,
    torch.embedding: _embedding,
    torch.layer_norm: _layer_norm,
    torch.rms_norm: _rms_norm,
    torch.group_norm: _group_norm,
    torch.batch_norm: _batch_norm,
    torch.conv1d: convolution(1),
    torch.conv2d: convolution(2),
    torch.conv3d: convolution(3),
    torch.conv_transpose1d: transposed_convolution(1),
    torch.conv_transpose2d: transposed_convolution(2),
    torch.conv_transpose3d: transposed_convolution(3),
    **dict.fromkeys((torch.add, torch.Tensor.add, torch.Tensor.__add__, torch.Tensor.__radd__), _add),
    **dict.fromkeys((torch.Tensor.add_, torch.Tensor.__iadd__), _add_),
    **dict.fromkeys((torch.mul, torch.Tensor.mul, torch.Tensor.__mul__, torch.Tensor.__rmul__), _mul),
}
