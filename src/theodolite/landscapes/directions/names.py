"""The names by which lines and planes know directions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, final

import numpy as np
from jaxtyping import Float
from torch import Tensor

from theodolite.errors import ProblemError
from theodolite.landscapes.directions.curvature import End, Operator, outermost
from theodolite.landscapes.directions.drawn import filter_normalised, gaussian, random_directions, uniform
from theodolite.landscapes.directions.slopes import ascent, gradient
from theodolite.landscapes.directions.vectors import as_direction
from theodolite.problem import Problem
from theodolite.records import Cost
from theodolite.records.text import number

Vector = Tensor | np.ndarray
Name = Literal["filter", "gaussian", "uniform", "gradient", "ascent", "hessian", "hessian-smallest", "ggn"]
PairName = Literal["filter", "gaussian", "uniform", "hessian", "hessian-ends", "ggn"]
Direction = Name | Vector | Mapping[str, Vector]
Pair = PairName | tuple[Name | Vector, Name | Vector] | Mapping[str, Vector]
Triple = PairName | tuple[Name | Vector, Name | Vector, Name | Vector] | Mapping[str, Vector]

RANDOM = ("filter", "gaussian", "uniform")
EIGENVECTORS: dict[str, tuple[Operator, End]] = {
    "hessian": ("hessian", "largest"),
    "hessian-smallest": ("hessian", "smallest"),
    "hessian-ends": ("hessian", "both"),
    "ggn": ("ggn", "largest"),
}
SINGLES = (*RANDOM, "gradient", "ascent", "hessian", "hessian-smallest", "ggn")
PAIRS = (*RANDOM, "hessian", "hessian-ends", "ggn")
TOL = 1e-3
SUBSCRIPTS = "₁₂₃"


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Named:
    """Directions and what a record says of them.

    Args:
        vectors: one to three of n numbers.
        name: of the kind, ``"given"`` for vectors without one; of several kinds, ``"first, second"``.
        random: whether they depend on a seed.
        notes: eigenvalues with their residuals.
        cost: what they took.
    """

    vectors: tuple[Float[Tensor, " n"], ...]
    name: str
    random: bool = False
    notes: tuple[str, ...] = ()
    cost: Cost = field(default_factory=Cost)


def named_direction(problem: Problem, direction: Direction, *, seed: int) -> Named:
    """One direction by its name, or a vector as it is.

    Args:
        problem: what is surveyed.
        direction: ``"filter"`` (Gaussian with the norms of the model's filters; biases and norm weights stay), ``"gaussian"``,
            ``"uniform"`` (as Loss Landscape Analysis draws), ``"gradient"`` at its own length, ``"ascent"`` (what SAM adds, ρ =
            0.05), unit eigenvectors ``"hessian"`` (largest eigenvalue), ``"hessian-smallest"`` (most negative) or ``"ggn"``; a
            vector of n numbers; or ``{name: vector}``, to name it in the record.
        seed: of a random direction or of Lanczos.

    Raises:
        ProblemError: the name is not known, or the vector does not fit.
        NonFiniteError: the vector is not finite.
    """
    if isinstance(direction, Mapping):
        return _of_mapping(problem, direction, count=1)
    if not isinstance(direction, str):
        return Named(vectors=(as_direction(direction, problem),), name="given")
    if direction not in SINGLES:
        raise ProblemError(f"Expected direction to be {_listed(SINGLES)} or a vector, found {direction!r}.")
    if direction in EIGENVECTORS:
        return _eigenvectors(problem, direction, k=1, seed=seed)
    if direction in RANDOM:
        draw = {"filter": filter_normalised, "gaussian": gaussian, "uniform": uniform}[direction]
        drawn = draw(problem, seed=seed)
        return Named(vectors=(as_direction(drawn, problem),), name=direction, random=True)
    slope = gradient(problem) if direction == "gradient" else ascent(problem)
    return Named(vectors=(as_direction(slope, problem),), name=direction, cost=Cost(gradients=1.0))


def named_pair(problem: Problem, directions: Pair, *, seed: int) -> Named:
    """Two directions by one name, or by a name or vector each.

    Args:
        problem: what is surveyed.
        directions: ``"filter"``, ``"gaussian"`` or ``"uniform"``, the second made orthogonal to the first; the unit eigenvectors
            ``"hessian"`` (two largest eigenvalues), ``"hessian-ends"`` (largest and smallest) or ``"ggn"``; two, each a name as for
            ``named_direction`` or a vector, used as they are; or ``{name: vector, name: vector}``.
        seed: of random directions and of Lanczos; the first random one is that of a line, each further one named by itself has
            the next seed.

    Raises:
        ProblemError: a name is not known, or a vector does not fit.
        NonFiniteError: a vector is not finite.
    """
    return _named(problem, directions, count=2, seed=seed)


def named_triple(problem: Problem, directions: Triple, *, seed: int) -> Named:
    """Three directions by one name, or by a name or vector each, as ``named_pair`` knows them.

    ``"hessian-ends"`` are the largest, the smallest and the second largest eigenvalue.

    Args:
        problem: what is surveyed.
        directions: as for ``named_pair``, one more.
        seed: as there.
    """
    return _named(problem, directions, count=3, seed=seed)


def _named(problem: Problem, directions: Pair | Triple, *, count: int, seed: int) -> Named:
    if isinstance(directions, Mapping):
        return _of_mapping(problem, directions, count=count)
    if isinstance(directions, tuple):
        return _of_several(problem, directions, count=count, seed=seed)
    if directions not in PAIRS:
        raise ProblemError(
            f"Expected directions to be {_listed(PAIRS)}, 'trajectory' (of a plane), {count} of {_listed(SINGLES)} or vectors, "
            f"found {directions!r}."
        )
    if directions in EIGENVECTORS:
        return _eigenvectors(problem, directions, k=count, seed=seed)
    draw: Literal["gaussian", "uniform"] = "uniform" if directions == "uniform" else "gaussian"
    how: Literal["filter", "none"] = "filter" if directions == "filter" else "none"
    drawn = random_directions(problem, seed=seed, count=count, how=how, draw=draw)
    return Named(vectors=tuple(as_direction(vector, problem) for vector in drawn), name=directions, random=True)


def _of_mapping(problem: Problem, given: Mapping[str, Vector], *, count: int) -> Named:
    if len(given) != count:
        raise ProblemError(f"Expected {count} named vectors, found {len(given)}: {', '.join(given) or 'none'}.")
    return Named(vectors=tuple(as_direction(vector, problem) for vector in given.values()), name=", ".join(given))


def _of_several(problem: Problem, directions: tuple[Name | Vector, ...], *, count: int, seed: int) -> Named:
    if len(directions) != count:
        raise ProblemError(f"Expected {count} directions, found {len(directions)}.")
    found: list[Named] = []
    for direction in directions:
        # One seed would draw one vector twice: two Gaussian directions that differ in their normalisation alone.
        drawn = sum(each.name in RANDOM for each in found) if isinstance(direction, str) and direction in RANDOM else 0
        found.append(named_direction(problem, direction, seed=seed + drawn))
    names = [each.name for each in found]
    return Named(
        vectors=tuple(vector for each in found for vector in each.vectors),
        name="given" if set(names) == {"given"} else ", ".join(names),
        random=any(each.random for each in found),
        notes=tuple(
            note.replace("d₁", f"d{SUBSCRIPTS[place]}") for place, each in enumerate(found) for note in each.notes
        ),
        cost=sum((each.cost for each in found), Cost()),
    )


def _eigenvectors(problem: Problem, name: str, *, k: int, seed: int) -> Named:
    operator, which = EIGENVECTORS[name]
    pairs, H = outermost(problem, k=k, which=which, operator=operator, tol=TOL, seed=seed)
    notes = tuple(
        f"d{SUBSCRIPTS[index]} is the unit eigenvector of the {operator} with eigenvalue {number(value)}, residual {residual:.1g}"
        + ("" if converged else " (NOT CONVERGED)")
        for index, (value, residual, converged) in enumerate(
            zip(pairs.values.tolist(), pairs.residuals.tolist(), pairs.converged.tolist(), strict=True)
        )
    )
    return Named(
        vectors=tuple(as_direction(row, problem) for row in pairs.vectors),
        name=name,
        random=True,
        notes=(*notes, *H.notes),
        cost=replace(H.cost, seconds=0.0),
    )


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(map(repr, names))
