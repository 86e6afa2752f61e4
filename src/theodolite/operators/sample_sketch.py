"""Sketches of the gradients of all samples, taken layer by layer, with exact dot products within a chunk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from theodolite.operators.capture import Captured, Lookup, Use, capture
from theodolite.operators.capture.checks import check
from theodolite.operators.capture.combined import combined
from theodolite.operators.capture.lookup import compacted
from theodolite.operators.capture.tally import Reading, Tally
from theodolite.operators.capture.use import Block, slabs
from theodolite.operators.count_sketch import CountSketch
from theodolite.problem import Chunk, Point, Problem

# Of the problem's memory cap, what gradients from the fallback may take.
SHARE = 0.5


@final
@dataclass(frozen=True, eq=False)
class SampleSketch:
    """Sketches of per-sample gradients of this rank, scaled so that their mean over all ranks is the gradient of the problem.

    Args:
        sketches: one for every sample and repeat.
        blocks: exact dot products of the samples of each chunk, in double precision on the CPU.
        coverage: smallest and largest share of a parameter's gradient that was captured, from the first check of each shape.
    """

    sketches: Float[Tensor, "b r d"]
    blocks: tuple[Float[Tensor, "_ _"], ...]
    coverage: tuple[float, float]


def sample_sketch(problem: Problem, sketch: CountSketch, *, point: Point | None = None) -> SampleSketch:
    """Sketch the gradient of every sample of this rank's data; nothing of samples times parameters is ever held.

    Cost: 1.1 to 1.5 gradients, and an addition for every entry of every sample's gradient and each repeat; the first call for a
        shape of batch checks its result, which takes about three gradients more.

    Args:
        problem: what to differentiate; a sample is an entry of the first dimension of its batches.
        sketch: the map.
        point: where; at the current parameters by default.

    Raises:
        OperatorError: samples are coupled.

    Example:
        >>> batch = torch.randn(5, 3), torch.tensor([0, 1, 1, 0, 1])
        >>> problem = Problem(torch.nn.Linear(3, 2), torch.nn.CrossEntropyLoss(), [batch])
        >>> sketch = CountSketch(size=64)
        >>> found = sample_sketch(problem, sketch)
        >>> torch.allclose(found.sketches.mean(0), sketch(problem.gradient()[None])[0], atol=1e-5)
        True
    """
    with problem.session(), problem.together("sketches of per-sample gradients", at=point):
        point = problem.point() if point is None else point
        chunks = [_of_chunk(problem, chunk, point, sketch) for chunk in problem.chunks()]
    weights = problem.ranks.join(torch.tensor([weight for _, _, weight, _ in chunks], dtype=torch.float64))
    factor = problem.samples / problem.total_weight(weights)
    shares = [share for *_, coverage in chunks for share in coverage]
    return SampleSketch(
        torch.cat([sketches for sketches, *_ in chunks]) * factor,
        tuple(gram * factor**2 for _, gram, *_ in chunks),
        (min(shares, default=1.0), max(shares, default=1.0)),
    )


def _of_chunk(
    problem: Problem, chunk: Chunk, point: Point, sketch: CountSketch
) -> tuple[Tensor, Tensor, float, tuple[float, ...]]:
    """Sketches, dot products, weight and coverage of a chunk; again where something turns out to need the fallback."""
    while True:
        captured = capture(problem, chunk, point)
        walk = _Walk(captured, sketch)
        if walk.finish():
            return walk.sketches, walk.tally.gram, captured.weight, tuple(captured.known.coverage.values())


class _Walk:
    """One backward pass: every use is sketched when it is met, and multiplied once its parameter has met all of its uses."""

    def __init__(self, captured: Captured, sketch: CountSketch) -> None:
        problem = captured.problem
        self.captured, self.sketch = captured, sketch
        self.sketches = sketch.zeros(captured.samples, like=torch.empty(0, dtype=problem.dtype, device=problem.device))
        self.tally = Tally(problem.layout, captured.samples, layers=False)
        self._starts = {name: place.start for name, place in problem.layout.slices.items()}
        self._left = captured.sites
        self._waiting: dict[str, list[Use]] = {}
        self._readings: dict[str, Reading] = {}

    def finish(self) -> bool:
        """Whether all that was captured is right."""
        captured, known = self.captured, self.captured.known
        before = set(known.lost)
        missed = captured.differentiate(None, self._take, retain=False)
        if not before.issuperset(missed):
            return False
        for name in list(self._waiting):
            self._multiply(name)
        for names in _groups(captured, missed):
            for use in captured.fallback(names):
                self._sketch(use)
                self._waiting[use.parameter] = [use]
                self._multiply(use.parameter)
        captured.forget()
        known.checked = known.checked or check(captured, self._readings)
        return known.checked

    def _take(self, uses: list[Use]) -> None:
        for use in uses:
            self._sketch(use)
            self._waiting.setdefault(use.parameter, []).append(use)
        for name in {use.parameter for use in uses}:
            self._left[name] -= 1
            if self._left[name] == 0:
                self._multiply(name)

    def _multiply(self, name: str) -> None:
        self._readings[name] = self.tally.add(combined(self._waiting.pop(name)), slice(0, self.captured.samples))

    def _sketch(self, use: Use) -> None:
        read = torch.arange(use.block.rows, device=self.sketches.device)
        if isinstance(use, Lookup):  # of a vocabulary, the rows that are read
            read = torch.unique(use.ids)
            (use,) = compacted([use])
        for start, stop in slabs(use):
            where = _places(use.block, read[start:stop]) + self._starts[use.parameter]
            self.sketch.add(self.sketches, use.slab(start, stop).flatten(1), where)


def _places(block: Block, rows: Int[Tensor, " r"]) -> Int[Tensor, " p"]:
    """Where the entries of some rows of a block lie in its flat parameter."""
    if not block.shape:
        return rows + block.offset
    found = block.offset + rows * block.strides[0]
    for count, stride in zip(block.shape[1:], block.strides[1:], strict=True):
        found = (found[:, None] + torch.arange(count, device=rows.device) * stride).reshape(-1)
    return found


def _groups(captured: Captured, names: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Parameters whose materialised gradients fit the memory together; one that does not fit stands alone."""
    problem = captured.problem
    sizes = dict(zip(problem.layout.names, problem.layout.sizes, strict=True))
    room = SHARE * problem.memory / (captured.samples * problem.dtype.itemsize)
    group: list[str] = []
    for name in names:
        if group and sum(sizes[other] for other in (*group, name)) > room:
            yield tuple(group)
            group = []
        group.append(name)
    if group:
        yield tuple(group)
