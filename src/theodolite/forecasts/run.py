"""A run log together with what it says."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import final

from theodolite.forecasts.finding import Finding
from theodolite.forecasts.findings import Rule, findings
from theodolite.records import Book, read


@final
class Run(Book):
    """A book that can also be judged; everything of ``Book``, and ``findings``."""

    def findings(self, rules: Sequence[Rule] | None = None) -> tuple[Finding, ...]:
        """What the rules find in the current records, the gravest first.

        Args:
            rules: functions from records to findings; None for ``theodolite.forecasts.RULES``.
        """
        return findings(self.current, rules=rules)


def load(folder: str | os.PathLike[str]) -> Run:
    """Read a run log, also while the run goes on or after it crashed.

    Cost: one pass over the folder; arrays are read into memory.

    Args:
        folder: what was given as ``log``.

    Returns:
        Its records, series, table and findings.

    Raises:
        LogError: there is no log, it cannot be read, or a newer version with another schema wrote it.
    """
    book = read(folder)
    return Run(
        path=book.path, records=book.records, times=book.times, elapsed=book.elapsed, notes=book.notes, raw=book.raw
    )  # fmt: skip
