"""Losses along curves between two checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from theodolite.records.barriers import ABOVE, HEIGHTS, Above, deviations, heights
from theodolite.records.estimate import Estimate
from theodolite.records.record import Record
from theodolite.records.text import number, with_error


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Path(Record):
    """Losses L(γ(t)) along one or several curves γ from one checkpoint to another.

    Args:
        ts: positions, from 0 to 1.
        profiles: what each curve is: ``"linear"``, ``"linear, recalibrated"``, ``"aligned"``, ``"bezier"``, ….
        losses: of each at every position; NaN and infinity are readings.
        stderrs: standard errors of the deviations from the chord, as estimates for what the data are a sample of (jackknife
            over chunks, same chunks at all positions); NaN with one chunk.
        height_stderrs: of the barriers above chord, larger end and mean of the ends, and of the mode connectivity.
        distances: length of each curve through its positions; of the linear one ‖θ₂ − θ₁‖.
        predicted: deviation of the linear profile from its chord, predicted from first and second derivatives at both ends;
            None if not asked for.
        predicted_stderrs: their standard errors.
    """

    kind: ClassVar[str] = "path"
    lengths: ClassVar[Mapping[str, str]] = {"profiles": "p"}

    ts: Float[np.ndarray, " a"]
    profiles: tuple[str, ...]
    losses: Float[np.ndarray, "p a"]
    stderrs: Float[np.ndarray, "p a"]
    height_stderrs: Float[np.ndarray, "p 4"]
    distances: Float[np.ndarray, " p"]
    predicted: Float[np.ndarray, " a"] | None = None
    predicted_stderrs: Float[np.ndarray, " a"] | None = None

    @property
    def deviations(self) -> Float[np.ndarray, "p a"]:
        """Losses minus the chord between the ends of each profile."""
        return deviations(self.losses, self.ts)

    def barrier(self, profile: str | None = None, *, above: Above = "chord") -> Estimate:
        """The largest rise of a profile above what its ends promise; 0 where it never rises.

        Args:
            profile: its name, the first by default.
            above: what the rise is measured from: ``"chord"`` between the ends (Entezari et al.), ``"mean"`` of the ends
                (Frankle et al.) or the ``"larger"`` end.

        Raises:
            ValueError: the record has no such profile or definition.
        """
        if above not in ABOVE:
            raise ValueError(f"Expected above to be one of {', '.join(map(repr, ABOVE))}, found {above!r}.")
        return self._height(profile, above)

    def connectivity(self, profile: str | None = None) -> Estimate:
        """½(L(0) + L(1)) − L(t*) at the farthest position: negative for a barrier, about 0 where the ends are connected.

        Args:
            profile: its name, the first by default.

        Raises:
            ValueError: the record has no such profile.
        """
        return self._height(profile, "connectivity")

    @property
    def predicted_barrier(self) -> Estimate:
        """The largest predicted deviation of the linear profile; NaN where none was predicted."""
        if self.predicted is None or self.predicted_stderrs is None or not self.ts.size:
            return Estimate(float("nan"), float("nan"))
        top = int(np.argmax(self.predicted))
        return Estimate(float(self.predicted[top]), float(self.predicted_stderrs[top]), self.data_degrees)

    @property
    def prediction_error(self) -> float:
        """How far the prediction is off at the positions next to the ends, as a share of what is measured there.

        The prediction is local: where this is not small it says nothing of the middle. NaN where none was made, or the line was
        read with other statistics of BatchNorm alone.
        """
        if self.predicted is None or self.ts.size < 3 or "linear" not in self.profiles:
            return float("nan")
        measured, predicted = self.deviations[self._row("linear"), [1, -2]], self.predicted[[1, -2]]
        with np.errstate(all="ignore"):
            return float(np.abs(predicted - measured).max() / np.abs(measured).max())

    def summary(self) -> tuple[str, ...]:
        """Profiles and their barriers above the chord."""
        found = [self.barrier(name) for name in self.profiles]
        readings = [
            f"{name} {'0' if self._is_rounding(barrier) else with_error(barrier.value, barrier.stderr, source='data')}"
            for name, barrier in zip(self.profiles, found, strict=True)
        ]
        if self.predicted is not None:
            readings.append(f"predicted {number(self.predicted_barrier.value)}")
        lost = int((~np.isfinite(self.losses)).sum())
        missing = (f"{lost:,} of {self.losses.size:,} NOT FINITE",) if lost else ()
        return f"barrier above the chord, {self.ts.size} points", *readings, *missing

    def _is_rounding(self, barrier: Estimate) -> bool:
        """Whether a barrier and its error are no more than the rounding of the losses, four units in their last place."""
        losses = np.abs(self.losses[np.isfinite(self.losses)])
        type_of = np.float32 if self.context.get("dtype") == "float32" else np.float64
        tol = 4 * float(np.finfo(type_of).eps) * float(losses.max(initial=0.0))
        return abs(barrier.value) <= tol and not barrier.stderr > tol

    def _height(self, profile: str | None, name: str) -> Estimate:
        row, column = self._row(profile), HEIGHTS.index(name)
        value = heights(self.losses[row], self.ts)[column]
        return Estimate(float(value), float(self.height_stderrs[row, column]), self.data_degrees)

    def _row(self, profile: str | None) -> int:
        if profile is None:
            return 0
        if profile not in self.profiles:
            raise ValueError(f"Expected a profile among {', '.join(map(repr, self.profiles))}, found {profile!r}.")
        return self.profiles.index(profile)
