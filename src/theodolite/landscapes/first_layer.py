"""A first layer is linear in its parameters: its outputs at θ and along every direction are kept, and added up at a point."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from theodolite.problem import Problem

# By exact type: a subclass, as of a parametrised layer, may compute anything.
LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)
Values = Mapping[str, Tensor | None]


@final
class FirstLayer:
    """f(x; θ + Σ a·d) = f(x; θ) + Σ a·f(x; d) for a layer whose inputs no displacement reaches.

    A point then costs an addition of outputs instead of the layer, and its weights are not written. That nothing else uses them
    is for the caller to see, who compares a few points with and without it.

    Args:
        module: the layer.
        parts: its parameters at θ, then along every direction.
        written: for each selected parameter whether it is still to be written at every point.
    """

    def __init__(self, module: nn.Module, parts: Sequence[Values], written: Sequence[bool]) -> None:
        self.module, self.parts, self.written = module, parts, tuple(written)
        self._kept: dict[int, list[Tensor]] = {}

    @contextmanager
    def standing_in(self, chunk: int, position: Sequence[float]) -> Iterator[None]:
        """The first call of the layer gives its output at a position; any other computes."""
        forward, called = self.module.forward, False

        def once(input: Tensor) -> Any:  # the name by which torch.nn takes it
            nonlocal called
            if called:
                return forward(input)
            called = True
            outputs = self._outputs(chunk, input)
            total = outputs[0].clone()
            for output, scale in zip(outputs[1:], position, strict=True):
                total.add_(output, alpha=scale)
            return total

        self.module.forward = once
        try:
            yield
        finally:
            self.module.__dict__.pop("forward", None)

    @property
    def nbytes(self) -> int:
        """What the outputs take that are kept so far."""
        return sum(output.nbytes for outputs in self._kept.values() for output in outputs)

    def _outputs(self, chunk: int, inputs: Tensor) -> list[Tensor]:
        if chunk not in self._kept:
            self._kept[chunk] = [_applied(self.module, inputs, values) for values in self.parts]
        return self._kept[chunk]


def first_layer(problem: Problem, axes: Sequence[Sequence[Tensor]]) -> FirstLayer | None:
    """The layer that the model enters before any other that owns a displaced parameter, None where it is not linear.

    Cost: one forward pass of the first chunk.

    Args:
        problem: its model is called once.
        axes: directions, cut into parameters.
    """
    moves = [any(bool(part.any()) for part in parts) for parts in zip(*axes, strict=True)]
    selected = problem.parameters
    displaced = {id(parameter) for parameter, moved in zip(selected.values(), moves, strict=True) if moved}
    owners = [
        module
        for module in problem.model.modules()
        if any(id(parameter) in displaced for parameter in module._parameters.values())
    ]
    module = _entered_first(problem, owners)
    if type(module) not in LINEAR or "forward" in module.__dict__ or getattr(module, "max_norm", None) is not None:
        return None
    own = {id(parameter): name for name, parameter in module._parameters.items() if parameter is not None}
    elsewhere = {
        id(parameter)
        for other in problem.model.modules()
        if other is not module
        for parameter in other._parameters.values()
    }
    places = {own[id(parameter)]: place for place, parameter in enumerate(selected.values()) if id(parameter) in own}
    leaves = [leaf.detach() for leaf in problem.point().leaves]
    at = {id(parameter): problem.point().constants.get(name) for name, parameter in problem.model.named_parameters()}
    fixed = {name: None if parameter is None else at[id(parameter)] for name, parameter in module._parameters.items()}
    base = fixed | {name: leaves[place] for name, place in places.items()}
    nothing = {name: None if value is None else torch.zeros_like(value) for name, value in base.items()}
    parts = [base, *(nothing | {name: axis[place] for name, place in places.items()} for axis in axes)]
    written = [id(parameter) not in own or id(parameter) in elsewhere for parameter in selected.values()]
    return FirstLayer(module, parts, written)


def _entered_first(problem: Problem, owners: Sequence[nn.Module]) -> nn.Module:
    entered: list[nn.Module] = []
    handles = [owner.register_forward_pre_hook(lambda module, _: entered.append(module)) for owner in owners]
    try:
        problem.evaluate(problem.first_chunk(), problem.point(), grad=False)
    finally:
        for handle in handles:
            handle.remove()
    return entered[0] if entered else problem.model


def _applied(module: nn.Module, inputs: Tensor, values: Values) -> Tensor:
    weight, bias = cast(Tensor, values["weight"]), values.get("bias")
    if isinstance(module, nn.Linear):
        return F.linear(inputs, weight, bias)
    if isinstance(module, nn.Embedding):
        return F.embedding(inputs, weight)
    found: Tensor = cast(Any, module)._conv_forward(inputs, weight, bias)
    return found
