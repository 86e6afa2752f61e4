"""One operation with its arguments, as rules read it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils import _pytree

from theodolite.landscapes.paths.matching.marks import Marker, Marks


@dataclass(frozen=True)
class Call:
    """One operation with its arguments.

    Args:
        func: the operation.
        args: by position.
        kwargs: by name.
        marks_of: marks of a tensor.
        marker: the rules of marks.
    """

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    marks_of: Callable[[Tensor], Marks]
    marker: Marker

    @property
    def name(self) -> str:
        """Without overload, and without the underscore of operations in place."""
        return str(self.func._schema.name).removeprefix("aten::").rstrip("_")

    def get(self, name: str, default: Any = None) -> Any:
        """An argument by its name."""
        for index, argument in enumerate(self.func._schema.arguments):
            if argument.name == name:
                return self.kwargs.get(name, self.args[index] if index < len(self.args) else default)
        return default


Rule = Callable[[Call], list[Marks]]


def tensors_of(tree: Any) -> Iterator[Tensor]:
    """All tensors in nested arguments or outputs."""
    return (leaf for leaf in _pytree.tree_leaves(tree) if isinstance(leaf, Tensor))
