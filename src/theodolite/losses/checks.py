"""What a loss refuses: options outside their range, targets of another dtype or shape, classes that do not exist.

Dtypes and shapes are always checked. Values are read only where that costs next to nothing: of plain tensors in main
memory, not under ``vmap`` or ``torch.compile``, and not on an accelerator, which would have to be waited for.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

Check = Callable[[str, str, Any], None]  # of the names of a loss and its option, and of the option's value
Counts = Float[Tensor, " c"] | Int[Tensor, " c"] | Sequence[int | float]

ROUNDING = 1e-4  # a probability of half precision may exceed 1 by so much


@dataclass(frozen=True)
class Interval:
    """Numbers between two bounds, written as in mathematics: ``"(0, 1]"``.

    Args:
        text: a bracket where the bound belongs to it, a parenthesis where not; ∞ for no bound.
    """

    text: str

    def __call__(self, owner: str, option: str, value: Any) -> None:
        """Raise unless the value is a number in the interval; what cannot be read passes."""
        if isinstance(value, Tensor):
            if value.numel() != 1 or not readable(value):
                return
            value = float(value.detach())
        if not isinstance(value, (Real, torch.SymInt, torch.SymFloat)):
            raise TypeError(f"{owner} expects a number in {self.text} for {option}. Found {value!r}.")
        if value not in self:
            raise ValueError(f"{owner} expects {option} in {self.text}. Found {option} = {value}.")

    def __contains__(self, value: Any) -> bool:
        low, high = (_bound(side) for side in self.text[1:-1].split(","))
        above = value >= low if self.text[0] == "[" else value > low
        return bool(above and (value <= high if self.text[-1] == "]" else value < high))


def _bound(side: str) -> float:
    return float(side.strip().replace("−", "-").replace("∞", "inf"))


@dataclass(frozen=True)
class OneOf:
    """A choice among names or numbers."""

    choices: tuple[Any, ...]

    def __call__(self, owner: str, option: str, value: Any) -> None:
        """Raise unless the value is one of the choices."""
        if value not in self.choices:
            known = ", ".join(map(repr, self.choices))
            raise ValueError(f"{value!r} is not a valid value for {option} of {owner}. Expected one of {known}.")


def choices_of(function: Callable[..., Any]) -> dict[str, Check]:
    """Return the checks of all options that a signature declares as choices, ``reduction`` among them."""
    hints = typing.get_type_hints(function)
    return {name: OneOf(typing.get_args(hint)) for name, hint in hints.items() if typing.get_origin(hint) is Literal}


def class_counts(owner: str, option: str, value: Any) -> None:
    """Raise unless the counts are positive numbers, one a class."""
    counts = torch.as_tensor(value)
    if counts.ndim != 1 or not len(counts):
        raise ValueError(f"{owner} expects {option} of shape (classes,). Found {tuple(counts.shape)}.")
    if not readable(counts):
        return
    wrong = torch.nonzero(~((counts > 0) & counts.isfinite())).flatten().tolist()
    if wrong:
        named = ", ".join(f"class {k} has {counts[k].item():g}" for k in wrong[:5])
        raise ValueError(
            f"{owner} expects at least one training example of every class in {option}. Found that {named}"
            f"{', …' if len(wrong) > 5 else ''}: leave empty classes out of the head, or count them as 1."
        )


def class_targets(
    owner: str, logits: Shaped[Tensor, "..."], target: Shaped[Tensor, "..."], *, ignore_index: int, soft: bool = False
) -> None:
    """Raise unless logits are (b, c, …) and floating, and targets are class indices (b, …) below c or ignored.

    Args:
        owner: name of the loss, for the message.
        logits: classes along the second axis.
        target: class indices.
        ignore_index: the one index that may lie outside.
        soft: whether distributions of the shape of the logits are targets too.
    """
    if not logits.is_floating_point():
        raise TypeError(f"{owner} expects floating-point logits. Found {logits.dtype}; use logits.float().")
    if logits.ndim < 2:
        raise ValueError(f"{owner} expects logits (batch, classes, …). Found shape {tuple(logits.shape)}.")
    if soft and target.is_floating_point():
        if target.shape != logits.shape:
            raise ValueError(_shapes(owner, "distributions of the shape of the logits", logits, target))
        return
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise TypeError(f"{owner} expects class indices of dtype int64. Found {target.dtype}; use target.long().")
    if target.shape != logits.shape[:1] + logits.shape[2:]:
        raise ValueError(_shapes(owner, "one class index for each row of logits", logits, target))
    if not readable(target) or not target.numel():
        return
    least, most = (int(end) for end in target.aminmax())
    if least >= 0 and most < logits.shape[1]:
        return
    outside = target[((target < 0) | (target >= logits.shape[1])) & (target != ignore_index)]
    if len(outside):
        raise ValueError(
            f"{owner} expects classes 0 to {logits.shape[1] - 1}, or ignore_index = {ignore_index}. Found "
            f"{outside.flatten()[0].item()} ({len(outside)} of {target.numel()} targets are outside)."
        )


def same_shapes(owner: str, prediction: Shaped[Tensor, "..."], target: Shaped[Tensor, "..."]) -> None:
    """Raise where a target would be broadcast over its predictions."""
    if prediction.shape != target.shape:
        raise ValueError(_shapes(owner, "targets of the shape of the predictions", prediction, target))


def shares(owner: str, what: str, values: Shaped[Tensor, "..."]) -> None:
    """Raise unless the values are floating and lie in [0, 1]."""
    if not values.is_floating_point():
        raise TypeError(f"{owner} expects floating-point {what} in [0, 1]. Found {values.dtype}; use {what}.float().")
    if not readable(values) or not values.numel():
        return
    least, most = (float(end) for end in values.detach().aminmax())
    if least < -ROUNDING or most > 1 + ROUNDING:
        cure = " Apply softmax or sigmoid to logits first." if what == "probabilities" else ""
        raise ValueError(f"{owner} expects {what} in [0, 1]. Found values from {least:.4g} to {most:.4g}.{cure}")


def readable(values: Tensor) -> bool:
    """Return whether a Python condition may look at the values: eager, of no transform, and in main memory."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return False
    plain = type(values) in (Tensor, torch.nn.Parameter)
    return plain and values.device.type == "cpu" and not torch._C._functorch.is_functorch_wrapped_tensor(values)


def _shapes(owner: str, what: str, first: Tensor, second: Tensor) -> str:
    return f"{owner} expects {what}. Found shapes {tuple(first.shape)} and {tuple(second.shape)}."
