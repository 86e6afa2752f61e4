"""Extreme eigenpairs of a symmetric operator, with their residuals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float

from theodolite.records.record import Record


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Spectrum(Record):
    """Extreme eigenpairs of a Hessian or GGN.

    Args:
        eigenvalues: in descending order.
        residuals: ‖Hv − λv‖ / max(|λ|, 1e-3·|λ|max) of each returned pair, recomputed with one more product each.
        converged: whether the residual is at most ``tol``.
        data_stderr: standard error of each eigenvalue as an estimate for the distribution that the data were drawn
            from (infinitesimal jackknife over chunks of the data); NaN where the problem has a single chunk.
        eigenvectors: one a row, unit length, parameters flattened in the order of ``parameters``; None if dropped.
        tol: the relative residual that was asked for.
        which: ``"largest"``, ``"smallest"`` or ``"both"`` ends.
        operator: what was decomposed, ``"hessian"`` or ``"ggn"``.
        size: number of parameters n.
        parameters: name and shape of each parameter.
        trace: trace of the operator, NaN if it was not estimated.
        trace_stderr: its standard error.
    """

    kind: ClassVar[str] = "spectrum"

    eigenvalues: Float[np.ndarray, " k"]
    residuals: Float[np.ndarray, " k"]
    converged: Bool[np.ndarray, " k"]
    data_stderr: Float[np.ndarray, " k"]
    eigenvectors: Float[np.ndarray, "k n"] | None = None
    tol: float
    which: str = "largest"
    operator: str = "hessian"
    size: int
    parameters: tuple[tuple[str, tuple[int, ...]], ...] = ()
    trace: float = float("nan")
    trace_stderr: float = float("nan")
