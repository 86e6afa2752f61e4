"""Records as a pandas table."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from theodolite.records.record import Record
from theodolite.records.training import Scalars

if TYPE_CHECKING:
    import pandas


def to_frame(
    records: Sequence[Record],
    *,
    times: Float[np.ndarray, " r"],
    elapsed: Float[np.ndarray, " r"],
    kind: type[Record] | None,
) -> pandas.DataFrame:
    """One row a record, one column for each of its numbers and texts.

    Raises:
        ImportError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise ImportError(
            "to_pandas() needs pandas, which is not installed: pip install 'theodolite[pandas]'."
        ) from error
    rows = [
        {"kind": record.kind, "step": record.step, "time": time, "elapsed": passed} | _columns(record)
        for record, time, passed in zip(records, times.tolist(), elapsed.tolist(), strict=True)
        if kind is None or isinstance(record, kind)
    ]
    frame = pandas.DataFrame(rows, columns=None if rows else ["kind", "step", "time", "elapsed"])
    return frame.astype({"step": "Int64"})  # a step may be missing, which plain integers cannot say


def _columns(record: Record) -> dict[str, Any]:
    columns: dict[str, Any] = {f"cost_{name}": value for name, value in vars(record.cost).items()}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if isinstance(value, bool | int | float | str) and field.name != "step":
            columns[field.name] = value
    if isinstance(record, Scalars):
        reserved = {"kind", "step", "time", "elapsed", *columns}
        columns |= {f"values.{name}" if name in reserved else name: value for name, value in record.values.items()}
    return columns
