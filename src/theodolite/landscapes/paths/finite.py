"""Refusals that name what is not finite, before it is taken for another fault."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from theodolite.errors import NonFiniteError

SHOWN = 4


def refuse_non_finite_parameters(states: Mapping[str, Mapping[str, Tensor]], names: Iterable[str], *, to: str) -> None:
    """Refuse checkpoints with NaN or infinity among their parameters; buffers may hold infinity, as masks do.

    Args:
        states: by what the caller calls them.
        names: of the parameters.
        to: what finite parameters are needed for.

    Raises:
        NonFiniteError: a parameter is not finite.
    """
    names = tuple(names)
    for which, state in states.items():
        found = non_finite({name: state[name] for name in names})
        if found:
            raise NonFiniteError(
                f"Expected finite parameters to {to}, found NaN or infinity in {which}: {found}. Did its training diverge? "
                "Take an earlier checkpoint."
            )


def refuse_non_finite_outputs(outputs: Iterable[Tensor], batch: Any) -> None:
    """Refuse outputs that cannot be compared, and name what in the data is not finite.

    Args:
        outputs: of a model with finite parameters.
        batch: that they are of.

    Raises:
        NonFiniteError: an output is not finite.
    """
    lost = non_finite({f"output {index}": output for index, output in enumerate(outputs)})
    if not lost:
        return
    leaves, _ = _pytree.tree_flatten_with_path(batch)
    tensors = {f"batch{_pytree.keystr(path)}": leaf for path, leaf in leaves if isinstance(leaf, Tensor)}
    cause = non_finite(tensors)
    raise NonFiniteError(
        f"Expected finite outputs of the model on the first batch, to compare them, found NaN or infinity in {lost}, "
        + (f"and in the data: {cause}. Clean the data." if cause else "of finite data: the model overflows on it.")
    )


def non_finite(tensors: Mapping[str, Tensor]) -> str:
    """Which tensors are not finite and in how many entries, in words; empty where all are."""
    counts = {
        name: int((~torch.isfinite(tensor)).sum())
        for name, tensor in tensors.items()
        if tensor.is_floating_point() or tensor.is_complex()
    }
    found = [f"{name} ({count:,} of {tensors[name].numel():,})" for name, count in counts.items() if count]
    return ", ".join(found[:SHOWN]) + (", …" if len(found) > SHOWN else "")
