"""The page of losses: their cards in one table, their profiles side by side; drawn from plain numbers."""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from theodolite.reports.extras import extra
from theodolite.reports.figures.losses import loss_profiles
from theodolite.reports.matplotlib_backend import render

COLUMNS: Mapping[str, str] = {
    "name": "loss",
    "convex": "convex",
    "gradient_bound": "gradient ≤",
    "curvature_bound": "curvature ≤",
    "shift_invariant": "shift",
    "scale_invariant": "scale",
    "at_minus_infinity": "margin → −∞",
    "at_plus_infinity": "margin → +∞",
    "flip_influence": "flip influence",
    "symmetry_spread": "symmetric",
    "proper": "proper",
    "class_cost": "cost of a class",
}

# What 80 columns hold.
SHORT: Mapping[str, str] = {
    "name": "loss",
    "convex": "cvx",
    "gradient_bound": "|g|≤",
    "curvature_bound": "|H|≤",
    "at_minus_infinity": "→ −∞",
    "flip_influence": "flip",
    "proper": "proper",
}


def loss_rows(cards: Sequence[Mapping[str, Any]], *, columns: Sequence[str] = tuple(COLUMNS)) -> list[tuple[str, ...]]:
    """Cards as rows of text.

    Args:
        cards: as ``theodolite.losses.card`` measures them, each by ``as_dict()``.
        columns: keys of ``COLUMNS`` or ``SHORT``.

    Returns:
        One row a card.
    """
    return [tuple(_cell(name, card[name]) for name in columns) for card in cards]


def loss_page(
    cards: Sequence[Mapping[str, Any]],
    profiles: Sequence[Sequence[Mapping[str, Any]]],
    out: str | os.PathLike[str],
) -> Path:
    """Write a page of losses that loads nothing: a table of cards and a figure for each set of profiles.

    Cost: about 0.3 s a figure.

    Args:
        cards: of losses of logits and classes, each by ``as_dict()``; may be empty.
        profiles: sets of profiles, each set along one number.
        out: where to write the page; missing folders are made.

    Returns:
        The path of the page.

    Raises:
        ImportError: without matplotlib or jinja2.
    """
    jinja2, markup = extra("jinja2"), extra("markupsafe").Markup
    templates = resources.files("theodolite.reports") / "templates"
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    text: str = environment.from_string((templates / "losses.html.j2").read_text(encoding="utf-8")).render(
        columns=list(COLUMNS.values()),
        rows=loss_rows(cards),
        figures=[_figure(group) for group in profiles],
        style=markup((templates / "page.css").read_text(encoding="utf-8")),
    )
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")
    return path


def save_profiles(profiles: Sequence[Mapping[str, Any]], out: str | os.PathLike[str], *, scale: float = 2.0) -> Path:
    """Draw profiles side by side to a PNG or SVG file.

    Args:
        profiles: along one number.
        out: the file, by its ending.
        scale: device pixels for a CSS pixel of a PNG.

    Returns:
        The path of the file.

    Raises:
        ValueError: for another ending.
    """
    path = Path(out)
    if path.suffix not in (".png", ".svg"):
        raise ValueError(f"Expected a .png or .svg file for a figure, found {path.name!r}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(render(loss_profiles(profiles), format="png" if path.suffix == ".png" else "svg", scale=scale))
    return path


def _figure(profiles: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    figure = loss_profiles(profiles)
    images = {
        theme: base64.b64encode(render(figure, format="svg", title=False, theme=theme)).decode("ascii")
        for theme in ("light", "dark")
    }
    return {
        "title": figure.title,
        "caption": figure.caption,
        "limits": figure.limits,
        "width": figure.width,
        "height": figure.height,
        **images,
    }


def _cell(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name == "symmetry_spread":
        return "yes" if value < 1e-6 else "no"
    if isinstance(value, float):
        if math.isinf(value):
            return "∞"
        return "–" if math.isnan(value) else f"{value:.2f}" if name == "flip_influence" else f"{value:.3g}"
    return str(value)
