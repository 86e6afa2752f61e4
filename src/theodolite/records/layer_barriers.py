"""What stands between two checkpoints in each layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from theodolite.records.record import Record
from theodolite.records.text import number, with_error


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class LayerBarriers(Record):
    """Barriers of the paths on which a single layer goes from one checkpoint to the other.

    The first column is of paths on which all other layers are those of the first checkpoint, the second of those of the
    second. A barrier is above the chord between the two ends of its own path.

    Args:
        layers: names.
        barriers: of each.
        stderrs: their standard errors from the data.
        predicted: what first and second derivatives at both ends of each path predict.
        predicted_stderrs: their standard errors.
        rises: loss with the layer of the other checkpoint minus loss of the checkpoint.
        rise_stderrs: their standard errors.
        distances: between the two values of each layer.
        points: positions on each path.
    """

    kind: ClassVar[str] = "layer_barriers"
    lengths: ClassVar[Mapping[str, str]] = {"layers": "l"}

    layers: tuple[str, ...]
    barriers: Float[np.ndarray, "l 2"]
    stderrs: Float[np.ndarray, "l 2"]
    predicted: Float[np.ndarray, "l 2"]
    predicted_stderrs: Float[np.ndarray, "l 2"]
    rises: Float[np.ndarray, "l 2"]
    rise_stderrs: Float[np.ndarray, "l 2"]
    distances: Float[np.ndarray, " l"]
    points: int

    def summary(self) -> tuple[str, ...]:
        """The layer with the highest barrier, and the one whose exchange costs most."""
        subject = f"{len(self.layers)} layers, {self.points} points each"
        if not self.layers or not np.isfinite(self.barriers).any() or not np.isfinite(self.rises).any():
            return subject, "no barrier is finite"
        barriers, rises = (np.where(np.isfinite(values), values, -np.inf) for values in (self.barriers, self.rises))
        row, column = np.unravel_index(barriers.argmax(), barriers.shape)
        highest = with_error(float(barriers[row, column]), float(self.stderrs[row, column]), source="data")
        costly = int(rises.max(axis=1).argmax())
        return (
            subject,
            f"highest barrier {highest} in {self.layers[int(row)]}",
            f"exchanging {self.layers[costly]} costs most, {number(float(rises[costly].max()))}",
        )
