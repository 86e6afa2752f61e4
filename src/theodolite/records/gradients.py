"""Loss, gradient and parameter norms, whole and by layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from theodolite.records.record import Record


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Gradients(Record):
    """The gradient of a problem.

    Args:
        loss: loss of the problem.
        loss_stderr: its standard error (jackknife over chunks of the data), NaN with a single chunk.
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
