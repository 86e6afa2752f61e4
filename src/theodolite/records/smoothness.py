"""Radius within which a quadratic model describes the gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from theodolite.records.record import Record
from theodolite.records.text import number, plural


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Smoothness(Record):
    """Error of the gradient's linear model on shells around the parameters.

    Args:
        radii: r of the shells, ascending.
        bounds: least ‖g‖·r / ‖g(θ+h) − g − Hh‖ over the sampled h of that length; infinite where the model is exact.
        worst: index of the direction that gave each.
        directions: names of the directions, each taken both ways.
        gradient_norm: ‖g‖.
        loss: loss at θ.
        operator: what stands for H: ``"hessian"``, ``"ggn"`` or ``"none"``.
    """

    kind: ClassVar[str] = "smoothness"

    radii: Float[np.ndarray, " r"]
    bounds: Float[np.ndarray, " r"]
    worst: tuple[str, ...] = ()
    directions: tuple[str, ...] = ()
    gradient_norm: float
    loss: float
    operator: str

    @property
    def gamma(self) -> float:
        """Gradient-normalised smoothness: the largest γ with ‖g(θ+h) − g − Hh‖ ≤ ‖g‖‖h‖/γ for all ‖h‖ ≤ γ.

        From sampled directions, hence too large rather than too small; infinite where the model is exact on all shells, NaN
        where the gradient is zero.
        """
        if not self.gradient_norm > 0 or not self.radii.size:
            return math.nan
        least, inside = math.inf, 0.0
        for radius, bound in zip(self.radii.tolist(), self.bounds.tolist(), strict=True):
            least = min(least, 0.0 if math.isnan(bound) else bound)  # a gradient that is not finite is no model's
            if least < radius:
                return max(inside, least)
            inside = radius
        return least

    @property
    def regularisation(self) -> float:
        """λ = ‖g‖/γ that makes the step −(H + λ)⁻¹g at most γ long."""
        return self.gradient_norm / self.gamma if self.gamma > 0 else math.nan

    def summary(self) -> tuple[str, ...]:
        """Operator, γ, how many shells."""
        shells = f"{plural(self.radii.size, 'shell')}, {plural(len(self.directions), 'direction')}"
        return f"model by {self.operator}", f"γ = {number(self.gamma)}", f"‖g‖ = {number(self.gradient_norm)}", shells
