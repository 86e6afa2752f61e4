"""The run log of a monitor, given up when it cannot be written."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from contextlib import suppress

from theodolite.errors import LogError, TheodoliteWarning
from theodolite.records import Log, Record


class Journal:
    """A log whose failure, such as a full disk, ends the watching and not the training.

    Args:
        folder: of the log.
        strict: raise the failure after the log was given up.

    Raises:
        LogInUseError: another process writes to the log.
    """

    def __init__(self, folder: str | os.PathLike[str], *, strict: bool) -> None:
        self._log: Log | None = Log(folder)
        self._strict = strict

    @property
    def open(self) -> bool:
        """Whether records are still kept."""
        return self._log is not None

    def append(self, record: Record) -> None:
        """Keep a record, unless the log was given up."""
        if self._log is not None:
            log = self._log
            self._guarded(lambda: log.append(record))

    def close(self) -> None:
        """Release the log."""
        if self._log is not None:
            self._guarded(self._log.close)
        self._log = None

    def _guarded(self, write: Callable[[], object]) -> None:
        try:
            write()
        except LogError as error:
            log, self._log = self._log, None
            if log is not None:
                with suppress(LogError):
                    log.close()
            if self._strict:
                raise
            warnings.warn(f"The monitor stops, training goes on: {error}", TheodoliteWarning, stacklevel=2)
