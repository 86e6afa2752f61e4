"""Figures of a run as files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from theodolite.records import Record
from theodolite.reports.matplotlib_backend import render
from theodolite.reports.sections import figures_of
from theodolite.reports.sources import Reportable, sources

Format = Literal["png", "svg"]


def save_figures(
    run: Reportable,
    folder: str | os.PathLike[str],
    *,
    formats: Sequence[Format] = ("png", "svg"),
    theme: Literal["light", "dark"] = "light",
) -> tuple[Path, ...]:
    """Draw every figure that the records of a run allow.

    Cost: about 0.4 s a figure and format.

    Args:
        run: a `Run`, a `Book`, or the folder of a run log.
        folder: where to write ``<figure>.<format>``; made where it is missing.
        formats: of the files.
        theme: colours for light or dark surroundings.

    Returns:
        The files written.

    Raises:
        ImportError: without matplotlib.
    """
    (source,) = sources(run)
    return save_all(source.records, folder, formats=formats, theme=theme)


def save_all(
    records: Sequence[Record],
    folder: str | os.PathLike[str],
    *,
    formats: Sequence[Format],
    theme: Literal["light", "dark"],
) -> tuple[Path, ...]:
    """The same from records."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    written = []
    for figure in figures_of(records):
        for format in formats:
            path = target / f"{figure.name}.{format}"
            path.write_bytes(render(figure, format=format, theme=theme))
            written.append(path)
    return tuple(written)
