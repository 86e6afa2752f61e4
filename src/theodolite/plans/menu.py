"""What can be asked for by name: measures with what they are expected to cost, and plans made of them."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, final

from torch import Tensor

from theodolite.errors import ProblemError
from theodolite.landscapes import line, plane
from theodolite.measures import (
    batch_sharpness,
    classwise,
    density,
    directional,
    gradients,
    outliers,
    sharpness,
    spectrum,
    trace,
    tuning,
)
from theodolite.problem import Problem
from theodolite.problem.identity import identity
from theodolite.problem.objective import CriterionObjective, pair
from theodolite.records import Cost, Record

Measure = Callable[[Problem], Record]
PlanName = Literal["quick", "standard", "deep"]


@final
@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A measure with its options.

    Args:
        name: shown while it runs.
        function: takes the problem and the options.
        options: keywords for the function.
        expected: passes over the data that it will take, without seconds; None where nobody knows.
        plan: what is computed, in words that tell it from everything else; None where it cannot be told.
    """

    name: str
    function: Callable[..., Record]
    options: Mapping[str, Any] = field(default_factory=dict)
    expected: Cost | None = None
    plan: str | None = None

    def __call__(
        self, problem: Problem, *, seed: int, store: Path | None, on_part: Callable[[str, float], None]
    ) -> Record:
        """Measure, telling what is going on and the share done; points of a grid are kept in ``store`` meanwhile."""
        options = dict(self.options)
        taken = inspect.signature(self.function).parameters
        if "seed" in taken:
            options["seed"] = seed
        if "store" in taken:
            options["store"] = store
        if "on_step" in taken and self.expected is not None:
            total = self.expected.products
            options["on_step"] = lambda done, worst: on_part(
                f"{self.name}: {done} products, worst residual {worst:.0e}", min(done / total, 1.0)
            )
        if "on_point" in taken:
            options["on_point"] = lambda done, total: on_part(f"{self.name}: {done} of {total} points", done / total)
        return self.function(problem, **options)


@final
@dataclass(frozen=True)
class _Named:
    """A function with its standard options, and the passes over the data that options will take."""

    function: Callable[..., Record]
    options: Mapping[str, Any]
    expected: Callable[[Mapping[str, Any]], Cost]


def _passes(*, products: int = 0, gradients: int = 0, forwards: int = 0) -> Cost:
    return Cost(products=float(products), gradients=float(gradients), forwards=float(forwards))


def _gradients_cost(options: Mapping[str, Any]) -> Cost:
    """The Gram matrix of at most 256 samples takes some two gradients of them, and three to learn where samples lie."""
    return _passes(gradients=6, forwards=1) if options["gram"] else _passes(gradients=1)


def _spectrum_cost(options: Mapping[str, Any]) -> Cost:
    """Lanczos takes 2 to 4 products a pair and about 10 more, at least ``steps`` for a density; one a pair verifies it.

    Missed copies take 8 more, the halves about 15.
    """
    pairs = options["k"] * (2 if options["which"] == "both" else 1)
    found = 10 + 3 * pairs
    if options["probes"]:
        found = max(found, options["steps"]) + options["probes"]
    return _passes(products=found + 8 + pairs + 15 * options["halves"], gradients=1 + options["halves"])


def _plane_cost(options: Mapping[str, Any]) -> Cost:
    """Every cell, or those through which a smooth surface is splined; a rugged one takes more, up to every cell."""
    cells = options["points"] ** 2
    return _passes(forwards=cells if options["interpolate"] is None else min(cells, 13 * 13 + 24))


MEASURES: Mapping[str, _Named] = {
    "gradients": _Named(gradients, {"gram": False}, _gradients_cost),
    "spectrum": _Named(spectrum, {"k": 5, "which": "both", "probes": 12, "steps": 60, "halves": True}, _spectrum_cost),
    "trace": _Named(trace, {"probes": 32}, lambda options: _passes(products=options["probes"], gradients=1)),
    "density": _Named(
        density,
        {"probes": 4, "steps": 40},
        lambda options: _passes(products=options["probes"] * options["steps"], gradients=1),
    ),
    "classwise": _Named(classwise, {}, lambda options: _passes(products=50, gradients=1, forwards=2)),
    "outliers": _Named(outliers, {}, lambda options: _passes(products=130, gradients=2, forwards=2)),
    "directional": _Named(directional, {}, lambda options: _passes(products=1, gradients=3, forwards=7)),
    "sharpness": _Named(sharpness, {}, lambda options: _passes(gradients=1, forwards=2)),
    "tuning": _Named(tuning, {"steps": 20}, lambda options: _passes(products=options["steps"], gradients=1)),
    "batch sharpness": _Named(batch_sharpness, {}, lambda options: _passes(products=72, gradients=5)),
    "line": _Named(line, {"points": 41}, lambda options: _passes(forwards=options["points"])),
    "plane": _Named(plane, {"points": 21, "interpolate": None}, _plane_cost),
}

PLANS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "quick": {"gradients": {}, "spectrum": {"k": 1, "probes": 0, "halves": False}, "line": {"points": 21}},
    "standard": {"gradients": {}, "spectrum": {}, "plane": {}},
    "deep": {
        "gradients": {"gram": "auto"},
        "spectrum": {"k": 20, "probes": 32, "steps": 160},
        "outliers": {},
        "classwise": {},
        "directional": {},
        "sharpness": {},
        "tuning": {},
        "batch sharpness": {},
        "line": {},
        "plane": {"points": 51, "interpolate": 1e-3},
    },
}


# A plan leaves them out where the targets are not classes, one a sample; asked for by name they say so themselves.
OF_CLASSES = ("classwise", "outliers")
MOST_CLASSES = 100


def chosen(problem: Problem, measures: str | Sequence[str | Measure]) -> tuple[Measurement, ...]:
    """The measurements of a plan, or those of names and functions.

    Args:
        problem: what will be surveyed.
        measures: the name of a plan, or a sequence of names and functions.

    Raises:
        ProblemError: a name is unknown.
    """
    if isinstance(measures, str):
        if measures not in PLANS:
            raise ProblemError(
                f"Expected a plan among {', '.join(map(repr, PLANS))}, found {measures!r}. A single measure is asked for in a "
                f"list, measures=[{measures!r}]; there are {', '.join(map(repr, MEASURES))}."
            )
        return tuple(_of_plan(problem, PLANS[measures]))
    return tuple(by_name(each) if isinstance(each, str) else by_function(each) for each in measures)


def _of_plan(problem: Problem, plan: Mapping[str, Mapping[str, Any]]) -> Iterator[Measurement]:
    """The measures of a plan that this problem can be asked, with the options that it bears."""
    classes = count_classes(problem) if any(name in OF_CLASSES for name in plan) else 0
    for name, options in plan.items():
        if name == "outliers" and classes:
            expected = _spectrum_cost(
                {"k": 3 * classes, "which": "largest", "probes": 12, "steps": 60, "halves": False}
            )
            yield replace(by_name(name, **options), expected=expected + _passes(gradients=1, forwards=2))
        elif name == "spectrum" and not _can_be_halved(problem):
            yield by_name(name, **{**options, "halves": False})
        elif name == "batch sharpness" and problem.coupled:
            continue
        elif classes or name not in OF_CLASSES:
            yield by_name(name, **options)


def count_classes(problem: Problem) -> int:
    """Classes among the targets of the first batch; 0 where targets are not classes, one a sample, or samples share a loss."""
    if not isinstance(problem.objective, CriterionObjective) or problem.coupled or problem.ranks.size > 1:
        return 0
    _, targets = pair(problem.batches.first())
    if not isinstance(targets, Tensor) or targets.ndim != 1 or targets.is_floating_point():
        return 0
    found = len(targets.unique())
    return found if 1 < found <= MOST_CLASSES else 0


def _can_be_halved(problem: Problem) -> bool:
    """Whether there are two samples, or two batches where samples are coupled."""
    batches = itertools.islice(problem.chunks(), 2) if problem.coupled and problem.ranks.size == 1 else range(2)
    return problem.samples > 1 and len(list(batches)) > 1


def by_name(name: str, **options: Any) -> Measurement:
    """A named measure, with options that differ from its standard ones.

    Raises:
        ProblemError: the name is unknown.
    """
    if name not in MEASURES:
        raise ProblemError(
            f"Expected measures among {', '.join(map(repr, MEASURES))}, or functions of the problem, found {name!r}."
        )
    named = MEASURES[name]
    asked = {**named.options, **options}
    words = ", ".join(f"{key}={value!r}" for key, value in asked.items())
    return Measurement(
        name=name, function=named.function, options=asked, expected=named.expected(asked), plan=f"{name}({words})"
    )


def by_function(measure: Measure) -> Measurement:
    """A function from the problem to a record; its code, closure and options are what tells it from others."""
    name = str(getattr(getattr(measure, "func", measure), "__name__", type(measure).__name__))
    content = identity(measure, strict=True)
    return Measurement(
        name=name, function=lambda problem: measure(problem), plan=None if content is None else f"{name} {content}"
    )
