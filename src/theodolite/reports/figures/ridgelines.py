"""Slices of the loss at several moments of a training, one above the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from theodolite.records import Line as LineRecord
from theodolite.reports.figures.description import Axis, Band, Figure, Line, Mark, Panel, Rule
from theodolite.reports.figures.lines import DRAWN
from theodolite.reports.figures.scales import ends_of
from theodolite.reports.wording import number, slug

TALL = 2.2  # rows that the range of all losses spans
MOST = 24


def ridgelines(records: Sequence[LineRecord]) -> Figure:
    """One slice a step, each on a base line of its own, all on one scale.

    Slices of one step with several seeds are drawn as their median within the band of all.

    Args:
        records: lines of one name with steps, on the same positions.

    Returns:
        A figure of one panel.

    Raises:
        ValueError: fewer than two steps, or lines that differ in name or positions.
    """
    steps = _by_step(records)
    shown = list(steps)
    if len(shown) > MOST:
        shown = [shown[place] for place in np.unique(np.linspace(0, len(shown) - 1, MOST).astype(int))]
    losses = np.stack([record.losses for step in shown for record in steps[step]])
    finite = losses[np.isfinite(losses)]
    logarithmic = bool(finite.size and finite.min() > 0 and finite.max() >= 10 * finite.min())
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    alphas = records[0].alphas
    marks: list[Mark] = [Rule(at=0.0, direction="vertical", color="faint", width=0.8)]
    for place in reversed(range(len(shown))):  # the lower ones stand in front
        drawn = np.stack([_heights(each.losses, low, high, logarithmic=logarithmic) for each in steps[shown[place]]])
        marks += _ridge(alphas, place, drawn)
    norms = [record.direction_norm for step in shown for record in steps[step]]
    name = records[0].name
    return Figure(
        name=slug(f"ridgelines-{name}"),
        title=f"Slices along {_article(DRAWN.get(name, name))} direction over training",
        caption=_caption(steps, shown, low, high, norms, logarithmic=logarithmic),
        limits=(
            "One direction, or a few, of all: what narrows across it leaves no mark. A filter-normalised direction is drawn with "
            "one seed and brought to the weights of each step, so that slices of different steps are along different vectors."
        ),
        panels=(
            Panel(
                marks=tuple(marks),
                x=Axis(label="α (units of the direction at each step)", limits=ends_of(alphas)),
                y=Axis(
                    label="optimiser step",
                    limits=(-0.4, len(shown) - 1 + TALL + 0.15),
                    names=tuple(f"{step:,}" for step in shown),
                ),
            ),
        ),
        height=int(min(140 + 30 * (len(shown) + TALL), 640)),
    )


def _by_step(records: Sequence[LineRecord]) -> dict[int, list[LineRecord]]:
    steps: dict[int, list[LineRecord]] = {}
    for record in records:
        if record.step is not None:
            steps.setdefault(record.step, []).append(record)
    if len(steps) < 2:
        raise ValueError(f"Expected lines at two steps or more, found {len(steps)} among {len(records)} lines.")
    first = records[0]
    for record in records:
        if record.name != first.name or not np.array_equal(record.alphas, first.alphas):
            raise ValueError(
                f"Expected lines of one name on the same positions, found {record.name!r} with {record.alphas.size} beside "
                f"{first.name!r} with {first.alphas.size}. Draw each kind by itself."
            )
    return dict(sorted(steps.items()))


def _heights(losses: Float[np.ndarray, " a"], low: float, high: float, *, logarithmic: bool) -> Float[np.ndarray, " a"]:
    """Rows above the base line."""
    values = np.where(np.isfinite(losses), losses, np.nan)
    if not high > low:
        return values * 0
    if logarithmic:
        return np.asarray(TALL * np.log(values / low) / np.log(high / low))
    return np.asarray(TALL * (values - low) / (high - low))


def _ridge(x: Float[np.ndarray, " a"], place: int, drawn: Float[np.ndarray, "s a"]) -> tuple[Mark, ...]:
    known = np.isfinite(drawn).any(axis=0)
    middle, low, high = (np.full(x.shape, np.nan) for _ in range(3))
    middle[known] = np.nanmedian(drawn[:, known], axis=0)
    low[known], high[known] = np.nanmin(drawn[:, known], axis=0), np.nanmax(drawn[:, known], axis=0)
    base = np.where(known, float(place), np.nan)
    spread = (Band(x=x, low=place + low, high=place + high, color="loss", alpha=0.25),) if len(drawn) > 1 else ()
    return (
        Band(x=x, low=base, high=place + middle, color="paper", alpha=0.8),
        Band(x=x, low=base, high=place + middle, color="loss", alpha=0.09),
        *spread,
        Line(x=x, y=place + middle, color="loss", width=1.4),
    )


def _article(noun: str) -> str:
    return f"an {noun}" if noun[:1] in "aeiou" else f"a {noun}"


def _caption(
    steps: dict[int, list[LineRecord]],
    shown: list[int],
    low: float,
    high: float,
    norms: list[float],
    *,
    logarithmic: bool,
) -> str:
    seeds = max(len(steps[step]) for step in shown)
    errors = np.concatenate([record.stderrs for step in shown for record in steps[step]])
    errors = errors[np.isfinite(errors)]
    lost = sum(int((~record.finite).sum()) for step in shown for record in steps[step])
    text = [
        f"{len(shown)} of {len(steps)} steps, upwards in training; {'the logarithm of the loss' if logarithmic else 'the loss'} on "
        f"one scale for all, {TALL:g} rows from {number(low)} to {number(high)}.",
        f"‖d‖ from {number(min(norms), digits=3)} to {number(max(norms), digits=3)}.",
    ]
    if seeds > 1:
        text.append(f"Median and range of up to {seeds} seeds.")
    if errors.size:
        text.append(
            f"Standard error of a rise above the centre, from the data: median {number(float(np.median(errors)), digits=2)}."
        )
    else:
        text.append("The error from the data is not known (a single chunk).")
    if lost:
        text.append(f"{lost} losses are not finite and left out.")
    return " ".join(text)
