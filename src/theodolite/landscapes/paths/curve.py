"""Curves through control points in parameter space."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import comb
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from theodolite.landscapes.paths.traveller import State

Form = Literal["chain", "bezier"]


@dataclass(frozen=True)
class Curve:
    """A curve γ from one checkpoint to another.

    Args:
        form: ``"chain"``, straight pieces between the control points, or ``"bezier"``, the polynomial that starts and ends
            along the first and last of them.
        controls: states, the ends first and last.
        training: losses met on the way while the inner control points were trained; empty for a straight line.
    """

    form: Form
    controls: tuple[State, ...]
    training: Float[np.ndarray, " s"] = field(default_factory=lambda: np.empty(0))

    def __repr__(self) -> str:
        numbers = sum(value.numel() for value in self.controls[0].values())
        trained = f", trained in {self.training.size:,} steps" if self.training.size else ""
        return f"Curve({self.form!r}, {len(self.controls)} control points of {numbers:,} numbers{trained})"

    def at(self, t: float) -> State:
        """γ(t), at 0 and 1 the ends bit for bit; what is no real number, such as counters, is that of the nearer end."""
        start, end = self.controls[0], self.controls[-1]
        if t in (0, 1):
            return end if t else start
        weights = self.weights(t)
        nearer = start if t < 0.5 else end
        return {
            name: _combined([state[name] for state in self.controls], weights)
            if value.is_floating_point()
            else nearer[name]
            for name, value in start.items()
        }

    def weights(self, t: float) -> tuple[float, ...]:
        """What each control point adds to γ(t); they sum to 1."""
        pieces = len(self.controls) - 1
        if self.form == "bezier":
            return tuple(comb(pieces, k) * t**k * (1 - t) ** (pieces - k) for k in range(pieces + 1))
        return tuple(max(1 - abs(t * pieces - k), 0.0) for k in range(pieces + 1))


def straight(start: State, end: State) -> Curve:
    """The line (1−t)·start + t·end."""
    return Curve("chain", (start, end))


def _combined(values: list[Tensor], weights: tuple[float, ...]) -> Tensor:
    if len(values) == 2:
        return torch.lerp(values[0], values[1], weights[1])
    total = weights[0] * values[0]
    for value, weight in zip(values[1:], weights[1:], strict=True):
        total = total + weight * value
    return total
