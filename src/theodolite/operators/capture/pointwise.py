"""Sums and products with broadcast parameters, and any other operation by running it again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from theodolite.operators.capture.layouts import Layout
from theodolite.operators.capture.rows import Rows
from theodolite.operators.capture.saved import Saved
from theodolite.operators.capture.site import Plan, Recipe
from theodolite.operators.capture.trees import replaced, tensors_in
from theodolite.operators.capture.use import Block, Use


def broadcast(factor: float | Saved) -> Recipe:
    """A parameter that is spread over the output by broadcasting, and multiplied there by ``factor``."""

    def recipe(block: Block, site: int, D: Tensor, layout: Layout) -> Use:
        weighted = D * factor.tensor if isinstance(factor, Saved) else D if factor == 1.0 else D * factor
        return Rows(block, "other", site, summed_to(weighted, block.shape, layout))

    return recipe


def summed_to(gradient: Tensor, shape: tuple[int, ...], layout: Layout) -> Tensor:
    """Each sample's part of a gradient summed to the shape that broadcasting spread over it."""
    missing = gradient.dim() - len(shape)
    spread = [axis for axis in range(gradient.dim()) if axis < missing or shape[axis - missing] == 1]
    found = layout.summed(gradient, spread)
    if found is None:  # the parameter was expanded to the batch before
        found = torch.stack([layout.only(gradient, sample).sum_to_size(shape) for sample in range(layout.samples)])
    return found.reshape(-1, *shape)


def replayed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], parametric: list[Tensor]) -> Plan | None:
    """Any operation with one output: run again by itself, and differentiated with the gradient of each sample in turn.

    Cost: one backward pass of the operation for each sample.
    """
    name = getattr(func, "__name__", "")
    writes = (name.endswith("_") and not name.endswith("__")) or name.startswith("__i") or name == "__setitem__"
    if writes or "out" in kwargs:
        return None
    saved = {id(tensor): Saved(tensor) for tensor in tensors_in((args, kwargs))}

    def recipe_for(parameter: Tensor) -> Recipe:
        def recipe(block: Block, site: int, D: Tensor, layout: Layout) -> Use:
            leaf = parameter.detach().requires_grad_()
            now: Mapping[int, Tensor] = {key: kept.tensor for key, kept in saved.items()} | {id(parameter): leaf}
            with torch.enable_grad():
                output = func(*replaced(args, now), **replaced(kwargs, now))
            rows = [
                torch.autograd.grad(output, leaf, layout.only(D, sample), retain_graph=True)[0]
                for sample in range(layout.samples)
            ]
            return Rows(block, "other", site, torch.stack(rows))

        return recipe

    return Plan({id(parameter): recipe_for(parameter) for parameter in parametric}, trailing=0)
