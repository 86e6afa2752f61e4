"""One thing that a monitor does at a probe, and what it is expected to cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from theodolite.records import Record

# A probe is expected to cost what it did the last time, and a little more while curvature grows.
MARGIN = 1.1


@dataclass(eq=False)
class Probe:
    """A measure under its name.

    Args:
        name: in events and warnings.
        measure: what to call; a record is kept in the log.
        copy: whether it may write to the model, which is then put back from a copy.
        predicted: seconds that the next run is expected to take, None before anything is known.
    """

    name: str
    measure: Callable[[], Record | None]
    copy: bool = False
    predicted: float | None = None

    def learn(self, seconds: float) -> None:
        """Predict the next run from one that took so long."""
        self.predicted = MARGIN * seconds
