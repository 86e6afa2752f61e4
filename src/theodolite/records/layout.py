"""How a run log lies on disk.

::

    folder/
      log.jsonl            one strict JSON object a line: a header, then one record each
      log.lock             held by the writer; names its process
      arrays/000012.npz    the arrays of line id 12, complete before the line is written
"""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from theodolite.errors import LogError

FORMAT = "theodolite log"
_START = b'{"format":"theodolite log"'
SCHEMA = (1, 0)  # a reader refuses a newer first number and accepts a newer second one

LOG, LOCK, ARRAYS = "log.jsonl", "log.lock", "arrays"


def arrays_path(folder: Path, number: int) -> Path:
    """The file that holds the arrays of a line."""
    return folder / ARRAYS / f"{number:06d}.npz"


def to_line(content: dict[str, Any]) -> bytes:
    """One line: strict JSON in ASCII, so that a cut never falls inside a character."""
    return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii") + b"\n"


def from_line(line: bytes) -> dict[str, Any] | None:
    """The object on a line, or None where it is torn or not one of ours.

    A proper prefix of a JSON object is never a JSON object, so a line that lacks only its end of line is complete.
    """
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def split(content: bytes) -> tuple[list[bytes], bytes]:
    """Complete lines, of which the last may lack its end of line, and what a crash left torn after them."""
    *lines, tail = content.split(b"\n")
    return ([*lines, tail], b"") if tail and from_line(tail) is not None else (lines, tail)


def header(*, created: float) -> dict[str, Any]:
    """The first line of a log."""
    try:
        library = version("theodolite")
    except PackageNotFoundError:  # run from a source tree that was never installed
        library = "unknown"
    return {"format": FORMAT, "schema": list(SCHEMA), "created": created, "version": library}


def check_start(lines: list[bytes], torn: bytes, path: Path) -> None:
    """Refuse a file that is not a log, or one from a future that this version cannot read.

    Args:
        lines: of the file, as ``split`` returned them.
        torn: what follows them; without lines it may be a header that was cut short.
        path: of the file.

    Raises:
        LogError: the file is foreign or its schema too new.
    """
    if not lines and _START.startswith(torn[: len(_START)]):
        return
    content = from_line(lines[0]) if lines else None
    if content is None or content.get("format") != FORMAT:
        raise LogError(
            f"{path} is not a run log: its first line is not a header of format {FORMAT!r}. Name another folder."
        )
    match content.get("schema"):
        case [int(major), int(minor)]:
            if major > SCHEMA[0]:
                raise LogError(
                    f"{path} has schema {major}.{minor}, written by theodolite {content.get('version')}; this version reads "
                    f"schemas up to {SCHEMA[0]}.x. Update theodolite."
                )
        case other:
            raise LogError(
                f"{path} has the schema {other!r} in its header; expected two integers. The file is damaged."
            )
