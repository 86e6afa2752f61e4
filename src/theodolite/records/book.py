"""A run log as its readers see it: every record that could be read, and what could not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from jaxtyping import Float, Int, Num

from theodolite.records.estimate import Estimate
from theodolite.records.frame import to_frame
from theodolite.records.html import table
from theodolite.records.record import Record
from theodolite.records.text import plural
from theodolite.records.training import Event, Scalars

if TYPE_CHECKING:
    import pandas

R = TypeVar("R", bound=Record)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Book:
    """The records of a run at the moment of reading, in the order in which they were written.

    Args:
        path: the folder.
        records: all that could be read, their arrays in memory.
        times: when each was written, in seconds since 1970.
        elapsed: seconds that the log had been open for writing until then, over all sessions.
        notes: what was left out on reading, and why.
        raw: lines of kinds that this version does not know, as they stand in the log.
    """

    path: Path
    records: tuple[Record, ...]
    times: Float[np.ndarray, " r"]
    elapsed: Float[np.ndarray, " r"]
    notes: tuple[str, ...] = ()
    raw: tuple[Mapping[str, Any], ...] = ()

    @property
    def current(self) -> tuple[Record, ...]:
        """The records without those that a later start of the run at the same or an earlier step has overtaken.

        A run that starts again from a checkpoint, or from nothing in the same folder, repeats steps that the log has already;
        its own readings count. All of them stay in ``records``.
        """
        kept: list[Record] = []
        for record in self.records:
            if isinstance(record, Event) and record.name == "started" and record.step is not None:
                start = record.step
                kept = [earlier for earlier in kept if earlier.step is None or earlier.step < start]
            kept.append(record)
        return tuple(kept)

    def select(self, kind: type[R]) -> tuple[R, ...]:
        """All records of one class."""
        return tuple(record for record in self.records if isinstance(record, kind))

    def last(self, kind: type[R]) -> R | None:
        """The record of a class that was written last, None if there is none."""
        return next((record for record in reversed(self.records) if isinstance(record, kind)), None)

    def series(self, kind: type[Record], field: str) -> tuple[Int[np.ndarray, " t"], Num[np.ndarray, " t ..."]]:
        """One field or property of all records of a class that have a step, in order of step.

        Args:
            kind: class of the records.
            field: name of a field or property; for ``Scalars`` a name in its values, where lines without it are passed
                over. Of an ``Estimate`` its value is taken.

        Returns:
            Steps, and the value at each; arrays of equal shape are stacked.

        Raises:
            ValueError: the records have no such field, or it is not a number or array of one shape.
        """
        found = sorted(
            (
                (record.step, value)
                for record in self.select(kind)
                for value in _values(record, field)
                if record.step is not None
            ),
            key=lambda pair: pair[0],
        )
        steps = np.array([step for step, _ in found], dtype=np.int64)
        if len({np.shape(value) for _, value in found}) > 1:
            raise ValueError(f"{kind.__name__}.{field} changes its shape during the run; use select({kind.__name__}).")
        values = np.array([value for _, value in found]) if found else np.empty(0)
        if values.dtype.kind not in "biuf":
            raise ValueError(f"{kind.__name__}.{field} is not a number; use select({kind.__name__}).")
        return steps, values if values.dtype.kind != "b" else values.astype(np.int64)

    @property
    def steps(self) -> Int[np.ndarray, " t"]:
        """All steps at which something was recorded, each once, ascending."""
        return np.array(sorted({record.step for record in self.records if record.step is not None}), dtype=np.int64)

    def to_pandas(self, kind: type[Record] | None = None) -> pandas.DataFrame:
        """A wide table: one row a record, one column for each number or text in it; arrays are left out.

        Columns of fields that a record does not have are NaN there. The values of ``Scalars`` are columns of their own
        names.

        Args:
            kind: only records of this class, hence only their columns.

        Returns:
            A frame with the columns kind, step, time and elapsed first.

        Raises:
            ImportError: pandas is not installed.
        """
        return to_frame(self.records, times=self.times, elapsed=self.elapsed, kind=kind)

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def __repr__(self) -> str:
        lines = [f"{self._title()} | {self._contents()}", *(f"  note: {note}" for note in self.notes)]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = [(kind, f"{count:,}") for kind, count in self._counts()] + [("note", note) for note in self.notes]
        return table(self._title(), f"written {self._span()}", rows)

    def _title(self) -> str:
        steps = self.steps
        span = f", steps {steps[0]:,} to {steps[-1]:,}" if len(steps) else ""
        return f"{type(self).__name__}({str(self.path)!r}): {plural(len(self), 'record')}{span}"

    def _contents(self) -> str:
        return ", ".join(f"{count:,} {kind}" for kind, count in self._counts()) or "empty"

    def _span(self) -> str:
        return f"over {self.elapsed[-1]:.3g} s" if len(self) else "nothing yet"

    def _counts(self) -> list[tuple[str, int]]:
        return Counter(record.kind for record in self.records).most_common()


def _values(record: Record, field: str) -> list[Any]:
    """The value of a field in a list, or an empty list where the record may lack it."""
    if isinstance(record, Scalars):
        return [record.values[field]] if field in record.values else []
    if not hasattr(type(record), field) and field not in record.__dict__:
        names = sorted({*record.__dict__, *(name for name in dir(type(record)) if not name.startswith("_"))})
        raise ValueError(f"{type(record).__name__} has no field {field!r}; it has {', '.join(names)}.")
    value = getattr(record, field)
    return [value.value if isinstance(value, Estimate) else value]
