"""Points that were read in reduced precision, some of them read again without."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from torch import Tensor

from theodolite.landscapes.asked import Asked
from theodolite.landscapes.reading import Reading
from theodolite.landscapes.readings import read_grid
from theodolite.problem import Problem

CHECKED = 9


def rechecked(
    problem: Problem,
    coordinates: Float[np.ndarray, "g k"],
    readings: Sequence[Reading],
    directions: Sequence[Float[Tensor, " n"]],
    *,
    center: Reading,
    asked: Asked,
) -> tuple[list[Reading], float]:
    """The readings, exact next to the centre and at nine losses from lowest to highest, and the largest error of those nine.

    Near a minimum a loss is small, and its absolute error is what a plane shows: the centre and what surrounds it are always
    read in full precision. So is what is not finite, as float16 ends at 65,504 where a loss does not.

    Cost: at most 18 forward passes and one for each loss that is not finite; none where nothing was reduced.

    Returns:
        Readings in their order; the largest difference at the nine as a share of the range of finite losses.
    """
    if asked.manner.autocast is None:
        return list(readings), 0.0
    losses = np.array([reading.loss for reading in readings])
    order = np.argsort(losses)
    order = order[np.isfinite(losses[order])]
    spaced = order[np.unique(np.round(np.linspace(0, order.size - 1, min(CHECKED, order.size))).astype(int))]
    near = np.argsort(np.abs(coordinates).max(axis=1), kind="stable")[:CHECKED]
    chosen = np.unique(np.concatenate([spaced, near, np.flatnonzero(~np.isfinite(losses))]))
    exactly = asked.exactly
    fresh = read_grid(
        problem, coordinates[chosen], directions, center=center, manner=exactly.manner, also=exactly.beside
    )
    found, missed = list(readings), 0.0
    for index, reading in zip(chosen.tolist(), fresh, strict=True):
        if index in spaced:
            missed = max(missed, abs(losses[index] - reading.loss))
        found[index] = reading
    width = float(np.ptp(losses[np.isfinite(losses)])) if order.size else 0.0
    return found, missed / width if width > 0 else 0.0
