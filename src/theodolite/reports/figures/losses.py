"""Losses side by side: value, slope and curvature along the number that they depend on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from theodolite.reports.figures.description import Axis, Figure, Line, Mark, Panel, Rule
from theodolite.reports.figures.scales import ends_of, fitted_axis
from theodolite.reports.wording import number

COLORS = ("loss", "bound", "curvature", "parameter", "crossing", "muted", "ink", "faint")
QUANTITIES = {"values": "value", "slopes": "slope", "curvatures": "curvature"}
CUT = 10.0  # a value further out than this many times the crowd's is cut off rather than flatten all other curves


def loss_profiles(profiles: Sequence[Mapping[str, Any]]) -> Figure:
    """Value, slope and curvature of losses, one below the other.

    Args:
        profiles: as ``theodolite.losses.compare`` measures them, each by ``as_dict()``: name, along, positions, values, slopes
            and curvatures.

    Returns:
        A figure of three panels.

    Raises:
        ValueError: without profiles, or when they are along different numbers.
    """
    numbers = {str(profile["along"]) for profile in profiles}
    if len(numbers) != 1:
        raise ValueError(f"Expected profiles along one number. Found {', '.join(sorted(numbers)) or 'none'}.")
    (along,) = numbers
    grid = np.asarray(profiles[0]["positions"], dtype=float)
    x = Axis(label=along, limits=ends_of(grid))
    panels = tuple(_panel(profiles, quantity, label, x) for quantity, label in QUANTITIES.items())
    names = [str(profile["name"]) for profile in profiles]
    return Figure(
        name="losses",
        title=f"{', '.join(names)} along the {along}",
        caption=_caption(profiles),
        limits="A line through the space of outputs: off it, other logits change the slopes. Curves that leave the panel are cut.",
        panels=panels,
        height=620,
    )


def _panel(profiles: Sequence[Mapping[str, Any]], quantity: str, label: str, x: Axis) -> Panel:
    curves = [np.asarray(profile[quantity], dtype=float) for profile in profiles]
    shown = [_cut(curve, curves) for curve in curves]
    marks: list[Mark] = [
        Rule(at=0.0, direction="vertical", color="faint", width=0.8),
        Rule(at=0.0, direction="horizontal", color="faint", width=0.8),
    ]
    marks += [
        Line(
            x=np.asarray(profile["positions"], dtype=float),
            y=curve,
            color=COLORS[index % len(COLORS)],
            label=str(profile["name"]) if quantity == "values" else "",
            width=1.6,
            dash=index >= len(COLORS) or _coincides(curve, shown[:index]),
        )
        for index, (profile, curve) in enumerate(zip(profiles, shown, strict=True))
    ]
    fitted = fitted_axis(label, *shown)
    low, high = (np.nanmin(np.concatenate([*shown, [0.0]])), np.nanmax(np.concatenate([*shown, [0.0]])))
    room = 0.06 * (high - low) or 1.0
    return Panel(marks=tuple(marks), x=x, y=Axis(label=fitted.label, limits=(float(low - room), float(high + room))))


def _coincides(curve: Float[np.ndarray, " n"], others: Sequence[Float[np.ndarray, " n"]]) -> bool:
    """Whether the curve would hide an earlier one."""
    span = float(np.nanmax(np.abs(curve))) if np.isfinite(curve).any() else 0.0
    gaps = [np.abs(curve - other) for other in others]
    return any(np.isfinite(gap).any() and float(np.nanmax(gap)) < 0.01 * span for gap in gaps)


def _cut(curve: Float[np.ndarray, " n"], curves: Sequence[Float[np.ndarray, " n"]]) -> Float[np.ndarray, " n"]:
    """The curve without what lies far beyond the largest values that most curves reach."""
    reached = [np.nanmax(np.abs(other)) for other in curves if np.isfinite(other).any()]
    crowd = float(np.median(reached)) if reached else 0.0
    within = np.abs(np.where(np.isfinite(curve), curve, np.inf)) <= CUT * max(crowd, 1e-12)
    return np.where(within, curve, np.nan)


def _caption(profiles: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    for profile in profiles:
        shape = "convex along it" if profile["convex"] else "not convex"
        parts.append(
            f"{profile['name']}: {shape}, slope at most {number(float(profile['gradient_bound']), digits=3)} here, "
            f"{profile['at_minus_infinity']} towards −∞ and {profile['at_plus_infinity']} towards +∞"
        )
    return "; ".join(parts) + "."
