"""Watches a forward pass, operation by operation, and learns which axes share hidden units."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from theodolite.landscapes.paths.matching.call import Call, tensors_of
from theodolite.landscapes.paths.matching.marks import Marker, Marks
from theodolite.landscapes.paths.matching.rules import rule_of


@final
class Tracer(TorchDispatchMode):
    """Intercepts every operation below autograd, so that it sees any model as it is written.

    An operation that it has no rule for fixes all units that come into it: they are then left as they are.

    Args:
        marker: what marks become of marks.
    """

    def __init__(self, marker: Marker) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.marker = marker
        self.unknown: set[str] = set()
        # The tensors are held, so that none takes the place of another that is gone.
        self._marked: dict[int, tuple[Tensor, Marks]] = {}

    def mark(self, tensor: Tensor, marks: Marks) -> None:
        """Give marks to a tensor."""
        self._marked[id(tensor)] = (tensor, marks)

    def marks(self, tensor: Tensor) -> Marks:
        """The marks of a tensor, none for constants and data."""
        held = self._marked.get(id(tensor))
        return () if held is None else held[1]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # Rules read values, which an operation in place would have overwritten.
        found = self._ruled(Call(func, args, kwargs or {}, self.marks, self.marker))
        result = func(*args, **(kwargs or {}))
        for tensor, marks in zip(tensors_of(result), found, strict=False):
            self.mark(tensor, marks)
        return result

    def _ruled(self, call: Call) -> list[Marks]:
        marked = [marks for tensor in tensors_of((call.args, call.kwargs)) if (marks := self.marks(tensor))]
        if not marked:
            return []
        rule = rule_of(call)
        if rule is not None:
            return rule(call)
        self.unknown.add(call.name)
        for marks in marked:
            self.marker.fix(marks)
        return []


@final
class Double(TorchDispatchMode):
    """Keeps double precision where a model asks for less, as norms and rotary embeddings of language models do.

    Two orders of summation then agree to 1e-15 instead of 1e-7, and a wrong permutation is told from rounding.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func is torch.ops.aten._to_copy.default and args[0].is_floating_point():
            wanted = given.get("dtype")
            if wanted is not None and wanted.is_floating_point:
                given["dtype"] = torch.promote_types(wanted, args[0].dtype)
        return func(*args, **given)
