"""Whether sharpness and the best learning rate stay the same when a model is made wider or deeper."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int

from theodolite.records.record import Record
from theodolite.records.text import number


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Transfer(Record):
    """Runs of models of several sizes at several learning rates, read at the same steps.

    Args:
        axis: what the sizes are, ``"width"`` or ``"depth"``.
        sizes: of the models.
        learning_rates: as ``make`` was given them; the rates of the optimisers may differ from size to size.
        steps: optimiser steps at which the runs were read.
        losses: loss by size, learning rate and step; NaN and infinity are readings of runs that diverged.
        sharpnesses: largest Hessian eigenvalue, NaN after divergence.
        sharpness_stderrs: their standard errors from the data, NaN with one chunk.
        ratios: stability ratio, sharpness times learning rate over the bound of the optimiser: without dimension.
        converged: whether every sharpness met its tolerance.
    """

    kind: ClassVar[str] = "transfer"

    axis: str
    sizes: Int[np.ndarray, " w"]
    learning_rates: Float[np.ndarray, " e"]
    steps: Int[np.ndarray, " t"]
    losses: Float[np.ndarray, "w e t"]
    sharpnesses: Float[np.ndarray, "w e t"]
    sharpness_stderrs: Float[np.ndarray, "w e t"]
    ratios: Float[np.ndarray, "w e t"]
    converged: bool

    @property
    def consistency(self) -> Float[np.ndarray, "e t"]:
        """C = standard deviation over mean, over sizes, of the stability ratio: 0 where it does not depend on the size.

        NaN with fewer than two sizes, and where a run diverged.
        """
        if self.sizes.size < 2:
            return np.full(self.ratios.shape[1:], np.nan)
        with np.errstate(all="ignore"):
            return np.asarray(self.ratios.std(axis=0, ddof=1) / self.ratios.mean(axis=0))

    @property
    def best_learning_rates(self) -> Float[np.ndarray, " w"]:
        """The rate with the least loss at the last step for each size, NaN where all diverged."""
        last = self.losses[:, :, -1:].min(axis=2, initial=np.inf)
        finite = np.where(np.isfinite(last), last, np.inf)
        if not self.learning_rates.size:
            return np.full(self.sizes.shape, np.nan)
        best = self.learning_rates[finite.argmin(axis=1)]
        return np.where(np.isfinite(finite).any(axis=1), best, np.nan)

    @property
    def gap(self) -> float:
        """Largest |log₂| of a size's best learning rate over their median: 0 where the rate transfers on this grid."""
        best = self.best_learning_rates
        if not np.isfinite(best).all() or not best.size:
            return float("nan")
        with np.errstate(all="ignore"):
            logs = np.log2(best)
            return float(np.abs(logs - np.median(logs)).max())

    def summary(self) -> tuple[str, ...]:
        """Sizes, consistency at the end, transfer of the learning rate."""
        subject = f"{self.axis} {', '.join(map(str, self.sizes.tolist()))}"
        last = self.consistency[:, -1:].ravel()
        known = last[np.isfinite(last)]
        reading = (
            f"C = {number(float(known.min()))} to {number(float(known.max()))} at the end"
            if known.size
            else "no consistency"
        )
        state = () if self.converged else ("NOT CONVERGED: some sharpnesses did not reach their tolerance",)
        return subject, reading, f"best learning rates differ by 2^{number(self.gap)}", *state
