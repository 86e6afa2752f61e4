"""The base of all records: a frozen result with its step, cost, seed and notes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from theodolite.records.cost import Cost

KINDS: dict[str, type[Record]] = {}


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Record:
    """What one measurement found, with what it cost and how far to trust it.

    Subclasses are final, frozen, and hold only numbers, strings, tuples, mappings of those, and numpy arrays.

    Args:
        step: optimiser steps taken before the measurement, or None outside training.
        cost: what it took.
        seed: seed of its random numbers, None where it drew none.
        notes: what a reader must know to trust the numbers (fallbacks taken, parts that did not converge).
        context: what was surveyed: model, mode, dtype, engine, samples, number of parameters.
    """

    kind: ClassVar[str]

    step: int | None = None
    cost: Cost = field(default_factory=Cost)
    seed: int | None = None
    notes: tuple[str, ...] = ()
    context: Mapping[str, Any] = field(default_factory=dict)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        KINDS[cls.kind] = cls
