"""Records in the order of their steps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from theodolite.records import Record

R = TypeVar("R", bound=Record)


def by_step(records: Iterable[Record], kind: type[R]) -> list[R]:
    """All records of a class by step; those without a step first, equal steps in the order given."""
    return sorted((record for record in records if isinstance(record, kind)), key=step_order)


def step_order(record: Record) -> tuple[bool, int]:
    """Sorting key: the step, none before the first."""
    return record.step is not None, record.step or 0


def at(step: int | None) -> str:
    """A step in words."""
    return "at the surveyed point" if step is None else f"at step {step:,}"
