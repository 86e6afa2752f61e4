"""Sharpness against the stability bound of the optimiser."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from theodolite.records.estimate import Estimate
from theodolite.records.record import Record
from theodolite.records.text import number, with_error


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Stability(Record):
    """How close a step is to the edge of stability on the quadratic model of the loss.

    The bound is that of the optimiser's own recursion on a quadratic: 2/lr for gradient descent, 2(1+β)/lr for heavy
    ball, 2(1+β₁)/((1−β₁)·lr) for the Adam family, where sharpness is that of P^-½(H+W)P^-½ with P the preconditioner in
    use and W the weight decay: w where it goes through the gradient, w·bound·P/2 where it is decoupled.

    Args:
        loss: loss of the problem.
        loss_stderr: its standard error over chunks of the data, NaN with one chunk.
        gradient_norm: norm of its gradient.
        sharpness: largest eigenvalue of the Hessian.
        sharpness_stderr: its standard error from the data (infinitesimal jackknife), NaN with one chunk.
        residual: relative residual of that eigenpair.
        converged: whether the residual met its tolerance.
        tol: that tolerance.
        preconditioned_sharpness: largest eigenvalue of P^-½(H+W)P^-½; equals ``sharpness`` without preconditioner and
            decay; with several learning rates the ratio itself; NaN for an optimiser whose rule is not known.
        threshold: what ``preconditioned_sharpness`` must stay below, bound / learning rate; 1 with several learning
            rates; infinite at learning rate 0; NaN for an optimiser whose rule is not known.
        ratio: stability ratio preconditioned_sharpness / threshold, > 1 is unstable; proportional to the learning rates.
        bound: what learning rate times ``preconditioned_sharpness`` must stay below; NaN with several learning rates,
            and where it is not known.
        learning_rate: of the first parameter group that holds parameters of the problem.
        momentum: of that group, β, or β₁ for the Adam family; 0 without.
        optimizer: class name.
        rule: the bound in words, with its formula.
    """

    kind: ClassVar[str] = "stability"

    loss: float
    loss_stderr: float
    gradient_norm: float
    sharpness: float
    sharpness_stderr: float
    residual: float
    converged: bool
    tol: float
    preconditioned_sharpness: float
    threshold: float
    ratio: float
    bound: float = math.nan
    learning_rate: float
    momentum: float
    optimizer: str
    rule: str

    @property
    def crossed(self) -> bool:
        """Whether the ratio is above 1, at face value; False where it is not known."""
        return self.ratio > 1

    @property
    def ratio_estimate(self) -> Estimate:
        """The ratio, with the relative error that the data leave in the sharpness."""
        error = abs(self.ratio) * self.sharpness_stderr / abs(self.sharpness or math.nan)
        return Estimate(self.ratio, error, self.data_degrees)

    @property
    def max_learning_rate(self) -> float:
        """Learning rate at which the ratio would be 1: lr / ratio, at learning rate 0 bound / preconditioned_sharpness.

        All bounds above scale with 1/lr, for the Adam family at the preconditioner of this step; with several learning
        rates it is that of ``learning_rate`` when all scale together. Infinite where no direction curves upwards, NaN
        where the ratio is not known, or the bound at learning rate 0.
        """
        if self.ratio > 0 or math.isnan(self.ratio):
            return self.learning_rate / self.ratio
        if self.learning_rate > 0 or self.preconditioned_sharpness < 0:
            return math.inf
        # At learning rate 0 the ratio is 0 whatever the curvature.
        return self.bound / self.preconditioned_sharpness if self.preconditioned_sharpness > 0 else math.nan

    def summary(self) -> tuple[str, ...]:
        """Optimiser, ratio to the edge, convergence."""
        sharpness = f"λ₁ = {with_error(self.sharpness, self.sharpness_stderr, source='data')}"
        ratio = f"ratio {number(self.ratio)} ({'beyond' if self.crossed else 'below'} the edge at 1)"
        if math.isnan(self.ratio):
            ratio = f"ratio unknown for {self.optimizer}"
        residual = f"residual {self.residual:.1g}"
        state = f"converged, {residual}" if self.converged else f"NOT CONVERGED: {residual} > tol {self.tol:.1g}"
        return f"{self.optimizer}, lr={self.learning_rate:g}", ratio, sharpness, f"loss {number(self.loss)}", state
