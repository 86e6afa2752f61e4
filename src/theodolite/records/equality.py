"""Compare records by content."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from theodolite.records.record import Record


def differences(first: Record, second: Record, *, ignore: Collection[str] = ()) -> tuple[str, ...]:
    """Names of the fields in which two records differ, to the bit; NaN equals NaN.

    Args:
        first: a record.
        second: another; one of another class differs in ``"kind"``.
        ignore: fields that may differ, such as ``"cost"``, whose seconds never repeat.

    Example:
        >>> from theodolite.records import Event, differences
        >>> a = Event(name="started", message="", step=0)
        >>> differences(a, a.replace(step=1))
        ('step',)
    """
    if type(first) is not type(second):
        return ("kind",)
    names = [field.name for field in dataclasses.fields(first) if field.name not in ignore]
    return tuple(name for name in names if not _same(getattr(first, name), getattr(second, name)))


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray):
        return _same_array(a, b)
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, float) and math.isnan(a):
        return math.isnan(b)
    if dataclasses.is_dataclass(a):
        return all(_same(getattr(a, field.name), getattr(b, field.name)) for field in dataclasses.fields(a))
    return bool(a == b) and (not isinstance(a, float) or math.copysign(1, a) == math.copysign(1, b))


def _same_array(a: np.ndarray, b: np.ndarray) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.dtype.kind != "f":
        return bool(np.array_equal(a, b))
    equal = (a == b) & (np.signbit(a) == np.signbit(b))
    return bool(np.all(equal | (np.isnan(a) & np.isnan(b))))
