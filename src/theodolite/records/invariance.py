"""Which changes of its data leave the loss of a model as it is, and which models agree on that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import ndtri, stdtrit

from theodolite.records.estimate import Estimate
from theodolite.records.record import Record
from theodolite.records.text import with_error


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Invariance(Record):
    """Losses of checkpoints on data and on changed copies of them.

    Args:
        names: of the checkpoints.
        changes: of the data, by name.
        losses: of each checkpoint on the data as they are.
        gaps: loss on changed data minus loss on the data.
        stderrs: their standard errors, the same samples on both sides; NaN with one chunk.
        tol: largest |gap| that counts as invariant, its error included.
    """

    kind: ClassVar[str] = "invariance"
    lengths: ClassVar[Mapping[str, str]] = {"names": "k", "changes": "m"}

    names: tuple[str, ...]
    changes: tuple[str, ...]
    losses: Float[np.ndarray, " k"]
    gaps: Float[np.ndarray, "k m"]
    stderrs: Float[np.ndarray, "k m"]
    tol: float

    @property
    def invariant(self) -> Bool[np.ndarray, "k m"]:
        """Where the whole interval of the gap at 95 %, gap ± t·stderr, is within ± ``tol``; False where the error is not known."""
        reach = ndtri(0.975) if self.data_degrees is None else stdtrit(self.data_degrees, 0.975)
        with np.errstate(invalid="ignore"):
            return np.asarray(np.abs(self.gaps) + reach * self.stderrs <= self.tol)

    @property
    def similarity(self) -> Float[np.ndarray, "k k"]:
        """Of each pair of checkpoints, the changes to which both are invariant as a share of those to which either is.

        1 where neither is invariant to any. Mechanistically similar models are invariant to the same changes.
        """
        both = (self.invariant[:, None] & self.invariant[None, :]).sum(axis=-1)
        either = (self.invariant[:, None] | self.invariant[None, :]).sum(axis=-1)
        return np.where(either > 0, both / np.maximum(either, 1), 1.0)

    @property
    def dissimilarity(self) -> Float[np.ndarray, "k k"]:
        """Of each pair of checkpoints, the largest difference of their |gap| over all changes."""
        sizes = np.abs(self.gaps)
        with np.errstate(invalid="ignore"):
            return np.asarray(np.abs(sizes[:, None] - sizes[None, :]).max(axis=-1, initial=0.0))

    def gap(self, name: str, change: str) -> Estimate:
        """Of one checkpoint under one change.

        Raises:
            ValueError: there is no such checkpoint or change.
        """
        for asked, known in ((name, self.names), (change, self.changes)):
            if asked not in known:
                raise ValueError(f"Expected one of {', '.join(map(repr, known))}, found {asked!r}.")
        place = (self.names.index(name), self.changes.index(change))
        return Estimate(float(self.gaps[place]), float(self.stderrs[place]), self.data_degrees)

    def summary(self) -> tuple[str, ...]:
        """Gaps of each checkpoint."""
        readings = [
            f"{name}: "
            + ", ".join(
                f"{change} {with_error(float(self.gaps[row, column]), float(self.stderrs[row, column]), source='data')}"
                for column, change in enumerate(self.changes)
            )
            for row, name in enumerate(self.names)
        ]
        return f"{len(self.names)} checkpoints under {len(self.changes)} changes, tol {self.tol:g}", *readings
