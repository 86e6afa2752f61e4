"""What a user asked to be read at every point, checked once: quantities, other data, statistics, cap, precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from theodolite.errors import ProblemError
from theodolite.landscapes.batchnorm import BatchNorm, checked
from theodolite.landscapes.reading import Reading
from theodolite.landscapes.readings import Beside, read_all
from theodolite.landscapes.routes import Route
from theodolite.landscapes.scalars import Scalars, quantities
from theodolite.landscapes.sweep import Manner, assign
from theodolite.operators.grouped import By
from theodolite.problem import Problem
from theodolite.problem.identity import identity
from theodolite.records import Cost


@dataclass(frozen=True)
class Asked:
    """How points are read, and the problems on other data that are read beside.

    Args:
        manner: of the problem itself.
        beside: other problems with theirs.
        route: how points away from the centre are computed; the centre and everything exact is read by the loop.
    """

    manner: Manner
    beside: Beside
    route: Route = field(default_factory=Route)

    @property
    def exactly(self) -> Asked:
        """The same in the problem's own precision, whatever the loss."""
        return Asked(_exact(self.manner), {name: (other, _exact(how)) for name, (other, how) in self.beside.items()})

    @property
    def key(self) -> str:
        """Changes with everything that readings depend on beside the problem and the point."""
        others = {name: (other.digest(), how) for name, (other, how) in self.beside.items()}
        return str(identity((self.manner, others), strict=False))

    def center(self, problem: Problem) -> Reading:
        """The reading at θ, to the last bit the loss of the problem where BatchNorm is as its mode says.

        Cost: one forward pass.
        """
        here = [leaf.detach() for leaf in problem.point().leaves]
        exactly = self.exactly
        return read_all(problem, [partial(assign, values=here)], manner=exactly.manner, also=exactly.beside)[0]

    def cost(self, readings: Sequence[Reading], center: Reading, *, seconds: float) -> Cost:
        """Every reading that was taken, once: the centre may stand in several places."""
        taken = {id(reading): reading for reading in [*readings, center]}.values()
        whole = len(center.weights)
        passes = sum(len(each.weights) / whole if each.partial else 1.0 for each in taken)
        each = self.manner.passes + sum(how.passes for _, how in self.beside.values())
        found = Cost(forwards=passes * each + self.route.passes, seconds=seconds)
        return Cost(gradients=passes, forwards=passes * (each - 1), seconds=seconds) if self.gradient else found

    @property
    def gradient(self) -> bool:
        """Whether gradients are taken."""
        return self.manner.quantities.gradient

    def context(self) -> dict[str, Any]:
        """What a record says of it."""
        found: dict[str, Any] = {"engine": self.route.engine} if self.route.asked else {}
        if self.manner.batchnorm is not None:
            found["batchnorm"] = {"stored": "stored statistics", "batch": "batch statistics"}.get(
                self.manner.batchnorm, "recalibrated at every point"
            )
        if self.manner.autocast is not None:
            found["autocast"] = str(self.manner.autocast).removeprefix("torch.")
        return found


def asked(
    problem: Problem,
    *,
    scalars: Scalars = (),
    groups: By | None = None,
    also: Mapping[str, Problem] | None = None,
    batchnorm: BatchNorm | None = None,
    cap: float = float("inf"),
    autocast: torch.dtype | None = None,
) -> Asked:
    """The options of a survey, checked against its problems.

    Raises:
        ProblemError: an option is not known, or the other problems are of another model.
    """
    if not cap > 0:
        raise ProblemError(f"Expected a positive cap, found {cap!r}.")
    if autocast not in (None, torch.bfloat16, torch.float16):
        raise ProblemError(f"Expected autocast to be torch.bfloat16, torch.float16 or None, found {autocast!r}.")
    if autocast is not None and problem.dtype == torch.float64:
        raise ProblemError(
            f"Expected a problem in float32 for autocast={autocast}, found float64, which it would leave as it is."
        )

    def of(each: Problem) -> Manner:
        return Manner(quantities(each, scalars, groups), checked(batchnorm, each), cap, autocast)

    beside = {}
    for name, other in (also or {}).items():
        if other.model is not problem.model or other.layout != problem.layout or other.dtype != problem.dtype:
            raise ProblemError(
                f"Expected also={{{name!r}: …}} to be a problem of the same model with the same parameters and type, on other "
                f"data, found {other!r} beside {problem!r}."
            )
        beside[name] = (other, of(other))
    return Asked(of(problem), beside)


def _exact(manner: Manner) -> Manner:
    return replace(manner, autocast=None, cap=float("inf"))
