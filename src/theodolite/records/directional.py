"""Curvature along directions, measured in three ways that agree where the loss is quadratic."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float

from theodolite.records.estimate import Estimate
from theodolite.records.record import Record
from theodolite.records.text import number, plural, with_error


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Directional(Record):
    """What the loss does along each of several displacements d: slope gᵀd, curvature dᵀHd and the change that follows.

    All standard errors are from the data, by leaving out the same chunk everywhere; NaN with one chunk.

    Args:
        names: of the directions, ``"gradient"`` and ``"update"`` or as they were given.
        norms: ‖d‖.
        slopes: gᵀd.
        exact: dᵀHd by one product.
        exact_stderrs: their standard errors.
        difference: (g(θ+d) − g(θ))ᵀd from gradients.
        difference_stderrs: their standard errors.
        loss_only: 2(L(θ+d) − L(θ) − gᵀd) from losses.
        loss_only_stderrs: their standard errors.
        loss_only_floors: what rounding of the losses alone makes of it (a standard deviation): smaller values say nothing.
        decreases: L(θ) − L(θ+d), what the displacement really gains.
        decrease_stderrs: their standard errors.
        loss: loss at θ.
        loss_stderr: its standard error.
        gradient_norm: ‖g‖.
        gradient_quotient: MetaInit's mean of |(g − Hg)/(g ± 1e-5) − 1| over the parameters, small where one gradient step
            hardly changes the gradient; NaN unless the gradient is among the directions.
    """

    kind: ClassVar[str] = "directional"
    lengths: ClassVar[Mapping[str, str]] = {"names": "d"}

    names: tuple[str, ...]
    norms: Float[np.ndarray, " d"]
    slopes: Float[np.ndarray, " d"]
    exact: Float[np.ndarray, " d"]
    exact_stderrs: Float[np.ndarray, " d"]
    difference: Float[np.ndarray, " d"]
    difference_stderrs: Float[np.ndarray, " d"]
    loss_only: Float[np.ndarray, " d"]
    loss_only_stderrs: Float[np.ndarray, " d"]
    loss_only_floors: Float[np.ndarray, " d"]
    decreases: Float[np.ndarray, " d"]
    decrease_stderrs: Float[np.ndarray, " d"]
    loss: float
    loss_stderr: float
    gradient_norm: float
    gradient_quotient: float = math.nan

    @property
    def sharpness(self) -> Float[np.ndarray, " d"]:
        """Directional sharpness dᵀHd / ‖d‖², between the smallest and the largest eigenvalue."""
        return _ratio(self.exact, self.norms**2)

    @property
    def sharpness_estimates(self) -> dict[str, Estimate]:
        """Directional sharpness of each direction with its error from the data."""
        errors = _ratio(self.exact_stderrs, self.norms**2)
        pairs = zip(self.sharpness.tolist(), errors.tolist(), strict=True)
        return {name: Estimate(*pair, self.data_degrees) for name, pair in zip(self.names, pairs, strict=True)}

    @property
    def best_scales(self) -> Float[np.ndarray, " d"]:
        """α* = −gᵀd / dᵀHd, the multiple of d with the least loss on the quadratic model.

        NaN where it curves downwards, and where the curvature is not ``resolved``: along a straight line it is rounding.

        Below ½ the step d raises the loss of that model.
        """
        return np.where((self.exact > 0) & self.resolved, _ratio(-self.slopes, self.exact), np.nan)

    @property
    def overshoots(self) -> Bool[np.ndarray, " d"]:
        """Whether d raises the loss of the quadratic model, α* < ½ where that curves upwards."""
        return np.asarray((self.exact > 0) & (-self.slopes < 0.5 * self.exact))

    @property
    def predicted_decreases(self) -> Float[np.ndarray, " d"]:
        """−gᵀd − ½dᵀHd, what the quadratic model gains."""
        return np.asarray(-self.slopes - 0.5 * self.exact)

    @property
    def agreement(self) -> Float[np.ndarray, " d"]:
        """Actual over predicted decrease, 1 where the loss is quadratic along d; NaN where the decrease is rounding.

        That is where neither ``decreases`` nor the prediction stands out of the rounding of two losses by five of its standard
        deviations, half of ``loss_only_floors`` each.
        """
        larger = np.maximum(np.abs(self.decreases), np.abs(self.predicted_decreases))
        return np.where(larger > 2.5 * self.loss_only_floors, _ratio(self.decreases, self.predicted_decreases), np.nan)

    @property
    def third_order_index(self) -> Float[np.ndarray, " d"]:
        """(difference − exact) / |exact|: 0 on a quadratic; positive where the curvature grows along d; NaN if not ``resolved``.

        Half of T[d,d,d]/|dᵀHd|, T the third derivative, up to fourth order in d. Beyond about 0.3 in size the quadratic
        model does not describe a step of this length.
        """
        return np.where(self.resolved, _ratio(self.difference - self.exact, np.abs(self.exact)), np.nan)

    @property
    def third_derivatives(self) -> Float[np.ndarray, " d"]:
        """T[d,d,d], from 2(difference − exact), up to fourth order in d."""
        return np.asarray(2 * (self.difference - self.exact))

    @property
    def resolved(self) -> Bool[np.ndarray, " d"]:
        """Whether the curvature from losses alone stands out of their rounding, by five standard deviations."""
        return np.asarray(np.abs(self.loss_only) > 5 * self.loss_only_floors)

    def summary(self) -> tuple[str, ...]:
        """Directions, the sharpness along each and the third-order index."""
        shown = [
            f"{name}: dᵀHd/‖d‖² = {with_error(estimate.value, estimate.stderr, source='data')}, "
            f"α* = {number(scale)}, third-order index {number(index)}"
            for (name, estimate), scale, index in zip(
                list(self.sharpness_estimates.items())[:3],
                self.best_scales.tolist(),
                self.third_order_index.tolist(),
                strict=False,
            )
        ]
        return plural(len(self.names), "direction"), *shown, f"loss {number(self.loss)}"


def _ratio(numerator: Float[np.ndarray, " d"], denominator: Float[np.ndarray, " d"]) -> Float[np.ndarray, " d"]:
    """The quotient, NaN or infinite at 0."""
    with np.errstate(all="ignore"):
        return np.asarray(numerator / denominator)
