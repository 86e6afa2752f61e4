"""Radius within which a quadratic model describes the gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from theodolite.records.record import Record
from theodolite.records.text import number, plural, with_error


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Smoothness(Record):
    """Error of the gradient's linear model on shells around the parameters.

    γ has no standard error: it is a least value over all directions, of which a few were tried, and a direction that was not
    tried can only lower it. ``bracket`` says how finely it is known for those that were.

    Args:
        radii: r of the shells, ascending.
        bounds: least ‖g‖·r / ‖g(θ+h) − g − Hh‖ over the sampled h of that length; infinite where the model is exact.
        worst: index of the direction that gave each.
        directions: names of the directions, each taken both ways.
        gradient_norm: ‖g‖.
        gradient_norm_stderr: its standard error from the data (jackknife over chunks), NaN with one chunk.
        loss: loss at θ.
        loss_stderr: its standard error from the data.
        operator: what stands for H: ``"hessian"``, ``"ggn"`` or ``"none"``.
    """

    kind: ClassVar[str] = "smoothness"

    radii: Float[np.ndarray, " r"]
    bounds: Float[np.ndarray, " r"]
    worst: tuple[str, ...] = ()
    directions: tuple[str, ...] = ()
    gradient_norm: float
    gradient_norm_stderr: float = math.nan
    loss: float
    loss_stderr: float = math.nan
    operator: str

    @property
    def gamma(self) -> float:
        """Gradient-normalised smoothness: the largest γ with ‖g(θ+h) − g − Hh‖ ≤ ‖g‖‖h‖/γ for all ‖h‖ ≤ γ.

        From sampled directions, hence too large rather than too small; infinite where the model is exact on all shells, NaN
        where the gradient is zero.
        """
        return self.bracket[0]

    @property
    def bracket(self) -> tuple[float, float]:
        """γ, and the radius at which the model of the sampled directions fails: what lies between was not tried.

        Their distance is the error of the search, which ``refine`` makes smaller; that of the directions is not in it.
        """
        if not self.gradient_norm > 0 or not self.radii.size:
            return math.nan, math.nan
        least, inside = math.inf, 0.0
        for radius, bound in zip(self.radii.tolist(), self.bounds.tolist(), strict=True):
            now = min(least, 0.0 if math.isnan(bound) else bound)  # a gradient that is not finite is no model's
            if now < radius:
                return max(inside, now), min(least, radius)
            least, inside = now, radius
        return least, least

    @property
    def regularisation(self) -> float:
        """λ = ‖g‖/γ that makes the step −(H + λ)⁻¹g at most γ long."""
        return self.gradient_norm / self.gamma if self.gamma > 0 else math.nan

    def summary(self) -> tuple[str, ...]:
        """Operator, γ, how many shells."""
        shells = f"{plural(self.radii.size, 'shell')}, {plural(len(self.directions), 'direction')}"
        lower, upper = self.bracket
        gamma = f"γ = {number(lower)}, an upper bound from these directions"
        if upper > lower:
            gamma += f" (they fail by {number(upper)})"
        norm = with_error(self.gradient_norm, self.gradient_norm_stderr, source="data")
        return f"model by {self.operator}", gamma, f"‖g‖ = {norm}", shells
