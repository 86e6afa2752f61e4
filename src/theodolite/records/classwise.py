"""Curvature of the loss of each class or domain by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int

from theodolite.records.estimate import Estimate
from theodolite.records.record import Record
from theodolite.records.text import number


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Classwise(Record):
    """Extreme eigenvalues and trace of the Hessian of each group's own loss, the mean over its own samples.

    Args:
        groups: labels, sorted.
        samples: of each group.
        weights: share of each group in the whole loss; the weighted Hessians add up to that of the whole.
        losses: loss of each group.
        largest: λ_max of each group's Hessian.
        smallest: λ_min.
        largest_stderrs: standard errors of λ_max from the data, NaN where a group has a single chunk.
        smallest_stderrs: the same of λ_min.
        converged: whether both eigenvalues met the tolerance.
        traces: trace of each group's Hessian.
        trace_stderrs: their standard errors over probes.
        negative_masses: share of negative eigenvalues of each.
        probes: random vectors behind the traces.
        tol: relative residual that was asked for.
        operator: what was decomposed.
        size: number of parameters n.
    """

    kind: ClassVar[str] = "classwise"
    lengths: ClassVar[Mapping[str, str]] = {"groups": "g"}

    groups: tuple[str, ...]
    samples: Int[np.ndarray, " g"]
    weights: Float[np.ndarray, " g"]
    losses: Float[np.ndarray, " g"]
    largest: Float[np.ndarray, " g"]
    smallest: Float[np.ndarray, " g"]
    largest_stderrs: Float[np.ndarray, " g"]
    smallest_stderrs: Float[np.ndarray, " g"]
    converged: Bool[np.ndarray, " g"]
    traces: Float[np.ndarray, " g"]
    trace_stderrs: Float[np.ndarray, " g"]
    negative_masses: Float[np.ndarray, " g"]
    probes: int
    tol: float
    operator: str = "hessian"
    size: int

    @property
    def saddles(self) -> Float[np.ndarray, " g"]:
        """−λ_min/λ_max of each group: 0 where its loss curves upwards everywhere, infinite where nowhere, NaN for a group without
        weight, which has no loss of its own.

        References:
            Rangwani et al., "Escaping saddle points for effective generalization on class-imbalanced data" (2022).
        """
        found = np.where(self.smallest < 0, np.inf, 0.0)
        np.divide(-self.smallest, self.largest, out=found, where=(self.smallest < 0) & (self.largest > 0))
        found[np.isnan(self.smallest) | np.isnan(self.largest)] = np.nan
        return found

    @property
    def by_group(self) -> dict[str, Estimate]:
        """Trace of each group's Hessian."""
        degrees = self.probes - 1 if self.probes > 1 else None
        pairs = zip(self.traces.tolist(), self.trace_stderrs.tolist(), strict=True)
        return {group: Estimate(*pair, degrees) for group, pair in zip(self.groups, pairs, strict=True)}

    @property
    def trace(self) -> Estimate:
        """Trace of the whole, Σ w·tr over the groups that have weight."""
        degrees = self.probes - 1 if self.probes > 1 else None
        parts, errors = (
            np.where(self.weights == 0, 0.0, self.weights * each) for each in (self.traces, self.trace_stderrs)
        )
        return Estimate(float(parts.sum()), float(np.sqrt(np.square(errors).sum())), degrees)

    def summary(self) -> tuple[str, ...]:
        """Operator, the group with the deepest saddle, convergence."""
        subject = f"{self.operator}, n={self.size:,}, {len(self.groups)} groups"
        if not self.groups:
            return subject, "no groups"
        saddles = self.saddles
        if np.isnan(saddles).all():
            return subject, "no group with curvature"
        worst = int(np.nanargmax(saddles))
        deepest = f"deepest saddle: {self.groups[worst]} with −λₙ/λ₁ = {number(float(saddles[worst]))}"
        return subject, deepest, f"{int(self.converged.sum())} of {len(self.groups)} converged"
