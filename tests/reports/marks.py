"""Look into a figure without drawing it."""

from __future__ import annotations

from typing import TypeVar

from theodolite.reports.figures import Figure, Panel

M = TypeVar("M")


def marks(where: Figure | Panel, kind: type[M]) -> list[M]:
    """All marks of one kind, over all panels of a figure."""
    panels = where.panels if isinstance(where, Figure) else (where,)
    return [mark for panel in panels for mark in panel.marks if isinstance(mark, kind)]


def labelled(where: Figure | Panel, kind: type[M], start: str) -> M:
    """The one mark of a kind whose label starts so."""
    (found,) = [mark for mark in marks(where, kind) if mark.label.startswith(start)]
    return found
