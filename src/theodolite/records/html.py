"""Small self-contained HTML tables for notebooks, every text escaped."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

import numpy as np

from theodolite.records.estimate import Estimate

SHOWN = 8  # entries of an array or mapping that are written out
FEW = 4  # parameters that are named


def record_table(record: Any) -> str:
    """One row a field of a record: its value with its error, arrays by shape and first entries."""
    subject, *readings = record.summary()
    fields = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    unmeasured = {field.name for field in dataclasses.fields(record) if _same_nan(field.default, fields[field.name])}
    rows = [(name, _text(name, fields)) for name in _shown(fields) if name not in unmeasured]
    return table(f"{type(record).__name__} · {subject}", " | ".join(readings), rows)


def table(title: str, subtitle: str, rows: Iterable[tuple[str, str]]) -> str:
    """A captioned table of two columns."""
    body = "".join(
        f'<tr><th style="text-align:left">{escape(name)}</th><td style="text-align:left">{escape(text)}</td></tr>'
        for name, text in rows
    )
    caption = f"<strong>{escape(title)}</strong><br>{escape(subtitle)}"
    return f'<table><caption style="text-align:left;caption-side:top">{caption}</caption><tbody>{body}</tbody></table>'


def _shown(fields: Mapping[str, Any]) -> list[str]:
    """Errors stand beside their values, and what is empty is left out."""
    errors = {name for name in fields if name.endswith("_stderr") and name.removesuffix("_stderr") in fields}
    return [name for name, value in fields.items() if name not in errors and not _empty(value)]


def _same_nan(default: Any, value: Any) -> bool:
    """NaN where the field starts as NaN was not estimated; anywhere else it is a reading."""
    return isinstance(default, float) and isinstance(value, float) and math.isnan(default) and math.isnan(value)


def _empty(value: Any) -> bool:
    return value is None or (isinstance(value, tuple | Mapping) and not value)


def _text(name: str, fields: Mapping[str, Any]) -> str:
    value, error = fields[name], fields.get(f"{name}_stderr")
    if isinstance(value, float) and isinstance(error, float):
        return str(Estimate(value, error))
    return _plain(value)


def _plain(value: Any) -> str:
    if isinstance(value, np.ndarray):
        entries = ", ".join(_plain(item) for item in value.ravel()[:SHOWN].tolist())
        more = ", …" if value.size > SHOWN else ""
        return f"{value.dtype} {value.shape}: {entries}{more}"
    if isinstance(value, Mapping):
        value = tuple(f"{key}: {_plain(item)}" for key, item in value.items())
    if isinstance(value, tuple) and value and all(map(_is_shape, value)):
        return _shapes(value)
    if isinstance(value, tuple):
        return ", ".join([*map(_plain, value[:SHOWN]), *(["…"] if len(value) > SHOWN else [])])
    if isinstance(value, float):
        return f"{value:.5g}"
    return str(value)


def _is_shape(item: Any) -> bool:
    return isinstance(item, tuple) and [type(part) for part in item] == [str, tuple]


def _shapes(parameters: tuple[tuple[str, tuple[int, ...]], ...]) -> str:
    """Names with their shapes; of many the first few, with how many there are."""
    named = [f"{name} ({'×'.join(map(str, shape)) or 'scalar'})" for name, shape in parameters[:FEW]]
    return ", ".join(named) + (f", … {len(parameters)} in all" if len(parameters) > FEW else "")
