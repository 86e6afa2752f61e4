"""When a loss left the range it had kept to until a given step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from theodolite.forecasts.order import by_step
from theodolite.records import Record, Scalars, Stability


@dataclass(frozen=True, kw_only=True)
class Excursion:
    """A loss that left its range.

    Args:
        name: of the loss.
        step: first step at which it was outside.
        value: the loss there.
        limit: upper end of the range, infinite where no loss is known before.
        rule: the range in words.
        last_value: the last reading of that loss.
        came_back: whether that is inside again.
    """

    name: str
    step: int
    value: float
    limit: float
    rule: str
    last_value: float
    came_back: bool


def excursion(records: Iterable[Record], *, after: int) -> Excursion | None:
    """The first departure of any loss from its range at or after a step.

    Losses are those of the probe set in ``Stability`` and every value of ``Scalars`` whose name ends in ``loss``, each
    with a range of its own: finite, and above the highest finite loss up to ``after`` by no more than the larger of
    its size and the spread seen until then. For positive losses that is twice the highest. A loss without a reading
    until then is held to the range of the others: all are losses of one model.
    """
    losses = _losses(list(records))
    every = [reading for readings in losses.values() for reading in readings]
    found = [_departure(name, readings, every, after) for name, readings in losses.items()]
    return min((one for one in found if one is not None), key=lambda one: one.step, default=None)


def _losses(records: list[Record]) -> dict[str, list[tuple[int, float]]]:
    """Steps and values of each loss, by name."""
    losses: dict[str, list[tuple[int, float]]] = {}
    for scalars in by_step(records, Scalars):
        for name, value in scalars.values.items():
            if name.endswith("loss") and scalars.step is not None:
                losses.setdefault("training loss" if name == "loss" else repr(name), []).append((scalars.step, value))
    for reading in by_step(records, Stability):
        if reading.step is not None:
            losses.setdefault("loss of the probe set", []).append((reading.step, reading.loss))
    return losses


def _departure(
    name: str, readings: list[tuple[int, float]], every: list[tuple[int, float]], after: int
) -> Excursion | None:
    limit, rule = _range(_until(readings, after) or _until(every, after), after)
    step, value = next(((s, v) for s, v in readings if s >= after and not _inside(v, limit)), (None, 0.0))
    if step is None:
        return None
    last = readings[-1][1]
    return Excursion(
        name=name, step=step, value=value, limit=limit, rule=rule, last_value=last, came_back=_inside(last, limit)
    )


def _until(readings: list[tuple[int, float]], after: int) -> list[float]:
    return [value for step, value in readings if step <= after and math.isfinite(value)]


def _inside(value: float, limit: float) -> bool:
    return math.isfinite(value) and value <= limit


def _range(earlier: list[float], after: int) -> tuple[float, str]:
    if not earlier:
        return math.inf, "finite; no earlier loss is known"
    highest, spread = max(earlier), max(earlier) - min(earlier)
    limit = highest + max(abs(highest), spread)
    known = f"the highest loss up to step {after:,}, {highest:.4g}"
    margin = "doubled" if limit == 2 * highest else f"and {max(abs(highest), spread):.4g} more"
    return limit, f"finite and at most {limit:.4g} ({known}, {margin})"
