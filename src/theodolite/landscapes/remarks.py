"""What a record of losses says of its making: cost, context, and what a reader must know."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from theodolite.landscapes.readings import Reading
from theodolite.problem import Problem
from theodolite.problem.arrays import to_numpy
from theodolite.records import Cost
from theodolite.records.text import plural


def cost(readings: Sequence[Reading], *, started: float) -> Cost:
    """Every reading that was taken, once: the centre may stand in several places."""
    return Cost(forwards=float(len({id(reading) for reading in readings})), seconds=time.perf_counter() - started)


def context(problem: Problem, *, name: str, center: Reading) -> dict[str, Any]:
    """What was surveyed, and what its errors and directions rest on."""
    found = problem.context()
    if not center.partial:  # else its chunks were not counted
        found |= {"chunks": int((center.weights > 0).sum())}
    if "filter" in name.split(", "):
        found["one_dimensional"] = "zero"
    return found


def remarks(readings: Sequence[Reading], center: Reading) -> tuple[str, ...]:
    """Counts of readings that are not finite, a centre off the grid, and why errors are missing."""
    found = []
    lost = sum(not math.isfinite(reading.loss) for reading in readings)
    if lost:
        found.append(f"{lost:,} of {len(readings):,} losses are not finite")
    if not any(reading is center for reading in readings):
        found.append(f"the span leaves out the centre, where the loss is {center.loss:.6g}")
    if not math.isfinite(center.loss):
        found.append(f"the loss at the centre is {center.loss}{_where(center)}, so no rise above it has an error")
    elif (center.weights > 0).sum() < 2:
        found.append("the data are a single chunk, so the error from the data is not known; cut them into batches")
    return tuple(found)


def _where(center: Reading) -> str:
    """The chunks of the data on which a loss is not finite, counted from 1."""
    if len(center.weights) == 1:  # read no further, or all there is
        return ": not finite on the first chunk of the data" + (", and read no further" if center.partial else "")
    places = np.flatnonzero(~np.isfinite(center.totals)) + 1
    if not places.size:
        return ""
    named = ", ".join(map(str, places[:4])) + (", …" if places.size > 4 else "")
    return f": not finite on {plural(places.size, 'chunk')} of {len(center.totals)} of the data, {named}"


def kept(
    directions: Sequence[Float[Tensor, " n"]], *, below: int
) -> tuple[tuple[Float[np.ndarray, " n"], ...] | None, tuple[str, ...]]:
    """Directions as arrays where they fit, else None, with a note where any were to be kept."""
    size = sum(direction.numel() * max(direction.element_size(), 4) for direction in directions)
    if size > below:
        return None, () if below <= 0 else (
            f"directions dropped: {size:,} bytes, more than keep_directions_below={below:,}",
        )
    return tuple(to_numpy(direction) for direction in directions), ()
