"""What a training run says of itself: scalars, events and snapshots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from theodolite.records.record import Record
from theodolite.records.text import number


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Scalars(Record):
    """Named numbers of one optimiser step, as the training loop saw them (``loss``, ``lr``, …)."""

    kind: ClassVar[str] = "scalars"

    values: Mapping[str, float]

    def summary(self) -> tuple[str, ...]:
        """The numbers by name."""
        return "", ", ".join(f"{name} = {number(value)}" for name, value in self.values.items()) or "nothing"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Event(Record):
    """Something that happened: a run started or ended, a probe failed, was deferred or switched off.

    Args:
        name: ``"started"``, ``"ended"``, ``"interrupted"``, ``"probe failed"``, ``"probe deferred"``, …
        message: what happened, in one sentence.
    """

    kind: ClassVar[str] = "event"

    name: str
    message: str

    def summary(self) -> tuple[str, ...]:
        """Name and message."""
        return self.name, self.message


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Snapshot(Record):
    """Parameters at one step, flattened, to draw the trajectory.

    Args:
        parameters: θ.
    """

    kind: ClassVar[str] = "snapshot"

    parameters: Float[np.ndarray, " n"]

    def summary(self) -> tuple[str, ...]:
        """Size and norm."""
        return f"n={self.parameters.size:,}", f"‖θ‖ = {number(float(np.linalg.norm(self.parameters)))}"
