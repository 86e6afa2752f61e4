"""Modules that run before the first displaced parameter give the same output at every point: it is kept, not computed again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar, final

from torch import Tensor, nn

from theodolite.problem.data import tensors_of

T = TypeVar("T")


@dataclass
class _Kept:
    """Outputs of one chunk: each module with those of its calls in their order."""

    outputs: dict[nn.Module, list[Any]] = field(default_factory=dict)

    @property
    def tensors(self) -> list[Tensor]:
        return [tensor for calls in self.outputs.values() for output in calls for tensor in tensors_of(output)]


@final
class Prefix:
    """Outputs of the modules that no displacement reaches, for every chunk, while they fit into memory.

    What a model computes before it enters the first module that owns a displaced parameter cannot depend on it, whatever the
    model is made of. The results are the same to the last bit; the first chunk is computed both ways once, and where they
    differ (a parameter is used outside its module, a kept output is written to) nothing is kept.

    Args:
        moving: whether each selected parameter is displaced.
        memory: bytes that outputs may take.
    """

    def __init__(self, moving: Sequence[bool], *, memory: int) -> None:
        self.moving, self.active = tuple(moving), True
        self._left, self._checked = memory, False
        self._kept: dict[int, _Kept] = {}

    def evaluate(self, model: nn.Module, leaves: Sequence[Tensor], chunk: int, compute: Callable[[], T]) -> T:
        """What ``compute`` gives on a chunk, with the outputs from an earlier point where there are any.

        Args:
            model: which ``compute`` runs, with ``leaves`` in place.
            leaves: the selected parameters.
            chunk: its index.
            compute: evaluates the chunk; equal results are told by ``==`` of their first pair.
        """
        if not self.active or any(module.training for module in model.modules()):
            return compute()
        kept = self._kept.get(chunk)
        if kept is None:
            return self._recorded(model, leaves, chunk, compute)
        versions = [tensor._version for tensor in kept.tensors]
        with _replaying(kept):
            found = compute()
        if versions != [tensor._version for tensor in kept.tensors] or not self._agrees(found, compute):
            self.active = False
            self._kept.clear()
            return compute()
        return found

    def _agrees(self, found: Any, compute: Callable[[], Any]) -> bool:
        """Whether the first chunk that is taken from what was kept is what computing it all gives."""
        if not self._checked:
            self._checked = True
            return bool(compute()[0][0] == found[0][0])
        return True

    def _recorded(self, model: nn.Module, leaves: Sequence[Tensor], chunk: int, compute: Callable[[], T]) -> T:
        displaced = {id(leaf) for leaf, moves in zip(leaves, self.moving, strict=True) if moves}
        owners = [
            module
            for module in model.modules()
            if any(id(parameter) in displaced for parameter in module._parameters.values())
        ]
        kept = _Kept()
        with _recording(model, owners, kept):
            found = compute()
        self._left -= sum(tensor.nbytes for tensor in kept.tensors)
        if self._left < 0 or not kept.outputs:
            self.active = False
            self._kept.clear()
        else:
            self._kept[chunk] = kept
        return found


@contextmanager
def _recording(model: nn.Module, owners: Sequence[nn.Module], kept: _Kept) -> Iterator[None]:
    """Keep the outputs of the outermost calls that end before an owner is entered."""
    ended: list[tuple[int, nn.Module, Any]] = []  # depth, module, output
    depth, reached = 0, False

    def enter(module: nn.Module, _: Any) -> None:
        nonlocal depth, reached
        reached = reached or any(module is owner for owner in owners)
        depth += 1

    def leave(module: nn.Module, _: Any, output: Any) -> None:
        nonlocal depth
        depth -= 1
        if reached:
            return
        while ended and ended[-1][0] > depth:  # calls inside this one
            ended.pop()
        ended.append((depth, module, output))

    handles = []
    for module in model.modules():
        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    for _, module, output in ended:
        kept.outputs.setdefault(module, []).append(output)


@contextmanager
def _replaying(kept: _Kept) -> Iterator[None]:
    """Modules return what was kept instead of computing, once for each call that was kept; later calls compute."""

    def returning(calls: list[Any], forward: Callable[..., Any]) -> Callable[..., Any]:
        left = iter(calls)

        def stand_in(*args: Any, **kwargs: Any) -> Any:
            for output in left:
                return output
            return forward(*args, **kwargs)

        return stand_in

    own = {module: "forward" in module.__dict__ for module in kept.outputs}
    before = {module: module.forward for module in kept.outputs}
    try:
        for module, calls in kept.outputs.items():
            module.forward = returning(calls, before[module])
        yield
    finally:
        for module, forward in before.items():
            if own[module]:
                module.forward = forward
            else:
                module.__dict__.pop("forward", None)
