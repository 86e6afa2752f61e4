"""Read a run log, also while it is being written or after a crash."""

from __future__ import annotations

import os
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from theodolite.errors import LogError
from theodolite.records.arrays import read_arrays
from theodolite.records.book import Book
from theodolite.records.codec import decode
from theodolite.records.layout import ARRAYS, LOG, check_start, from_line, split
from theodolite.records.record import KINDS, Record


def read(folder: str | os.PathLike[str]) -> Book:
    """Read every complete record of a run log; never refuses the rest because of one.

    A snapshot of the moment: call it again for what came later. Arrays are read into memory at once, so the book does
    not change or break when the folder does.

    Cost: one pass over the folder, no lock.

    Args:
        folder: of the log.

    Returns:
        The records, with a note for whatever was left out: a torn last line, a damaged line, a kind that this version
        does not know, arrays that are missing or damaged.

    Raises:
        LogError: there is no log, it cannot be read, or a newer version with another schema wrote it.
    """
    path = Path(folder) / LOG
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise LogError(
            f"No run log: expected the file {path}, which does not exist. {_suggestion(path.parent)}"
        ) from None
    except OSError as error:
        raise LogError(f"{path} cannot be read ({error}).") from error
    return _Reading(path.parent).book(content)


def _suggestion(folder: Path) -> str:
    """Name the logs just below, where somebody gave the folder of all runs."""
    below = sorted(path.parent.name for path in folder.glob(f"*/{LOG}"))[:5] if folder.is_dir() else []
    if below:
        return f"There are logs in its folders {', '.join(below)}."
    return "Name the folder that was given to Log, Monitor or survey as log."


class _Reading:
    """What accumulates while the lines of one log are read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.records: list[Record] = []
        self.times: list[float] = []
        self.elapsed: list[float] = []
        self.notes: list[str] = []
        self.raw: list[dict[str, Any]] = []

    def book(self, content: bytes) -> Book:
        lines, torn = split(content)
        check_start(lines, torn, self.folder / LOG)
        for number, line in enumerate(lines[1:], start=2):
            self._line(number, line)
        if torn:
            self.notes.append("The last line is torn (a write was cut short or is going on); it was left out.")
        if not lines:
            self.notes.append("The log has no header yet; nothing was recorded.")
        kinds = Counter(str(entry["kind"]) for entry in self.raw)
        self.notes += [
            f"{count} of kind {kind!r}, which this version does not know, are kept in raw."
            for kind, count in kinds.items()
        ]
        return Book(
            path=self.folder, records=tuple(self.records), notes=tuple(self.notes), raw=tuple(self.raw),
            times=np.array(self.times, dtype=np.float64), elapsed=np.array(self.elapsed, dtype=np.float64),
        )  # fmt: skip

    def _line(self, number: int, line: bytes) -> None:
        entry = from_line(line) or {}
        kind, fields = entry.get("kind"), entry.get("fields")
        if not isinstance(kind, str) or not isinstance(fields, dict):
            self.notes.append(f"Line {number} is damaged and was left out.")
            return
        if kind not in KINDS:
            self.raw.append(entry)
            return
        try:
            arrays = read_arrays(self.folder / ARRAYS / Path(entry["arrays"]).name) if "arrays" in entry else {}
            record, unknown = decode(KINDS[kind], fields, arrays)
            time, elapsed = float(entry["time"]), float(entry["elapsed"])
        except (AttributeError, EOFError, KeyError, OSError, TypeError, ValueError, zipfile.BadZipFile) as error:
            self.notes.append(f"Line {number} ({kind}) could not be read and was left out: {error}")
            return
        self.records.append(record)
        self.times.append(time)
        self.elapsed.append(elapsed)
        note = f"Fields of {kind} that this version does not know were left out: {', '.join(unknown)}."
        if unknown and note not in self.notes:
            self.notes.append(note)
