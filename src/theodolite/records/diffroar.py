"""Whether the inputs that an attribution ranks highest are those that a model can learn from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from theodolite.records.estimate import Estimate
from theodolite.records.record import Record
from theodolite.records.text import plural, with_error


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class DiffRoar(Record):
    """Accuracy of models retrained on the top and on the bottom share of the inputs by an attribution.

    Args:
        fractions: of the inputs kept.
        top: correct answers of each retrained model to each test sample, averaged over repeats, from the top-ranked inputs.
        bottom: the same from the bottom-ranked.
        top_runs: test accuracy of each repeat from the top-ranked inputs.
        bottom_runs: the same from the bottom-ranked.
        attribution: name of what ranked.
    """

    kind: ClassVar[str] = "diffroar"

    fractions: Float[np.ndarray, " k"]
    top: Float[np.ndarray, "k t"]
    bottom: Float[np.ndarray, "k t"]
    top_runs: Float[np.ndarray, "k r"]
    bottom_runs: Float[np.ndarray, "k r"]
    attribution: str = ""

    @property
    def scores(self) -> tuple[Estimate, ...]:
        """DiffROAR for every fraction: accuracy from the top less that from the bottom, positive where the attribution is right.

        The error adds that of the test set (a sample) to that of training (the repeats).
        """
        found = []
        for top, bottom, of_top, of_bottom in zip(self.top, self.bottom, self.top_runs, self.bottom_runs, strict=True):
            differences, runs = top - bottom, of_top - of_bottom
            samples, repeats = len(differences), len(runs)
            of_data = differences.std(ddof=1) / np.sqrt(samples) if samples > 1 else np.nan
            of_training = runs.std(ddof=1) / np.sqrt(repeats) if repeats > 1 else np.nan
            value = float(differences.mean()) if samples else float("nan")
            found.append(Estimate(value, float(np.hypot(of_data, of_training)), max(repeats - 1, 1)))
        return tuple(found)

    def summary(self) -> tuple[str, ...]:
        """Attribution, scores by fraction."""
        readings = [
            f"{100 * fraction:.3g} %: {with_error(score.value, score.stderr)}"
            for fraction, score in list(zip(self.fractions.tolist(), self.scores, strict=True))[:4]
        ]
        return f"{self.attribution}, {plural(self.top.shape[1], 'test sample')}", *readings
