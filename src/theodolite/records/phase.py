"""In which phase of training several runs ended: by their loss, what lies between them, and how alike they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import ClassVar, final

import numpy as np
from jaxtyping import Float

from theodolite.records.estimate import Estimate
from theodolite.records.record import Record
from theodolite.records.text import number

MEANINGS = {
    "I": "large loss, ends not connected",
    "II": "large loss, ends connected",
    "III": "small loss, ends not connected",
    "IV": "small loss, ends connected",
    "IV-A": "small loss, ends connected, unlike each other",
    "IV-B": "small loss, ends connected, alike",
}


@final
@dataclass(frozen=True)
class Phase:
    """A phase, and what else it may be.

    Args:
        name: ``"I"``, ``"II"``, ``"III"``, ``"IV-A"`` or ``"IV-B"``; ``"IV"`` without a threshold of similarity, ``"unknown"``
            where the loss or the mode connectivity is NaN.
        candidates: phases that the intervals of the metrics allow, that of the name among them.
        loss: threshold above which the loss counts as large.
        connectivity: mode connectivity below which ends count as not connected.
        similarity: CKA from which on they count as alike, None without.
    """

    name: str
    candidates: tuple[str, ...]
    loss: float
    connectivity: float
    similarity: float | None

    def __str__(self) -> str:
        others = [name for name in self.candidates if name != self.name]
        alike = "" if self.similarity is None else f", CKA from {number(self.similarity)} on is alike"
        thresholds = (
            f"loss above {number(self.loss)} is large, mode connectivity below {number(self.connectivity)} is a barrier"
        )
        errors = f"; within errors also {', '.join(others)}" if others else ""
        return f"phase {self.name} ({MEANINGS.get(self.name, 'a metric is NaN')}{errors}; {thresholds}{alike})"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class PhaseMetrics(Record):
    """Runs of one setting that differ in their seeds.

    Args:
        names: of the runs.
        losses: at the end of each.
        loss_stderrs: their standard errors from the data.
        test_losses: the same on other data; NaN without.
        sharpness: λ_max of the Hessian of each; NaN where it was not measured.
        first: name of the first run of each pair.
        second: of the second.
        connectivities: mode connectivity of each pair, ½(L₁ + L₂) − L(t*): negative for a barrier.
        connectivity_stderrs: their standard errors from the data.
        similarities: debiased CKA of each pair.
        similarity_stderrs: their standard errors over samples.
        distances: between the parameters of each pair.
        initial: loss before training, the scale of the others.
        curve: which path was read.
    """

    kind: ClassVar[str] = "phase_metrics"
    lengths: ClassVar[Mapping[str, str]] = {"names": "k", "first": "p", "second": "p"}

    names: tuple[str, ...]
    losses: Float[np.ndarray, " k"]
    loss_stderrs: Float[np.ndarray, " k"]
    test_losses: Float[np.ndarray, " k"]
    sharpness: Float[np.ndarray, " k"]
    first: tuple[str, ...]
    second: tuple[str, ...]
    connectivities: Float[np.ndarray, " p"]
    connectivity_stderrs: Float[np.ndarray, " p"]
    similarities: Float[np.ndarray, " p"]
    similarity_stderrs: Float[np.ndarray, " p"]
    distances: Float[np.ndarray, " p"]
    initial: float
    curve: str

    @property
    def loss(self) -> Estimate:
        """Mean over runs; the error is that from the data, which they share, and does not tell of other seeds."""
        return _mean(self.losses, self.loss_stderrs, self.data_degrees)

    @property
    def connectivity(self) -> Estimate:
        """Mean over pairs, with the error from the data."""
        return _mean(self.connectivities, self.connectivity_stderrs, self.data_degrees)

    @property
    def similarity(self) -> Estimate:
        """Mean over pairs, with the error over samples."""
        return _mean(self.similarities, self.similarity_stderrs, None)

    @property
    def gap(self) -> float:
        """Mean test loss less mean loss; NaN without other data."""
        return float((self.test_losses - self.losses).mean()) if self.names else float("nan")

    def phase(
        self, *, loss: float = 0.1, connectivity: float = 0.01, similarity: float | None = None, level: float = 0.95
    ) -> Phase:
        """The phase in the taxonomy of loss landscapes.

        A loss is large above a share of that before training. Ends are not connected where the mode connectivity is below minus a
        share of it; where it is above, they count as connected, also where the curve leads below them.

        Args:
            loss: share of the loss before training.
            connectivity: share of the same.
            similarity: CKA that parts IV-A from IV-B; such as the median over a sweep, which ``phases`` takes.
            level: coverage of the interval of each metric, for the other phases that their errors allow.

        References:
            Yang et al., "Taxonomizing local versus global structure in neural network loss landscapes" (2021).
        """
        limits = (loss * self.initial, -connectivity * self.initial, similarity)
        metrics = (self.loss, self.connectivity, self.similarity)
        name = _classified(metrics[0].value, metrics[1].value, metrics[2].value, limits)
        ends = tuple(_ends(metric, level) for metric in metrics)
        found = {_classified(first, second, third, limits) for first, second, third in product(*ends)} | {name}
        return Phase(name, tuple(sorted(found)), *limits)

    def summary(self) -> tuple[str, ...]:
        """Loss, connectivity, similarity."""
        subject = f"{len(self.names)} runs, {self.curve}"
        if not self.names:
            return subject, "no runs"
        readings = [f"loss {self.loss} of {number(self.initial)} before training"]
        if self.connectivities.size:
            readings += [f"mode connectivity {self.connectivity}", f"CKA {self.similarity}"]
        sharpness = float(self.sharpness.mean())
        return subject, *readings, *((f"λ_max {number(sharpness)}",) if np.isfinite(sharpness) else ())


def phases(
    records: Sequence[PhaseMetrics], *, loss: float = 0.1, connectivity: float = 0.01, level: float = 0.95
) -> tuple[Phase, ...]:
    """The phases of a sweep over settings; CKA is parted at its median over the sweep.

    Args:
        records: one a setting.
        loss: as for ``PhaseMetrics.phase``.
        connectivity: the same.
        level: the same.

    References:
        Yang et al., "Taxonomizing local versus global structure in neural network loss landscapes" (2021).
    """
    known = [record.similarity.value for record in records if np.isfinite(record.similarity.value)]
    median = float(np.median(known)) if known else None
    return tuple(
        record.phase(loss=loss, connectivity=connectivity, similarity=median, level=level) for record in records
    )


def _mean(values: Float[np.ndarray, " s"], stderrs: Float[np.ndarray, " s"], degrees: int | None) -> Estimate:
    if not values.size:
        return Estimate(float("nan"), float("nan"))
    return Estimate(float(values.mean()), float(stderrs.mean()), degrees)


def _ends(metric: Estimate, level: float) -> tuple[float, ...]:
    low, high = metric.interval(level)
    return (metric.value,) if np.isnan(low + high) else (low, high)


def _classified(loss: float, connectivity: float, similarity: float, limits: tuple[float, float, float | None]) -> str:
    if np.isnan(loss) or np.isnan(connectivity):
        return "unknown"
    barrier = connectivity < limits[1]
    if loss > limits[0]:
        return "I" if barrier else "II"
    if barrier:
        return "III"
    if limits[2] is None or np.isnan(similarity):
        return "IV"
    return "IV-B" if similarity >= limits[2] else "IV-A"
