"""Many points in one call of the model: parameters are written in place, the batches stay where they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from theodolite.landscapes.batchnorm import BatchNorm, averaging, statistics
from theodolite.landscapes.first_layer import FirstLayer
from theodolite.landscapes.prefix import Prefix
from theodolite.landscapes.reading import Reading, additive
from theodolite.landscapes.scalars import GRADIENT_NORM, Quantities
from theodolite.problem import Chunk, Point, Problem
from theodolite.problem.data import tensors_of
from theodolite.problem.objective import CriterionObjective, pair
from theodolite.problem.problem import gradients

Write = Callable[[Sequence[Tensor]], None]
Pairs = list[tuple[Tensor, Tensor | float]]
T = TypeVar("T")


@dataclass(frozen=True)
class Manner:
    """How points are read.

    Args:
        quantities: what is counted beside the loss.
        batchnorm: which statistics BatchNorm uses; None for those that the mode of the problem says.
        cap: a point whose first chunk has a larger loss is read no further; on ranks that divide the data every point is read
            to the end, as they would have to agree on each.
        autocast: a type in which to compute what bears it; None for the problem's own.
    """

    quantities: Quantities = field(default_factory=lambda: Quantities({}))
    batchnorm: BatchNorm | None = None
    cap: float = math.inf
    autocast: torch.dtype | None = None

    @property
    def passes(self) -> float:
        """Forward passes that a point takes."""
        return 2.0 if self.batchnorm == "recalibrated" else 1.0


AS_IT_IS = Manner()


@final
@dataclass(frozen=True)
class Move:
    """Writes base + Σ position · axes, from base afresh at every point, so that no rounding piles up from point to point."""

    base: Sequence[Tensor]
    axes: Sequence[Sequence[Tensor]]
    position: Sequence[float]

    def __call__(self, leaves: Sequence[Tensor]) -> None:
        assign(leaves, self.base)
        for axis, scale in zip(self.axes, self.position, strict=True):
            try:
                torch._foreach_add_(list(leaves), list(axis), alpha=scale)
            except (AttributeError, RuntimeError):  # not public: it may go, or refuse a type
                for leaf, part in zip(leaves, axis, strict=True):
                    leaf.add_(part, alpha=scale)

    def on(self, chosen: Sequence[bool]) -> Move:
        """The same for some of the tensors."""
        return Move(_those(self.base, chosen), [_those(axis, chosen) for axis in self.axes], self.position)


@dataclass
class Sums:
    """Those of one point over the chunks of this rank: (total, weight) of the loss, then of every quantity."""

    pairs: list[Pairs] = field(default_factory=list)
    rows: list[Float[Tensor, " n"]] = field(default_factory=list)
    loss: float | None = None

    @property
    def left(self) -> bool:
        """Whether the point was read no further than its first chunk."""
        return self.loss is not None


def sweep(
    problem: Problem,
    writes: Sequence[Write],
    *,
    manner: Manner = AS_IT_IS,
    prefix: Prefix | None = None,
    layer: FirstLayer | None = None,
) -> list[Reading]:
    """Readings at many points, all on the same samples with the same random numbers.

    Batches that do not fit into memory are loaded once for all points.

    Cost: one forward pass a point, of its first chunk alone where that explodes; two with recalibrated statistics.

    Args:
        problem: what is read; its model is not written to.
        writes: each writes the parameters of one point into the tensors that it is given.
        manner: how.
        prefix: outputs of modules that no point displaces, from one call to the next.
        layer: a first layer whose outputs are added up, for writes that are moves along its directions from θ, on one process.
    """
    with problem.session():
        return [combined(problem, point, manner) for point in sums(problem, writes, manner, prefix=prefix, layer=layer)]


def sums(
    problem: Problem,
    writes: Sequence[Write],
    manner: Manner,
    *,
    prefix: Prefix | None = None,
    layer: FirstLayer | None = None,
    only: list[Chunk] | None = None,
) -> list[Sums]:
    """What readings are made of, on all chunks or ``only`` some."""
    with problem.session():
        problem.ensure_checked()
        place = _placed(problem, gradient=manner.quantities.gradient)
        if layer is None:
            with torch.no_grad():
                writes[0](place.leaves)
        with problem.together("losses over points", at=place):
            here = problem.displaced(place.leaves)
            reader = _Reader(problem, here, manner, prefix, layer, only)
            return problem.call(lambda model: reader.read(model, writes), here, buffers=reader.buffers)


def assign(leaves: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Write values into tensors."""
    try:
        torch._foreach_copy_(list(leaves), list(values))
    except (AttributeError, RuntimeError):
        for leaf, value in zip(leaves, values, strict=True):
            leaf.copy_(value)


class _Reader:
    """What the points of one block share."""

    def __init__(
        self,
        problem: Problem,
        place: Point,
        manner: Manner,
        prefix: Prefix | None,
        layer: FirstLayer | None,
        only: list[Chunk] | None,
    ) -> None:
        self.problem, self.place, self.manner, self.layer, self.only = problem, place, manner, layer, only
        self._leaves = place.leaves if layer is None else _those(place.leaves, layer.written)
        self._position: Sequence[float] = ()
        self.prefix = None if manner.batchnorm == "recalibrated" or manner.quantities.gradient else prefix
        self.buffers = place.fresh_buffers()
        self._originals = place.buffers
        self._versions: dict[str, int] = {}
        self._held: list[tuple[nn.Module, str, Tensor]] = []

    def read(self, model: nn.Module, writes: Sequence[Write]) -> list[Sums]:
        """All points, each over all chunks, or all chunks, each at all points."""
        self._held = [
            (module, name, buffer)
            for module in model.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
        self._versions = {name: buffer._version for name, buffer in self.buffers.items()}
        points = [Sums() for _ in writes]
        if self.layer is not None:
            writes = [cast(Move, write).on(self.layer.written) for write in writes]
        batchnorm = self.manner.batchnorm
        fixed: AbstractContextManager[None] = nullcontext()
        if batchnorm is not None:
            fixed = statistics(model, batch=batchnorm == "batch")
        with fixed:
            for point, write, chunk, start in self._walk(points, writes, model):
                if not point.left:
                    self._take(model, point, write, chunk, start)
        return points

    def _walk(
        self, points: list[Sums], writes: Sequence[Write], model: nn.Module
    ) -> Iterator[tuple[Sums, Write | None, Chunk, int]]:
        """Which chunk to read at which point; a write where the parameters have to change first."""
        chunks = self._resident()
        if chunks is None and self.manner.batchnorm != "recalibrated":
            start = 0
            for chunk in self.problem.chunks():
                for point, write in zip(points, writes, strict=True):
                    yield point, write, chunk, start
                start += chunk.samples
            return
        for point, write in zip(points, writes, strict=True):
            self._put(write)
            self._recalibrate(model, chunks)
            start = 0
            for chunk in self.problem.chunks() if chunks is None else chunks:
                yield point, None, chunk, start
                start += chunk.samples

    def _resident(self) -> list[Chunk] | None:
        """All chunks on the device, None where they do not fit."""
        if self.only is not None:
            return self.only
        if not self.problem.batches.in_memory:
            return None
        size = sum(tensor.nbytes for batch in self.problem.batches for tensor in tensors_of(batch))
        moved = self.problem.device.type != "cpu" or self.problem.cast is not None
        return None if moved and size > self.problem.memory // 4 else list(self.problem.chunks())

    def _take(self, model: nn.Module, point: Sums, write: Write | None, chunk: Chunk, start: int) -> None:
        if write is not None:
            self._put(write)
        gradient = self.manner.quantities.gradient

        def compute() -> Pairs:
            self._reset(model)
            self.problem.reseed(chunk.index)
            with ExitStack() as stack:
                stack.enter_context(torch.set_grad_enabled(gradient))
                stack.enter_context(precision(self.problem, self.manner))
                if self.layer is not None:
                    stack.enter_context(self.layer.standing_in(chunk.index, self._position))
                return evaluated(self.problem, model, chunk, self.manner.quantities, start=start)

        kept = self.prefix
        pairs = compute() if kept is None else kept.evaluate(model, self.place.leaves, chunk.index, compute)
        if gradient:
            point.rows.append(self.problem.layout.flatten(gradients(pairs[0][0], self.place.leaves)))
        point.pairs.append([(total.detach(), weight) for total, weight in pairs])
        if len(point.pairs) == 1 and self.problem.ranks.size == 1:
            point.loss = explosion(self.problem, self.manner, *point.pairs[0][0], samples=chunk.samples)

    def _put(self, write: Write) -> None:
        with torch.no_grad():
            write(self._leaves)
        if self.layer is not None:
            self._position = cast(Move, write).position

    def _recalibrate(self, model: nn.Module, chunks: list[Chunk] | None) -> None:
        """Statistics of this point, which the evaluations that follow start from."""
        if self.manner.batchnorm != "recalibrated":
            return
        self._originals = self.place.buffers
        self._reset(model)
        seen = 0
        with averaging(model) as share, torch.no_grad(), precision(self.problem, self.manner):
            for chunk in self.problem.chunks() if chunks is None else chunks:
                seen += chunk.samples
                share(chunk.samples / seen)
                self.problem.reseed(chunk.index)
                self.problem.objective.evaluate(model, chunk.batch)
        self._originals = {name: buffer.clone() for name, buffer in self.buffers.items()}
        self._versions = {name: buffer._version for name, buffer in self.buffers.items()}

    def _reset(self, model: nn.Module) -> None:
        """Buffers as they were, those that a forward pass wrote to or put others in the place of."""
        for module, name, buffer in self._held:
            if module._buffers.get(name) is not buffer:
                module._buffers[name] = buffer
        for name, buffer in self.buffers.items():
            if buffer._version != self._versions[name]:
                with torch.no_grad():
                    buffer.copy_(self._originals[name])
                self._versions[name] = buffer._version


def _placed(problem: Problem, *, gradient: bool) -> Point:
    """A point with leaves of its own. Every one gets its own memory: kernels are slower on views that are not aligned."""
    return problem.displaced(tuple(leaf.detach().clone().requires_grad_(gradient) for leaf in problem.point().leaves))


def evaluated(problem: Problem, model: nn.Module, chunk: Chunk, wanted: Quantities, *, start: int) -> Pairs:
    """Total and weight of the loss, then of every quantity of the same forward pass."""
    if not wanted.of_forward:
        return [problem.objective.evaluate(model, chunk.batch)]
    objective = cast(CriterionObjective, problem.objective)
    outputs = objective.outputs(model, chunk.batch)
    targets = pair(chunk.batch)[1]
    loss = objective.loss.evaluate(outputs, targets)
    with torch.no_grad():
        return [loss, *wanted.read(outputs, chunk.batch, lambda: objective.loss.shares(outputs, targets), start=start)]


def precision(problem: Problem, manner: Manner) -> AbstractContextManager[Any]:
    """The arithmetic in which points are read."""
    return nullcontext() if manner.autocast is None else torch.autocast(problem.device.type, dtype=manner.autocast)


def explosion(problem: Problem, manner: Manner, total: Tensor, weight: Tensor | float, *, samples: int) -> float | None:
    """The loss of the first chunk where no other need be read: it is not finite, or above the cap."""
    share = float(weight)
    if not problem.objective.averages():
        share = samples / problem.samples * problem.total_weight(torch.ones(1))
    loss = float(total) / share if share > 0 else 0.0
    return loss if not math.isfinite(loss) or loss > manner.cap else None


def combined(problem: Problem, point: Sums, manner: Manner) -> Reading:
    """The reading of all ranks from the sums of each."""
    of_chunks = [[(float(total), float(weight)) for total, weight in pairs] for pairs in point.pairs]
    table = problem.ranks.join(torch.tensor(of_chunks, dtype=torch.float64)).numpy()
    loss, *others = (table[:, place] for place in range(table.shape[1]))
    divisor = problem.total_weight(torch.tensor(loss[:, 1]))
    names = manner.quantities.of_forward
    scalars = {name: additive(found[:, 0], found[:, 1]) for name, found in zip(names, others, strict=True)}
    if manner.quantities.gradient:
        scalars[GRADIENT_NORM] = _gradient_norm(problem, point, loss[:, 1], divisor)
    whole = additive(loss[:, 0], loss[:, 1], divisor=divisor) if point.loss is None else _first(point.loss)
    return Reading(whole.loss, whole.totals, whole.weights, whole.divisor, scalars, partial=point.left)


def _first(loss: float) -> Reading:
    """What is known of a point whose first chunk exploded: that chunk's loss, without an error."""
    nothing = np.full(1, np.nan)
    return Reading(loss, nothing, nothing, float("nan"))


def _gradient_norm(problem: Problem, point: Sums, weights: Float[np.ndarray, " c"], divisor: float) -> Reading:
    """‖g‖, and the same without each chunk."""
    rows = torch.stack([row.double() for row in point.rows])
    whole = problem.ranks.sum(rows.sum(0))
    left_out = problem.ranks.join(torch.linalg.vector_norm(whole - rows, dim=1)).cpu().numpy()
    with np.errstate(all="ignore"):  # a single chunk leaves nothing
        left_out = left_out / ((weights.sum() - weights) / weights.sum() * divisor)
    norm = float(torch.linalg.vector_norm(whole)) / divisor
    return Reading(norm, np.full(len(weights), np.nan), weights, divisor, {}, without=left_out)


def _those(values: Sequence[T], chosen: Sequence[bool]) -> tuple[T, ...]:
    return tuple(value for value, keep in zip(values, chosen, strict=True) if keep)
