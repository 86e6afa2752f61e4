"""Where the sharpness crossed its bound and the loss then left its range, as marks and words of a figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from theodolite.forecasts import edge_of_stability
from theodolite.records import Record, Stability
from theodolite.records.text import plural
from theodolite.reports.figures.description import Axis, Band, Mark, Rule
from theodolite.reports.figures.scales import position
from theodolite.reports.wording import number


@dataclass(frozen=True, kw_only=True)
class Departure:
    """The loss that left its range.

    Args:
        step: first step outside.
        name: of the loss.
        value: the loss there.
        limit: upper end of its range.
    """

    step: int
    name: str
    value: float
    limit: float


def crossing(readings: Sequence[Stability]) -> Stability | None:
    """The first reading whose stability ratio exceeds 1, in order of step.

    Args:
        readings: of one run.

    Returns:
        The record, None if all are stable or not known.
    """
    unstable = [reading for reading in readings if reading.step is not None and reading.crossed]
    return min(unstable, key=step_of, default=None)


def departure(records: Sequence[Record]) -> Departure | None:
    """Where a loss left its range, as the finding on the edge of stability says it, so that page and figure agree.

    Args:
        records: of one run.

    Returns:
        The departure, None if no loss left its range, or no stability ratio is known to count from.
    """
    for finding in edge_of_stability(records):
        said = finding.evidence
        if "loss_left_step" in said:
            return Departure(
                step=int(said["loss_left_step"]),
                name=str(said["loss"]),
                value=float(said["loss_value"]),
                limit=float(said["loss_limit"]),
            )
    return None


def crossing_marks(first: Stability | None, left: Departure | None, *, above: Axis) -> list[Mark]:
    """For the panel of the loss: the crossing, the labelled departure, and the stretch of warning between them.

    Args:
        first: the crossing.
        left: the departure.
        above: axis of the loss, which gives the stretch its height.

    Returns:
        Marks to be drawn beneath the readings.
    """
    marks: list[Mark] = [*_stretch(first, left, above, labelled=True)]
    if first is not None:
        marks.append(Rule(at=float(step_of(first)), direction="vertical", color="crossing"))
    if left is not None:
        marks.append(_departure_rule(left, label=f"step {left.step:,}: the loss left its range"))
    return marks


def bound_marks(first: Stability | None, left: Departure | None, *, below: Axis) -> list[Mark]:
    """The same for the panel of the sharpness, where the crossing has the label.

    Args:
        first: the crossing.
        left: the departure.
        below: axis of the sharpness; the label stands at the end that is further from the bound.

    Returns:
        Marks to be drawn beneath the readings.
    """
    marks: list[Mark] = [*_stretch(first, left, below, labelled=False)]
    if first is not None:
        marks.append(
            Rule(
                at=float(step_of(first)),
                direction="vertical",
                color="crossing",
                label=f"step {first.step:,}: above the bound",
                end="head" if position(first.threshold, below) < 0.25 else "foot",
            )
        )
    if left is not None:
        marks.append(_departure_rule(left, label=""))
    return marks


def departure_words(first: Stability | None, left: Departure | None) -> str:
    """A sentence for the caption, empty if no loss left its range."""
    if left is None:
        return ""
    beyond = f", beyond {number(left.limit)}" if np.isfinite(left.limit) else ""
    text = f"The {left.name} left its range at step {left.step:,} ({number(left.value)}{beyond})"
    return f"{text}, {plural(left.step - step_of(first), 'step')} later." if first is not None else f"{text}."


def step_of(record: Record) -> int:
    """Its step, before all others where it has none."""
    return -1 if record.step is None else record.step


def _stretch(first: Stability | None, left: Departure | None, y: Axis, *, labelled: bool) -> list[Band]:
    if first is None or left is None or left.step <= step_of(first):
        return []
    ends = np.array([step_of(first), left.step], dtype=np.float64)
    return [
        Band(
            x=ends,
            low=np.full(2, y.limits[0]),
            high=np.full(2, y.limits[1]),
            color="ink",
            alpha=0.07,
            label=f"{plural(left.step - step_of(first), 'step')} from crossing to departure" if labelled else "",
        )
    ]


def _departure_rule(left: Departure, *, label: str) -> Rule:
    """Labelled at the foot: whatever left its range lies high from there on."""
    return Rule(at=float(left.step), direction="vertical", color="ink", label=label)
