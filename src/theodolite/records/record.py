"""The base of all records: a frozen result with its step, cost, seed and notes."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import numpy as np

from theodolite.records.cost import Cost
from theodolite.records.fields import conform, thawed
from theodolite.records.html import record_table

KINDS: dict[str, type[Record]] = {}

R = TypeVar("R", bound="Record")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Record(ABC):
    """What one measurement found, with what it cost and how far to trust it.

    Subclasses are final, frozen, and hold only numbers, strings, tuples, mappings of those, and numpy arrays; every
    field is checked against its annotation and made read-only. Each names itself by ``kind`` and says in ``summary``
    what it found.

    Args:
        step: optimiser steps taken before the measurement, or None outside training.
        cost: what it took.
        seed: seed of its random numbers, None where it drew none.
        notes: what a reader must know to trust the numbers (fallbacks taken, parts that did not converge).
        context: what was surveyed: model, mode, dtype, engine, samples, chunks of data, number of parameters.

    Raises:
        TypeError: a field is not what its annotation says.
        ValueError: the shapes of its arrays disagree.
    """

    kind: ClassVar[str]
    lengths: ClassVar[Mapping[str, str]] = {}  # tuple fields whose length is an axis of the arrays

    step: int | None = None
    cost: Cost = field(default_factory=Cost)
    seed: int | None = None
    notes: tuple[str, ...] = ()
    context: Mapping[str, Any] = field(default_factory=dict)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not isinstance(cls.__dict__.get("kind"), str):
            raise TypeError(f"{cls.__name__} needs a class variable kind: ClassVar[str], its name in the run log.")
        earlier = KINDS.get(cls.kind, cls)
        if (earlier.__module__, earlier.__qualname__) != (cls.__module__, cls.__qualname__):
            raise TypeError(
                f"{cls.__name__}.kind is {cls.kind!r}, which {earlier.__name__} has already; choose another."
            )
        KINDS[cls.kind] = cls

    def __post_init__(self) -> None:
        conform(self)

    @property
    def data_degrees(self) -> int | None:
        """Degrees of freedom of errors from the data: chunks less one; None where the context does not count chunks."""
        match self.context.get("chunks"):
            case int(chunks) if chunks > 1:
                return chunks - 1
        return None

    @abstractmethod
    def summary(self) -> tuple[str, ...]:
        """What was measured, then what was found, then whether it converged, each in a few words."""

    def replace(self: R, **changes: Any) -> R:
        """A copy with some fields changed, checked like a new record."""
        return dataclasses.replace(self, **changes)

    def __repr__(self) -> str:
        with np.errstate(all="ignore"):  # NaN and infinity are readings; looking at them warns of nothing
            subject, *readings = self.summary()
        if self.step is not None:
            subject = f"{subject}, step {self.step:,}" if subject else f"step {self.step:,}"
        parts = [*readings, *([str(self.cost)] if self.cost != Cost() else [])]
        lines = [f"{type(self).__name__}({subject}): {' | '.join(parts)}", *(f"  note: {note}" for note in self.notes)]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        with np.errstate(all="ignore"):
            return record_table(self)

    def __reduce__(self) -> tuple[Any, ...]:
        values = {each.name: thawed(getattr(self, each.name)) for each in dataclasses.fields(self)}
        return _restore, (type(self), values)


def _restore(cls: type[Record], values: dict[str, Any]) -> Record:
    return cls(**values)
