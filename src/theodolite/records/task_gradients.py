"""How the gradients of several losses on shared parameters agree or conflict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int

from theodolite.records.estimate import Estimate
from theodolite.records.gram import pairs
from theodolite.records.groups import GroupAlignment
from theodolite.records.record import Record
from theodolite.records.text import number, plural, with_error


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TaskGradients(Record):
    """Dot products of the gradients of K tasks on the same samples, over the parameters that more than one task reaches.

    ``dots`` are those of the gradients on these samples, which a step would take. As tasks share the noise of the samples,
    ⟨ḡ_a, ḡ_b⟩ is biased as an estimate for the population by the covariance of that noise; ``unbiased`` are means over pairs of
    different chunks of data, and conflicts are judged by them. All errors leave out one chunk at a time, for all tasks together.

    Args:
        tasks: their names.
        losses: of the tasks.
        loss_stderrs: their standard errors.
        dots: ⟨ḡ_a, ḡ_b⟩.
        unbiased: the same without bias; the squared norms on the diagonal may be negative where noise dominates.
        unbiased_stderrs: their standard errors, NaN with fewer than three chunks.
        norm_stderrs: of ‖ḡ_a‖.
        cosine_stderrs: of the cosines between the gradients.
        layers: names of the layers.
        layer_dots: ``dots`` of each layer; those of all layers add up to the whole.
        layer_unbiased: ``unbiased`` of each layer.
        layer_unbiased_stderrs: their standard errors.
        layer_cosine_stderrs: of the cosines of each layer.
        samples: of the data, for each task.
        shared: number of parameters that more than one task reaches.
        size: number of parameters n.
    """

    kind: ClassVar[str] = "task_gradients"
    lengths: ClassVar[Mapping[str, str]] = {"tasks": "k", "layers": "L"}

    tasks: tuple[str, ...]
    losses: Float[np.ndarray, " k"]
    loss_stderrs: Float[np.ndarray, " k"]
    dots: Float[np.ndarray, "k k"]
    unbiased: Float[np.ndarray, "k k"]
    unbiased_stderrs: Float[np.ndarray, "k k"]
    norm_stderrs: Float[np.ndarray, " k"]
    cosine_stderrs: Float[np.ndarray, "k k"]
    layers: tuple[str, ...]
    layer_dots: Float[np.ndarray, "L k k"]
    layer_unbiased: Float[np.ndarray, "L k k"]
    layer_unbiased_stderrs: Float[np.ndarray, "L k k"]
    layer_cosine_stderrs: Float[np.ndarray, "L k k"]
    samples: Int[np.ndarray, " k"]
    shared: int
    size: int

    @property
    def norms(self) -> Float[np.ndarray, " k"]:
        """‖ḡ_a‖ over the shared parameters."""
        with np.errstate(invalid="ignore"):
            return np.asarray(np.sqrt(np.diagonal(self.dots)))

    @property
    def cosines(self) -> Float[np.ndarray, "k k"]:
        """Cosines between the gradients, NaN for one that vanishes."""
        return shared_cosines(self.dots)

    @property
    def layer_cosines(self) -> Float[np.ndarray, "L k k"]:
        """The same in every layer: NaN in one that a task does not reach."""
        return shared_cosines(self.layer_dots)

    @property
    def magnitude_similarity(self) -> Float[np.ndarray, "k k"]:
        """Φ = 2‖g_a‖‖g_b‖/(‖g_a‖² + ‖g_b‖²), 1 for equal norms.

        References:
            Yu et al., "Gradient surgery for multi-task learning" (2020).
        """
        a, b = self.norms[:, None], self.norms
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(2 * a * b / (a**2 + b**2))

    @property
    def curvature_bounding(self) -> Float[np.ndarray, "k k"]:
        """ξ = (1 − cos²)‖g_a − g_b‖²/‖g_a + g_b‖², of the same paper: infinite for opposite gradients, of which cos² = 1 too."""
        squares = np.diagonal(self.dots)
        both = squares[:, None] + squares
        apart, together = np.maximum(both - 2 * self.dots, 0.0), np.maximum(both + 2 * self.dots, 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            found = (1 - np.square(self.cosines)) * apart / together
        return np.where((together <= 1e-15 * both) & (both > 0), np.inf, found)

    @property
    def conflict_rate(self) -> float:
        """Share of the pairs of tasks whose gradients on these samples oppose each other, whether beyond chance or not."""
        found = pairs(self.dots)
        return float((found < 0).mean()) if found.size else float("nan")

    @property
    def descents(self) -> Float[np.ndarray, " k"]:
        """⟨g_a, ḡ⟩ with the mean ḡ of all tasks: a step along −ḡ raises the loss of a task where this is negative."""
        return np.asarray(self.dots.mean(axis=1))

    @property
    def alignment(self) -> GroupAlignment:
        """Dot products without bias, cosines, and which tasks conflict beyond chance: the conflict graph."""
        return self._alignment(self.unbiased, self.unbiased_stderrs, self.cosines, self.cosine_stderrs)

    @property
    def layer_alignment(self) -> Mapping[str, GroupAlignment]:
        """The same in every layer: the map of conflicts by layer."""
        parts = zip(
            self.layers,
            self.layer_unbiased,
            self.layer_unbiased_stderrs,
            self.layer_cosines,
            self.layer_cosine_stderrs,
            strict=True,
        )
        return {name: self._alignment(*matrices) for name, *matrices in parts}

    def conflicts(self, *, level: float = 0.95) -> tuple[tuple[str, str], ...]:
        """Pairs of tasks whose gradients oppose each other beyond chance, the strongest first, as in ``GroupAlignment``."""
        return self.alignment.conflicts(level=level)

    def between(self, a: str, b: str) -> Estimate:
        """Cosine between the gradients of two tasks.

        Raises:
            ValueError: there is no such task.
        """
        for name in (a, b):
            if name not in self.tasks:
                raise ValueError(f"Expected one of the tasks {', '.join(self.tasks)}; found {name!r}.")
        where = self.tasks.index(a), self.tasks.index(b)
        return Estimate(float(self.cosines[where]), float(self.cosine_stderrs[where]), self.data_degrees)

    def summary(self) -> tuple[str, ...]:
        """Tasks, the pair with the smallest cosine, conflicts beyond chance."""
        counted = f"{plural(len(self.tasks), 'task')}, {plural(int(self.samples.max(initial=0)), 'sample')}"
        subject = f"{counted}, n={self.size:,}, {self.shared:,} shared"
        cosines = np.where(np.triu(np.ones_like(self.dots), k=1) > 0, self.cosines, np.nan)
        if not np.isfinite(cosines).any():
            return subject, "no cosines"
        a, b = np.unravel_index(int(np.nanargmin(cosines)), cosines.shape)
        least = with_error(float(cosines[a, b]), float(self.cosine_stderrs[a, b]), source="data")
        found = self.conflicts()
        edges = ", ".join(f"{first} × {second}" for first, second in found[:3]) + (", …" if len(found) > 3 else "")
        return (
            subject,
            f"smallest cosine {least} of {self.tasks[a]} and {self.tasks[b]}",
            f"{plural(len(found), 'conflict')} beyond chance{f': {edges}' if edges else ''}",
            f"{number(100 * self.conflict_rate)} % of pairs oppose",
        )

    def _alignment(
        self,
        dots: Float[np.ndarray, "k k"],
        stderrs: Float[np.ndarray, "k k"],
        found: Float[np.ndarray, "k k"],
        errors: Float[np.ndarray, "k k"],
    ) -> GroupAlignment:
        between = np.where(np.eye(len(dots), dtype=np.bool_), np.nan, stderrs)
        nothing = float("nan")
        return GroupAlignment(
            self.tasks, self.samples, dots, between, found, errors, nothing, nothing, self.data_degrees
        )


def shared_cosines(dots: Float[np.ndarray, "*c k k"]) -> Float[np.ndarray, "*c k k"]:
    """Cosines from dot products, NaN for a vector that vanishes."""
    with np.errstate(divide="ignore", invalid="ignore"):
        lengths = np.sqrt(np.maximum(np.diagonal(dots, axis1=-2, axis2=-1), 0.0))
        return np.asarray(dots / (lengths[..., :, None] * lengths[..., None, :]))
