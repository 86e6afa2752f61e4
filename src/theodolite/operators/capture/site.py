"""An operation that met a parameter in the forward pass, and how its output gradient becomes per-sample gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from theodolite.operators.capture.layouts import Layout
from theodolite.operators.capture.use import Block, Use

# From the block that is read, the number of the site, the gradient of its output and the place of the samples in it.
Recipe = Callable[[Block, int, Tensor, Layout], Use]


@dataclass(frozen=True)
class Plan:
    """What a handler makes of one call.

    Args:
        recipes: for every parametric argument, by identity, how to build its use.
        trailing: dimensions of the output that cannot hold samples, counted from the last.
    """

    recipes: dict[int, Recipe]
    trailing: int


@dataclass(frozen=True)
class Operand:
    """A parameter, or a tensor computed from parameters alone, that an operation reads.

    Args:
        tensor: with its history, for gradients of what it was computed from.
        recipe: builds the use.
    """

    tensor: Tensor
    recipe: Recipe


@dataclass
class Site:
    """One operation that reads parameters and data.

    Args:
        index: its number in the forward pass.
        key: what identifies it in passes over other data: operation, parameters, and how often both were met before.
        operands: the parametric arguments.
        shape: shape of the output.
        trailing: dimensions of the output that cannot hold samples.
        edge: where the output hangs in the graph.
        first: whether nothing before it needs a gradient, so that the backward pass must be asked to come here.
    """

    index: int
    key: tuple[object, ...]
    operands: list[Operand]
    shape: tuple[int, ...]
    trailing: int
    edge: Any
    first: bool
