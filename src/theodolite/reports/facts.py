"""What was surveyed, for the reader of a page, and how it was computed, for who doubts it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from theodolite.records import Record, Stability
from theodolite.reports.wording import number

NAMES: Mapping[str, str] = {  # what a reader needs to know of a survey, as a page calls it
    "model": "model",
    "parameters": "parameters",
    "samples": "samples",
    "mode": "mode",
    "batchnorm": "BatchNorm",
    "dtype": "dtype",
    "device": "device",
    "torch": "torch version",
}
INNER: Mapping[str, str] = {
    "chunks": "chunks of the data",
    "one_dimensional": "biases and norms in random directions",
    "point": "fingerprint of the point",
}
NONE = "—"


def facts(records: Sequence[Record]) -> tuple[tuple[str, str], ...]:
    """What was surveyed, as the records say; several values where they differ.

    Args:
        records: of one run.

    Returns:
        Names and values of what a reader needs; `workings` has the rest.
    """
    found = _contexts(records)
    rows = [(words, _joined(list(found[name]))) for name, words in NAMES.items() if name in found]
    if len(found.get("samples", ())) > 1:
        rows = [(name, _shares(found["samples"]) if name == "samples" else value) for name, value in rows]
    steps = [record.step for record in records if record.step is not None]
    if steps:
        rows.append(("steps", f"{min(steps):,} to {max(steps):,}" if min(steps) < max(steps) else f"{steps[0]:,}"))
    optimizers = dict.fromkeys(r.optimizer for r in records if isinstance(r, Stability))
    if optimizers:
        rows.append(("optimiser", _joined(list(optimizers))))
    seeds = sorted({record.seed for record in records if record.seed is not None})
    if seeds:
        rows.append(("seeds", _joined([str(seed) for seed in seeds])))
    return tuple(rows)


def workings(records: Sequence[Record]) -> tuple[tuple[str, str], ...]:
    """How it was computed: engine, certificate, plan and whatever else the records say of their making.

    Args:
        records: of one run.

    Returns:
        Names and values; of values that differ in their figures alone, the first with a count.
    """
    found = _contexts(records)
    names = sorted(set(found) - set(NAMES))
    return tuple((INNER.get(name, name.replace("_", " ")), "; ".join(_alike(found[name]))) for name in names)


def _contexts(records: Sequence[Record]) -> dict[str, dict[str, set[str]]]:
    """Of each fact its values, and of each value the kinds of records that say so."""
    found: dict[str, dict[str, set[str]]] = {}
    for record in records:
        for name, value in record.context.items():
            found.setdefault(name, {}).setdefault(_worded(value), set()).add(record.kind)
    return found


def _shares(values: Mapping[str, set[str]]) -> str:
    """Each value with the kinds of records it belongs to, the commonest last."""
    *few, (most, _) = sorted(values.items(), key=lambda item: len(item[1]))
    return ", ".join([*(f"{value} for {' and '.join(sorted(kinds))}" for value, kinds in few), f"{most} for the rest"])


def _alike(values: Iterable[str]) -> list[str]:
    """Texts that differ in their figures alone as one; bare numbers stay apart."""
    groups: dict[str, list[str]] = {}
    for value in values:
        key = re.sub(r"\d+(\.\d+)?(e[+-]?\d+)?", "0", value) if re.search(r"[a-z] ", value) else value
        groups.setdefault(key, []).append(value)
    return [f"{first} (and {len(others)} alike)" if others else first for first, *others in groups.values()]


def _worded(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return number(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_worded(item)}" for name, item in value.items())
    if isinstance(value, tuple | list):
        return ", ".join(_worded(item) for item in value)
    return NONE if value is None else str(value)


def _joined(values: list[str]) -> str:
    return ", ".join(values[:6]) + (f" and {len(values) - 6} more" if len(values) > 6 else "")
