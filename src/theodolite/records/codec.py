"""Records to strict JSON and arrays, and back without loss."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from theodolite.records.cost import Cost
from theodolite.records.record import Record

# Strict JSON has no NaN, infinity or arrays: they are objects with a single key that starts with "$".
_FLOAT, _ARRAY, _MAPPING = "$float", "$array", "$mapping"


def encode(record: Record) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The fields of a record as strict JSON values, with its arrays beside them.

    Returns:
        Fields, in which ``{"$array": name}`` stands for an array and ``{"$float": "nan"}`` for what JSON cannot say;
        arrays by name.
    """
    arrays: dict[str, np.ndarray] = {}
    fields = {
        field.name: _encoded(getattr(record, field.name), field.name, arrays) for field in dataclasses.fields(record)
    }
    return fields, arrays


def decode(cls: type[Record], fields: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> tuple[Record, list[str]]:
    """A record from what ``encode`` returned, also where another version of the library wrote it.

    Returns:
        The record, and the names of fields that this version does not know and left out.

    Raises:
        KeyError: an array is missing.
        TypeError: a field is missing or not what its annotation says.
        ValueError: the shapes of arrays disagree.
    """
    known = {field.name for field in dataclasses.fields(cls)}
    values = {name: _decoded(value, arrays) for name, value in fields.items() if name in known}
    if "cost" in values:
        names = {field.name for field in dataclasses.fields(Cost)}
        values["cost"] = Cost(**{name: value for name, value in values["cost"].items() if name in names})
    return cls(**values), sorted(set(fields) - known)


def _encoded(value: Any, field: str, arrays: dict[str, np.ndarray], *, nested: bool = False) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {_FLOAT: repr(value)}
    if isinstance(value, np.ndarray):
        name = f"{field}.{sum(other.startswith(f'{field}.') for other in arrays)}" if nested else field
        arrays[name] = value
        return {_ARRAY: name}
    if isinstance(value, tuple):
        return [_encoded(item, field, arrays, nested=True) for item in value]
    if isinstance(value, Cost):
        value = {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        items = {key: _encoded(item, field, arrays, nested=True) for key, item in value.items()}
        return {_MAPPING: items} if any(key.startswith("$") for key in items) else items
    return value


def _decoded(value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    if isinstance(value, list):
        return tuple(_decoded(item, arrays) for item in value)
    if not isinstance(value, dict):
        return value
    match value:
        case {"$float": str(text)}:
            return float(text)
        case {"$array": str(name)}:
            return arrays[name]
        case {"$mapping": dict(items)}:
            value = items
    return {key: _decoded(item, arrays) for key, item in value.items()}
