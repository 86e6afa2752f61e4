"""Rule: estimates that stopped before they reached their tolerance."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from theodolite.forecasts.finding import Finding
from theodolite.forecasts.order import at, by_step
from theodolite.records import Record, Spectrum, Stability

_ADVICE = (
    "Raise max_products, or accept a looser tol. In single precision residuals stall near 1e-6: for a tighter tol "
    "measure in float64 (dtype of the problem)."
)


def not_converged(records: Sequence[Record]) -> Iterable[Finding]:
    """Name the eigenvalues that did not converge, with the residual reached; one finding for each kind of record.

    An eigenvalue that is NaN was not estimated at all, which is for the rule on non-finite readings to say.
    """
    spectra = by_step(records, Spectrum)
    for operator in sorted({spectrum.operator for spectrum in spectra}):
        yield from _of(f"spectrum of the {operator}", [_spectrum(one) for one in spectra if one.operator == operator])
    yield from _of("sharpness", [_sharpness(one) for one in by_step(records, Stability)])


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """The part of a record that this rule looks at, whatever its class."""

    step: int | None
    tol: float
    values: Float[np.ndarray, " k"]
    residuals: Float[np.ndarray, " k"]
    failed: Bool[np.ndarray, " k"]

    @property
    def worst(self) -> float:
        """Largest residual that missed the tolerance; an unknown one counts as infinite."""
        return float(np.nan_to_num(self.residuals[self.failed], nan=math.inf).max())


def _spectrum(record: Spectrum) -> _Reading:
    return _Reading(
        step=record.step, tol=record.tol, values=record.eigenvalues, residuals=record.residuals,
        failed=~record.converged & ~np.isnan(record.eigenvalues),
    )  # fmt: skip


def _sharpness(record: Stability) -> _Reading:
    values, residuals = np.array([record.sharpness]), np.array([record.residual])
    failed = np.array([not record.converged and not math.isnan(record.sharpness)])
    return _Reading(step=record.step, tol=record.tol, values=values, residuals=residuals, failed=failed)


def _of(what: str, readings: list[_Reading]) -> Iterable[Finding]:
    failed = [reading for reading in readings if reading.failed.any()]
    if not failed:
        return
    worst = max(failed, key=lambda reading: reading.worst)
    pairs = zip(worst.values[worst.failed], worst.residuals[worst.failed], strict=True)
    names = ", ".join(f"{value:.4g} (residual {residual:.1g})" for value, residual in pairs)
    count = int(worst.failed.sum())
    yield Finding(
        rule="not converged",
        severity="warning",
        title=f"{len(failed)} of {len(readings)} readings of the {what} did not converge",
        message=(
            f"The worst, {at(worst.step)}: {count} of {worst.failed.size} eigenvalues missed the tolerance {worst.tol:.1g}: "
            f"{names}. What is printed for them may be another eigenvalue or none; the largest printed is a lower bound of "
            "the largest there is."
        ),
        advice=_ADVICE,
        evidence={"readings": len(readings), "not_converged": len(failed), "residual": worst.worst, "tol": worst.tol},
        step=worst.step,
        reference="Parlett 1980 (residual bounds)",
    )
