"""Planes along a training as a film."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from theodolite.records import Plane, Record
from theodolite.reports.extras import extra
from theodolite.reports.figures.frames import frames
from theodolite.reports.matplotlib_backend import render


def save_film(
    planes: Iterable[Plane],
    path: str | os.PathLike[str],
    *,
    seconds: float = 0.4,
    cap: float | None = None,
    theme: Literal["light", "dark"] = "light",
    scale: float = 1.0,
) -> tuple[Path, ...]:
    """Draw planes one after the other, with the same axes, levels and colours, as ``landscapes.frames`` makes them.

    Cost: about 0.3 s a frame.

    Args:
        planes: along the same directions and axes, in the order of the film.
        path: ``film.gif`` for one file that moves, which stops a while at its end and starts again; ``film.png`` for the pictures
            ``film-0000.png``, ``film-0001.png``, …
        seconds: that each frame is shown.
        cap: losses above are masked, as for ``figures.plane``.
        theme: colours for light or dark surroundings.
        scale: device pixels for a CSS pixel.

    Returns:
        The files written.

    Raises:
        ValueError: there are no planes, their directions or axes differ, or the suffix is another.
        ImportError: without matplotlib.
    """
    target = Path(path)
    if isinstance(planes, Record) or not isinstance(planes, Iterable):
        raise ValueError(
            f"Expected several planes, in the order of the film, found a {type(planes).__name__}. "
            "Write save_film([first, second], …); "
            "one plane alone is a picture, figures.plane(record)."
        )
    if target.suffix not in (".gif", ".png"):
        raise ValueError(f"Expected a film to be a .gif, or a .png for one file a frame, found {target.name!r}.")
    pictures = [render(figure, format="png", theme=theme, scale=scale) for figure in frames(tuple(planes), cap=cap)]
    if target.suffix == ".gif":
        target.write_bytes(_animated(pictures, milliseconds=round(1000 * seconds)))
        return (target,)
    written = []
    for index, picture in enumerate(pictures):
        file = target.with_name(f"{target.stem}-{index:04d}.png")
        file.write_bytes(picture)
        written.append(file)
    return tuple(written)


def _animated(pictures: list[bytes], *, milliseconds: int) -> bytes:
    """The pictures as one GIF, each with colours of its own; the last is shown five times as long."""
    images = extra("PIL.Image")  # matplotlib depends on it
    # Without dithering equal colours stay equal from frame to frame.
    shown = [images.open(io.BytesIO(each)).convert("RGB").quantize(255, dither=images.Dither.NONE) for each in pictures]
    buffer = io.BytesIO()
    durations = [milliseconds] * (len(shown) - 1) + [5 * milliseconds]
    shown[0].save(buffer, format="GIF", save_all=True, append_images=shown[1:], duration=durations, loop=0, disposal=2)
    return buffer.getvalue()
