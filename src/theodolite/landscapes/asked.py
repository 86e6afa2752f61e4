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
from theodolite.problem.arguments import real, shown
from theodolite.problem.identity import identity
from theodolite.records import Cost

EIGENVALUES = ("lambda_max", "lambda_min")  # which a line or plane reads with ``eigenvalues``


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
    real(cap=cap)
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

    beside = {name: (other, of(other)) for name, other in _others(problem, also).items()}
    manner = of(problem)
    _refuse_equal_names(manner, beside)
    return Asked(manner, beside)


def _others(problem: Problem, also: Mapping[str, Problem] | None) -> Mapping[str, Problem]:
    """Problems on other data, by name, all of the same model."""
    if also is None:
        return {}
    if not isinstance(also, Mapping):
        raise ProblemError(
            f"Expected also to be a mapping of names to problems on other data, found {shown(also)}. Write "
            "also={'test': problem}."
        )
    for name, other in also.items():
        if not isinstance(name, str) or not name.strip():
            raise ProblemError(
                f"Expected also to name each of its problems, found {name!r}, which would make its loss one of the problem's own. "
                "Write also={'test': problem}."
            )
        if not isinstance(other, Problem):
            raise ProblemError(f"Expected also={{{name!r}: …}} to be a Problem, found {shown(other)}.")
        if other.model is not problem.model or other.layout != problem.layout or other.dtype != problem.dtype:
            raise ProblemError(
                f"Expected also={{{name!r}: …}} to be a problem of the same model with the same parameters and type, on other "
                f"data, found {_difference(other, problem)}."
            )
    return also


def _difference(other: Problem, problem: Problem) -> str:
    """How two problems differ, where their names may not tell."""
    found = f"{other!r} beside {problem!r}"
    if other.model is problem.model:
        return found
    if type(other.model) is type(problem.model):
        found = f"another module object of the same class {type(problem.model).__name__}"
    return f"{found}. Make it of the very module: problem.model"


def _refuse_equal_names(manner: Manner, beside: Beside) -> None:
    """Raise where two quantities would stand under one name, and one of them be lost."""
    own = manner.quantities.all_names
    others = [f"{name} {each}" for name, (_, how) in beside.items() for each in ("loss", *how.quantities.all_names)]
    names = [*own, *others, *EIGENVALUES]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ProblemError(
            f"Expected every quantity to have a name of its own, found {', '.join(map(repr, twice))} for two of them: scalars and "
            "groups of other problems stand behind their name in also. Choose other names."
        )


def _exact(manner: Manner) -> Manner:
    return replace(manner, autocast=None, cap=float("inf"))
