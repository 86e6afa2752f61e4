"""Tensors in the arguments and results of functions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples, lists and dictionaries."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, tuple | list):
        for item in tree:
            yield from tensors_in(item)
    elif isinstance(tree, dict):
        for item in tree.values():
            yield from tensors_in(item)


def replaced(tree: Any, others: Mapping[int, Tensor]) -> Any:
    """The tree with some tensors replaced, by identity."""
    if isinstance(tree, Tensor):
        return others.get(id(tree), tree)
    if isinstance(tree, dict):
        return {key: replaced(item, others) for key, item in tree.items()}
    if type(tree) in (tuple, list):
        return type(tree)(replaced(item, others) for item in tree)
    return tree
