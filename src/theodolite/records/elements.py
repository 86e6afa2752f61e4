"""What single entries of per-sample gradients say: signal to noise, distributions, evidence against further training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int

from theodolite.records.estimate import Estimate
from theodolite.records.record import Record
from theodolite.records.text import number, plural, with_error


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Elements(Record):
    """Moments and histograms of all entries g_ij of per-sample gradients, by parameter.

    Standard errors are of the data: a group of samples is left out of the same sums at a time. NaN where the sums of the groups did
    not fit the memory.

    Args:
        parameters: names.
        sizes: entries of each.
        gradient_norms: ‖ḡ‖ of each parameter.
        gradient_norm_stderrs: their standard errors.
        parameter_norms: ‖θ‖ of each.
        update_norms: norm of an update of each, None where none was given.
        distances: ‖θ − θ₀‖ of each, None where no start was given.
        gsnr: mean over the entries of ḡ_j²/(mean g_ij² − ḡ_j² + ε), of each parameter and at last of all.
        gsnr_stderrs: their standard errors.
        evidence: 1 − B·mean ḡ_j²/Var_j of each parameter and at last of all.
        evidence_stderrs: their standard errors.
        takeuchi: Σ_j mean g_ij²/h_j with a diagonal h of the curvature, NaN where none was given.
        takeuchi_stderr: its standard error.
        still: entries whose gradient is the same for every sample, which the two means leave out.
        edges: of the bins of ``counts``, ascending; logarithmic in magnitude on either side of zero. The outer bins take the rest.
        counts: entries g_ij of each parameter in each bin.
        joint_edges: of the bins of ``joint``.
        joint: entries by g_ij (rows) and θ_j (columns), over all parameters.
        epsilon: ε.
        samples: B.
        groups: of samples, that the errors are taken over.
    """

    kind: ClassVar[str] = "elements"
    lengths: ClassVar[Mapping[str, str]] = {"parameters": "p"}

    parameters: tuple[str, ...]
    sizes: Int[np.ndarray, " p"]
    gradient_norms: Float[np.ndarray, " p"]
    gradient_norm_stderrs: Float[np.ndarray, " p"]
    parameter_norms: Float[np.ndarray, " p"]
    update_norms: Float[np.ndarray, " p"] | None = None
    distances: Float[np.ndarray, " p"] | None = None
    gsnr: Float[np.ndarray, " q"]
    gsnr_stderrs: Float[np.ndarray, " q"]
    evidence: Float[np.ndarray, " q"]
    evidence_stderrs: Float[np.ndarray, " q"]
    takeuchi: float = float("nan")
    takeuchi_stderr: float = float("nan")
    still: Int[np.ndarray, " p"]
    edges: Float[np.ndarray, " e"]
    counts: Int[np.ndarray, "p c"]
    joint_edges: Float[np.ndarray, " f"]
    joint: Int[np.ndarray, "d d"]
    epsilon: float = 0.0
    samples: int
    groups: int

    @property
    def mean_gsnr(self) -> Estimate:
        """Mean signal to noise of all entries; gradients of noise alone have 1/B of it, not 0.

        References:
            Liu et al., "Understanding why neural networks generalize well through GSNR of parameters" (2020).
        """
        return self._last(self.gsnr, self.gsnr_stderrs)

    @property
    def early_stopping(self) -> Estimate:
        """1 − B·mean ḡ_j²/Var_j over all entries: positive where the gradient is no larger than by chance.

        References:
            Mahsereci et al., "Early stopping without a validation set" (2017).
        """
        return self._last(self.evidence, self.evidence_stderrs)

    @property
    def takeuchi_diagonal(self) -> Estimate:
        """Takeuchi's criterion by diagonals, Σ_j mean g_ij²/h_j; NaN where no curvature was given."""
        return Estimate(self.takeuchi, self.takeuchi_stderr, max(self.groups - 1, 1))

    @property
    def by_parameter(self) -> dict[str, Estimate]:
        """Gradient norm of each parameter."""
        pairs = zip(self.gradient_norms.tolist(), self.gradient_norm_stderrs.tolist(), strict=True)
        return {name: Estimate(*pair, self._degrees) for name, pair in zip(self.parameters, pairs, strict=True)}

    @property
    def histogram(self) -> Int[np.ndarray, " c"]:
        """Entries g_ij of all parameters in each bin."""
        return np.asarray(self.counts.sum(axis=0))

    def share_below(self, magnitude: float) -> dict[str, float]:
        """Share of the entries of each parameter with |g_ij| below a magnitude, to the next edge of the bins above it."""
        reach = self.edges[self.edges >= magnitude]
        top = float(reach.min()) if reach.size else float("inf")
        centres = np.concatenate([[-np.inf], (self.edges[:-1] + self.edges[1:]) / 2, [np.inf]])
        inside = np.abs(centres) < top
        with np.errstate(invalid="ignore"):
            shares = self.counts[:, inside].sum(axis=1) / self.counts.sum(axis=1)
        return dict(zip(self.parameters, shares.tolist(), strict=True))

    def summary(self) -> tuple[str, ...]:
        """Entries, signal to noise, evidence."""
        subject = f"{plural(self.samples, 'sample')}, {len(self.parameters)} parameters"
        if not self.gsnr.size or not self.evidence.size:
            return subject, "nothing to read"
        stop, signal = self.early_stopping, self.mean_gsnr
        return (
            subject,
            f"mean GSNR {with_error(signal.value, signal.stderr, source='data')}",
            f"early stopping {with_error(stop.value, stop.stderr, source='data')}",
            f"{int(self.still.sum()):,} of {int(self.sizes.sum()):,} entries still",
            *((f"TIC by diagonals {number(self.takeuchi)}",) if not np.isnan(self.takeuchi) else ()),
        )

    @property
    def _degrees(self) -> int:
        return max(self.groups - 1, 1)

    def _last(self, values: Float[np.ndarray, " q"], errors: Float[np.ndarray, " q"]) -> Estimate:
        return Estimate(float(values[-1]), float(errors[-1]), self._degrees)
