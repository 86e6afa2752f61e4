"""A share of the training time that probes may take."""

from __future__ import annotations

import time


class Budget:
    """Holds the time of probes under a fraction of the time since the start.

    Args:
        fraction: largest share, or None for no limit.
    """

    def __init__(self, fraction: float | None) -> None:
        self.fraction = fraction
        self.spent = 0.0
        self._started = time.perf_counter()

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._started

    @property
    def share(self) -> float:
        """Share of the time so far that probes took."""
        return self.spent / max(self.elapsed, 1e-12)

    def affords(self, seconds: float) -> bool:
        """Whether a probe of this length keeps the share."""
        return self.fraction is None or self.spent + seconds <= self.fraction * self.elapsed

    def charge(self, seconds: float) -> None:
        """Account for time taken by anything but training."""
        self.spent += seconds
