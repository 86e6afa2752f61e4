"""How the points of one survey are computed: one after the other, many at once, or with the first layer added up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, final

from theodolite.landscapes.first_layer import FirstLayer
from theodolite.landscapes.prefix import Prefix
from theodolite.landscapes.reading import Reading
from theodolite.landscapes.stacked import stacked_sums
from theodolite.landscapes.sweep import Manner, Move, combined, sweep
from theodolite.problem import Problem

Engine = Literal["auto", "loop", "vmap", "linear"]


@final
@dataclass
class Route:
    """The engine of a survey, from one call to the next.

    Args:
        engine: ``"loop"``, ``"vmap"`` or ``"linear"``; a failure of vmap turns it into the loop for all points that follow.
        width: points of one call of vmap.
        layers: first layers, one for each problem by its ``id``, where the engine is ``"linear"``.
        asked: whether an engine was asked for, which a record then names.
        passes: forward passes that choosing took, in passes over all data.
        notes: what a reader of the record must know.
    """

    engine: Literal["loop", "vmap", "linear"] = "loop"
    width: int = 1
    layers: dict[int, FirstLayer] = field(default_factory=dict)
    asked: bool = False
    passes: float = 0.0
    notes: list[str] = field(default_factory=list)

    def read(
        self, problem: Problem, moves: Sequence[Move], manner: Manner, prefix: Prefix | None = None
    ) -> list[Reading]:
        """Readings at points, by the loop where vmap fails."""
        if self.engine == "vmap":
            try:
                with problem.session():
                    return [combined(problem, point, manner) for point in stacked_sums(problem, moves, manner)]
            except Exception as error:  # anything: what a model raises under vmap, the loop does not meet
                self.engine = "loop"
                self.notes.append(f"points by the loop from some point on: vmap failed with {type(error).__name__}")
        return sweep(problem, moves, manner=manner, prefix=prefix, layer=self.layers.get(id(problem)))
