"""Loss, gradient and parameter norms, whole and by layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from theodolite.records.estimate import Estimate
from theodolite.records.record import Record
from theodolite.records.text import plural, with_error


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Gradients(Record):
    """The gradient of a problem.

    Args:
        loss: loss of the problem.
        loss_stderr: its standard error (jackknife over chunks of the data, by weight), NaN with a single chunk.
        norm: Euclidean norm of the gradient.
        norm_stderr: its standard error, from the same jackknife.
        layers: names of the layers.
        layer_norms: gradient norm of each layer.
        layer_norm_stderrs: their standard errors.
        parameter_norms: norm of the parameters of each layer.
        samples: number of samples.
        gram: dot products of per-sample gradients, scaled so that their mean is the gradient; None if not asked for.
        coverage: per parameter, how much of the gradient the Gram matrix explains; None without a Gram matrix.
    """

    kind: ClassVar[str] = "gradients"
    lengths: ClassVar[Mapping[str, str]] = {"layers": "L"}

    loss: float
    loss_stderr: float
    norm: float
    norm_stderr: float
    layers: tuple[str, ...]
    layer_norms: Float[np.ndarray, " L"]
    layer_norm_stderrs: Float[np.ndarray, " L"]
    parameter_norms: Float[np.ndarray, " L"]
    samples: int
    gram: Float[np.ndarray, "b b"] | None = None
    coverage: Float[np.ndarray, " p"] | None = None

    @property
    def loss_estimate(self) -> Estimate:
        """Loss with its standard error."""
        return Estimate(self.loss, self.loss_stderr, self.data_degrees)

    @property
    def norm_estimate(self) -> Estimate:
        """Gradient norm with its standard error."""
        return Estimate(self.norm, self.norm_stderr, self.data_degrees)

    @property
    def relative_norms(self) -> Float[np.ndarray, " L"]:
        """Gradient norm over parameter norm of each layer, ‖g_l‖ / ‖θ_l‖; NaN where the parameters are all zero."""
        known = self.parameter_norms != 0
        ratios = np.full(known.shape, np.nan)
        np.divide(self.layer_norms, self.parameter_norms, out=ratios, where=known)
        return ratios

    def summary(self) -> tuple[str, ...]:
        """Samples, loss and norm."""
        return (
            plural(self.samples, "sample"),
            f"loss = {with_error(self.loss, self.loss_stderr, source='data')}",
            f"‖g‖ = {with_error(self.norm, self.norm_stderr, source='data')}",
            plural(len(self.layers), "layer"),
        )
