"""Which engine computes the points of a survey: the one that was asked for, or the fastest in a timed trial."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from theodolite.errors import ProblemError
from theodolite.landscapes.asked import Asked
from theodolite.landscapes.first_layer import first_layer
from theodolite.landscapes.routes import Engine, Route
from theodolite.landscapes.stacked import stacked_sums
from theodolite.landscapes.sweep import Manner, Move, sums
from theodolite.operators.certificate import clock
from theodolite.problem import Chunk, Problem
from theodolite.problem.data import tensors_of

# Points that are compared, and that are timed by the loop: entering a call costs as much as one. How many times faster another
# engine has to be.
COMPARED, TIMED, MARGIN = 4, 8, 1.2
# Points of a call of vmap: as asked for, and those that a trial compares. Beyond 32 weights leave the cache.
WIDTH, WIDTHS = 16, (8, 32)
# Bytes that an engine may take where no memory= is given: one that depended on the free memory would depend on other processes.
MEMORY = 1 << 30
GOLDEN = 0.6180339887498949


def settled(
    problem: Problem,
    asked: Asked,
    directions: Sequence[Float[Tensor, " n"]],
    axes: Sequence[Float[np.ndarray, " _"]],
    *,
    engine: Engine,
    apart: bool = False,
) -> Asked:
    """What was asked, with the route of its points.

    Every engine but the loop is first compared with it at a few points of the first chunk, and given up with a note where it
    fails or finds other losses.

    Cost: nothing for the loop; two to four passes of the first chunk for a named engine; 44 to 84 for ``"auto"``.

    Args:
        problem: what is surveyed.
        asked: how points are read.
        directions: k of them.
        axes: positions along each.
        engine: as for ``line``.
        apart: whether points are kept or divided, which only the loop computes to the same bits whatever shares a call.

    Raises:
        ProblemError: no such engine, or one that does not go with points that are kept or divided.
    """
    if engine not in get_args(Engine):
        raise ProblemError(f"Expected engine among {', '.join(map(repr, get_args(Engine)))}, found {engine!r}.")
    if engine == "loop":
        return asked
    if apart or problem.ranks.size > 1:
        if engine != "auto":
            raise ProblemError(
                f"Expected engine='loop' or 'auto' where points are kept (store=) or points or data are divided among ranks, found "
                f"engine={engine!r}: its rounding depends on which points share a call, and a resumed or divided grid would not "
                "have the bytes of one that ran through."
            )
        return _by(asked, Route(notes=["points by the loop, as they are kept or divided"]))
    axes_of = [problem.layout.unflatten(direction) for direction in directions]
    trial = _Trial(problem, asked, axes_of, _rows(axes))
    if engine == "auto" and math.prod(axis.size for axis in axes) < WIDTHS[-1]:
        return _by(asked, Route(notes=["points by the loop: too few for a trial"]))
    route = _fastest(trial) if engine == "auto" else _named(trial, engine)
    route.passes = trial.passes
    return _by(asked, route)


class _Refused(Exception):
    """Why an engine is given up, in words."""


@dataclass
class _Trial:
    """A few points on the first chunk of every problem that is read."""

    problem: Problem
    asked: Asked
    axes: Sequence[Sequence[Tensor]]
    rows: Float[np.ndarray, "rows k"]
    passes: float = 0.0
    chunks: dict[int, list[Chunk]] = field(default_factory=dict)

    @property
    def read(self) -> list[tuple[Problem, Manner]]:
        return [(self.problem, self.asked.manner), *self.asked.beside.values()]

    def losses(self, route: Route, count: int) -> list[float]:
        """Totals of the loss on the first chunks."""
        base = [leaf.detach() for leaf in self.problem.point().leaves]
        moves = [Move(base, self.axes, row.tolist()) for row in self.rows[:count]]
        found = []
        for problem, manner in self.read:
            only = self.chunks.setdefault(id(problem), [problem.first_chunk()])
            self.passes += count * only[0].samples / problem.samples
            if route.engine == "vmap":
                points = stacked_sums(problem, moves, manner, only=only)
            else:
                points = sums(problem, moves, manner, layer=route.layers.get(id(problem)), only=only)
            found += [float(point.pairs[0][0][0]) for point in points]
        return found

    def seconds(self, route: Route, count: int) -> float:
        """Of one point, of a route that has run before: its first run may prepare something."""
        start = _clock(self.problem)
        self.losses(route, count)
        return (_clock(self.problem) - start) / count

    def made(self, engine: Engine, width: int) -> Route:
        """An engine that finds at a few points what the loop finds.

        Raises:
            _Refused: it does not, or cannot.
        """
        for _, manner in self.read:
            if manner.quantities.gradient or manner.batchnorm == "recalibrated":
                raise _Refused("gradients and recalibrated statistics are taken point by point")
        try:
            route = self._linear() if engine == "linear" else self._vmap(width)
            found = self.losses(route, COMPARED)
        except _Refused:
            raise
        except Exception as error:  # anything that a model raises under vmap, or as its modules are called
            raise _Refused(f"{engine} failed with {type(error).__name__}") from error
        looped = self.losses(Route(), COMPARED)
        if not _agree(found, looped, dtype=self.problem.dtype):
            raise _Refused(f"{engine} found other losses")
        if engine == "linear":
            self._refuse_large(route)
        return route

    def _vmap(self, width: int) -> Route:
        each = max(_bytes(problem) for problem, _ in self.read)
        fitting = int(_memory(self.problem) // 4 // each)
        if fitting < 2:
            raise _Refused(f"vmap would take {each:,} bytes a point, more than an eighth of the memory")
        return Route("vmap", min(width, fitting, len(self.rows)), asked=True)

    def _linear(self) -> Route:
        layers = {}
        for problem, manner in self.read:
            layer = first_layer(problem, self.axes)
            if layer is None or manner.autocast is not None:
                raise _Refused("the first layer that is displaced is not linear, or in reduced precision")
            layers[id(problem)] = layer
        return Route("linear", layers=layers, asked=True)

    def _refuse_large(self, route: Route) -> None:
        """Outputs of the first layer on all data have to fit."""
        size = sum(
            route.layers[id(problem)].nbytes * problem.samples / self.chunks[id(problem)][0].samples
            for problem, _ in self.read
        )
        if size > _memory(self.problem) / 4:
            raise _Refused(
                f"outputs of the first layer would take {size:,.0f} bytes, more than a quarter of the memory"
            )


def _by(asked: Asked, route: Route) -> Asked:
    route.asked = True
    return replace(asked, route=route)


def _named(trial: _Trial, engine: Engine) -> Route:
    try:
        return trial.made(engine, WIDTH)
    except _Refused as why:
        return Route(notes=[f"points by the loop: {why}"])


def _fastest(trial: _Trial) -> Route:
    """The engine that a trial found clearly faster than the loop, else the loop."""
    trial.losses(Route(), COMPARED)
    loop = trial.seconds(Route(), TIMED)
    timed: list[tuple[float, Route]] = []
    said: list[str] = []
    for engine, width in [("linear", 1), *(("vmap", width) for width in WIDTHS)]:
        if timed and width == WIDTHS[-1] and timed[-1][1].engine == "vmap" and timed[-1][0] > MARGIN * loop:
            break  # clearly slower at 8 points already
        try:
            route = trial.made(engine, width)  # type: ignore[arg-type]
            timed.append((trial.seconds(route, max(TIMED, route.width)), route))
        except _Refused as why:
            said.append(str(why))
        except Exception as error:  # at more points than were compared
            said.append(f"{engine} failed with {type(error).__name__}")
    fastest, route = min(timed, key=lambda each: each[0], default=(math.inf, Route()))
    gain = loop / fastest
    if gain < MARGIN:
        said += [f"{route.engine} was {gain:.2f} times as fast in a trial"] if timed else []
        return Route(notes=[f"points by the loop: {'; '.join(dict.fromkeys(said))}"])
    how = f"vmap, {route.width} in a call" if route.engine == "vmap" else "adding up outputs of the first layer"
    route.notes.append(f"points by {how}, {gain:.1f} times as fast as the loop in a trial")
    return route


def _clock(problem: Problem) -> float:
    """Time of this process, which others on the same cores do not lengthen; on other devices by the clock."""
    return time.process_time() if problem.device.type == "cpu" else clock(problem)


def _rows(axes: Sequence[Float[np.ndarray, " _"]]) -> Float[np.ndarray, "rows k"]:
    """Points spread between 0 and the ends of all axes, the same at every call."""
    steps = np.arange(1, WIDTHS[-1] + 1)
    shrunk = (1 + (steps - 1) % COMPARED) / COMPARED
    columns = [axis[0] + (axis[-1] - axis[0]) * (steps * GOLDEN ** (1 + place) % 1) for place, axis in enumerate(axes)]
    return np.stack([column * shrunk for column in columns], axis=-1)


def _agree(found: Sequence[float], looped: Sequence[float], *, dtype: torch.dtype) -> bool:
    """Whether losses are equal to half the digits; not where none is finite, which would tell nothing."""
    values = np.abs(looped)
    finite = values[np.isfinite(values)]
    if not finite.size:
        return False
    close = math.sqrt(torch.finfo(dtype).eps)
    return bool(np.allclose(found, looped, rtol=close, atol=close * float(finite.max()), equal_nan=True))


def _bytes(problem: Problem) -> int:
    """What a point of vmap takes: its parameters, and twice the outputs of the modules on the largest batch."""
    outputs = 0

    def add(module: nn.Module, _: object, output: object) -> None:
        nonlocal outputs
        outputs += 0 if any(True for _ in module.children()) else sum(part.nbytes for part in tensors_of(output))

    handles = [module.register_forward_hook(add) for module in problem.model.modules()]
    chunk = problem.first_chunk()
    try:
        problem.evaluate(chunk, problem.point(), grad=False)
    finally:
        for handle in handles:
            handle.remove()
    largest = chunk.samples
    if problem.batches.in_memory and problem.microbatch is None:
        largest = max(problem.objective.samples(batch) for batch in problem.batches)
    return problem.n * problem.dtype.itemsize + 2 * outputs * largest // max(chunk.samples, 1)


def _memory(problem: Problem) -> int:
    given = problem.options.memory
    return min(MEMORY, problem.memory) if given is None else given
