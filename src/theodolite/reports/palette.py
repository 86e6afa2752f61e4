"""Colours by role, one set for light paper and one for dark, told apart by readers of any colour vision.

References:
    Okabe & Ito, "Color universal design" (2008): blue, vermillion and green, here darkened or lightened until each
    keeps a contrast of at least 3 : 1 with its paper.
"""

from __future__ import annotations

from collections.abc import Mapping

LIGHT: Mapping[str, str] = {
    "paper": "#ffffff",
    "ink": "#1d2733",
    "muted": "#5a6675",
    "faint": "#98a3b0",
    "grid": "#e6e9ee",
    "loss": "#0067a6",
    "curvature": "#007a5e",
    "gradient": "#0067a6",
    "parameter": "#8a5a94",
    "bound": "#c8500a",
    "crossing": "#b3261e",
    "mask": "#c9ced6",
    "path": "#10161d",
    "halo": "#ffffff",
}

DARK: Mapping[str, str] = {
    "paper": "#141a21",
    "ink": "#e4e9ef",
    "muted": "#a3afbd",
    "faint": "#6d7987",
    "grid": "#29323d",
    "loss": "#5db3ea",
    "curvature": "#3cc79c",
    "gradient": "#5db3ea",
    "parameter": "#cc9bd6",
    "bound": "#f08a4b",
    "crossing": "#ff8077",
    "mask": "#46515e",
    "path": "#10161d",
    "halo": "#ffffff",
}

THEMES: Mapping[str, Mapping[str, str]] = {"light": LIGHT, "dark": DARK}

# The page replaces these tokens when the reader's light or dark mode is known.
TOKENS: Mapping[str, str] = {role: f"@{role}" for role in LIGHT}


def tint(color: str, alpha: float) -> str:
    """A colour made translucent, as CSS; a token stays a token.

    Args:
        color: ``#rrggbb`` or a token ``@role``.
        alpha: opacity from 0 to 1.

    Returns:
        ``rgba(r,g,b,alpha)`` or ``@role/alpha``.

    Example:
        >>> tint("#ff0080", 0.5), tint("@loss", 0.5)
        ('rgba(255,0,128,0.5)', '@loss/0.5')
    """
    if color.startswith("@"):
        return f"{color}/{alpha:g}"
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha:g})"
