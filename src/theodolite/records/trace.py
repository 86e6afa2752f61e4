"""Trace of a symmetric operator, whole and by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from theodolite.records.estimate import Estimate
from theodolite.records.record import Record
from theodolite.records.text import or_exact, plural


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Trace(Record):
    """Stochastic estimate of a trace.

    Args:
        value: the estimate.
        stderr: its standard error over probes.
        data_stderr: its standard error from the data, jackknifed over chunks with the same probes; NaN with a single chunk, and
            for methods other than Hutchinson's.
        layers: names of the layers.
        layer_values: trace of each diagonal block, from the same probes.
        layer_stderrs: their standard errors.
        probes: number of random probes that value and error are means over; for ``"hutch++"`` those of the remainder, 0
            where its sketch left none.
        degrees: degrees of freedom of the errors over probes; None for one less than the probes.
        method: ``"hutchinson"``, ``"hutch++"``, ``"xtrace"``, ``"xnystrace"``, or ``"basis and probes"``
            where it is exact on a Krylov space and sampled off it.
        operator: ``"hessian"``, ``"ggn"`` or ``"fisher"``.
        size: number of parameters n.
    """

    kind: ClassVar[str] = "trace"
    lengths: ClassVar[Mapping[str, str]] = {"layers": "L"}

    value: float
    stderr: float
    data_stderr: float = math.nan
    layers: tuple[str, ...] = ()
    layer_values: Float[np.ndarray, " L"]
    layer_stderrs: Float[np.ndarray, " L"]
    probes: int
    degrees: int | None = None
    method: str
    operator: str = "hessian"
    size: int

    @property
    def estimate(self) -> Estimate:
        """The trace with its standard error over probes."""
        return Estimate(self.value, self.stderr, self._degrees)

    @property
    def data_estimate(self) -> Estimate:
        """The trace with its standard error from the data."""
        return Estimate(self.value, self.data_stderr, self.data_degrees)

    @property
    def mean_eigenvalue(self) -> Estimate:
        """tr(H) / n."""
        return Estimate(self.value / self.size, self.stderr / self.size, self._degrees)

    @property
    def by_layer(self) -> dict[str, Estimate]:
        """Trace of the diagonal block of each layer; the blocks add up to the whole."""
        pairs = zip(self.layer_values.tolist(), self.layer_stderrs.tolist(), strict=True)
        return {layer: Estimate(*pair, self._degrees) for layer, pair in zip(self.layers, pairs, strict=True)}

    def summary(self) -> tuple[str, ...]:
        """Operator, the trace, how it was estimated."""
        method = f"{self.method}, {plural(self.probes, 'probe')}"
        return (
            f"{self.operator}, n={self.size:,}",
            f"tr = {or_exact(self.value, self.stderr, source='probes')}",
            method,
        )

    @property
    def _degrees(self) -> int | None:
        if self.degrees is not None:
            return self.degrees
        return self.probes - 1 if self.probes > 1 else None
