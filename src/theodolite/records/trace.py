"""Trace of a symmetric operator, whole and by layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from theodolite.records.record import Record


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Trace(Record):
    """Stochastic estimate of a trace.

    Args:
        value: the estimate.
        stderr: its standard error over probes.
        layers: names of the layers.
        layer_values: trace of each diagonal block, from the same probes.
        layer_stderrs: their standard errors.
        probes: number of random probes.
        method: ``"hutchinson"`` or ``"hutch++"``.
        operator: ``"hessian"`` or ``"ggn"``.
        size: number of parameters n.
    """

    kind: ClassVar[str] = "trace"

    value: float
    stderr: float
    layers: tuple[str, ...] = ()
    layer_values: Float[np.ndarray, " L"]
    layer_stderrs: Float[np.ndarray, " L"]
    probes: int
    method: str
    operator: str = "hessian"
    size: int
