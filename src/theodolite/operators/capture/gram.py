"""Dot products of all pairs of per-sample gradients, whole and by layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from theodolite.operators.capture.captured import Captured, capture
from theodolite.operators.capture.checks import check
from theodolite.operators.capture.combined import combined
from theodolite.operators.capture.tally import Reading, Tally
from theodolite.operators.capture.use import Use
from theodolite.problem import Chunk, Point, Problem

# Of the problem's memory cap, what factors of chunks and gradients from the fallback may take.
SHARE = 0.5


@dataclass(frozen=True, eq=False)
class SampleGram:
    """Dot products of per-sample gradients g_i, scaled so that their mean is the gradient of the problem.

    Args:
        gram: ⟨g_i, g_j⟩.
        layers: names of the layers.
        layer_norms: norm of every sample's gradient in every layer.
        layer_grams: Gram matrix of every layer, None if not asked for.
        dots: ⟨g_i, d⟩ for every direction.
        finite: whether the gradient of a sample is finite.
        coverage: for each parameter 1ᵀG1 / B² over the squared norm of its gradient by plain autograd, 1 where all of it is
            captured; from the first call for this problem and shape of batch.
        calibration: largest relative error, over the parameters, of the dot products of two samples against the samples
            run alone; from the first call as well, NaN with dropout.
        methods: for each parameter how its gradients were had: kinds of operation, or ``"fallback"``.
    """

    gram: Float[Tensor, "b b"]
    layers: tuple[str, ...]
    layer_norms: Float[Tensor, "L b"]
    layer_grams: Float[Tensor, "L b b"] | None
    dots: Float[Tensor, "b k"]
    finite: Bool[Tensor, " b"]
    coverage: dict[str, float]
    calibration: float
    methods: dict[str, str]


def sample_gram(
    problem: Problem,
    *,
    layers: bool = False,
    directions: Float[Tensor, "k n"] | None = None,
    point: Point | None = None,
    recheck: bool = False,
) -> SampleGram:
    """Dot products of the gradients of all pairs of samples, exact, on a model as it is.

    What interception does not cover exactly is found out and goes through a backward pass for each sample. The first call
    for a problem and a shape of batch checks the result by plain autograd: the gradients must add up to that of the batch, and
    two samples run alone must have the gradients that they have in the batch.

    Cost: 1.1 to 1.5 gradients of the data in one chunk; for c chunks whose factors exceed the memory, up to (c + 1)/2 as much.
        The first call takes about three gradients more.

    Args:
        problem: what to differentiate; a sample is an entry of the first dimension of its batches.
        layers: whether to keep a Gram matrix for every layer.
        directions: flat directions d for dot products ⟨g_i, d⟩, such as an update of the optimiser.
        point: where; at the current parameters by default.
        recheck: check again although this shape of batch is known.

    Raises:
        OperatorError: samples are coupled.

    Example:
        >>> batch = torch.randn(5, 3), torch.tensor([0, 1, 1, 0, 1])
        >>> problem = Problem(torch.nn.Linear(3, 2), torch.nn.CrossEntropyLoss(), [batch])
        >>> found = sample_gram(problem)
        >>> bool(torch.isclose(found.gram.mean(), problem.gradient().double().square().sum()))
        True

    References:
        Goodfellow, "Efficient per-example gradient computations" (2015); Rochette et al., "Efficient per-example gradient
        computations in convolutional neural networks" (2019).
    """
    with problem.session(), problem.together("dot products of per-sample gradients", at=point, vectors=directions):
        point = problem.point() if point is None else point
        chunks = list(problem.chunks())
        while True:
            tally = Tally(problem.layout, sum(chunk.samples for chunk in chunks), layers=layers, directions=directions)
            runs = (_one if len(chunks) == 1 else _many)(problem, chunks, point, tally, recheck=recheck)
            if runs is not None:
                break
    weights = problem.ranks.join(torch.tensor([run.weight for run in runs], dtype=torch.float64))
    return _scaled(tally, problem, runs, problem.samples / problem.total_weight(weights))


def _one(problem: Problem, chunks: list[Chunk], point: Point, tally: Tally, *, recheck: bool) -> list[Captured] | None:
    """One chunk: every parameter is added as soon as the backward pass has met all of its uses, and forgotten.

    Returns:
        The pass, None if the checks found something that must go to the fallback.
    """
    captured = capture(problem, chunks[0], point)
    rows = slice(0, captured.samples)
    left = captured.sites
    waiting: dict[str, list[Use]] = {}
    readings: dict[str, Reading] = {}

    def multiply(name: str) -> None:
        uses = combined(waiting.pop(name))
        if to_check:
            readings[name] = tally.add(uses, rows)
        else:
            tally.collect(uses, rows)

    def take(uses: list[Use]) -> None:
        for use in uses:
            waiting.setdefault(use.parameter, []).append(use)
        for name in {use.parameter for use in uses}:
            left[name] -= 1
            if left[name] == 0:
                multiply(name)

    before, to_check = set(captured.known.lost), recheck or not captured.known.checked
    missed = captured.differentiate(None, take, retain=False)
    if not before.issuperset(missed):
        return None
    for name in list(waiting):
        multiply(name)
    tally.settle(rows)
    for names in _groups(missed, captured):
        for use in captured.fallback(names):
            readings[use.parameter] = tally.add([use], rows)
    return [captured] if _agree(captured, readings, recheck=recheck) else None


def _groups(names: tuple[str, ...], captured: Captured) -> Iterator[tuple[str, ...]]:
    """Parameters whose materialised gradients fit the memory together; one that does not fit stands alone."""
    if not names:
        return
    layout, room = captured.problem.layout, SHARE * captured.problem.memory
    sizes = dict(zip(layout.names, layout.sizes, strict=True))
    group: list[str] = []
    for name in names:
        entries = sum(sizes[other] for other in (*group, name))
        if group and entries * captured.samples * captured.problem.dtype.itemsize > room:
            yield tuple(group)
            group = []
        group.append(name)
    if group:
        yield tuple(group)


def _many(problem: Problem, chunks: list[Chunk], point: Point, tally: Tally, *, recheck: bool) -> list[Captured] | None:
    """Several chunks: factors are kept for the products between chunks while they fit, and computed again beyond."""
    held: dict[int, dict[str, list[Use]]] = {}
    room = SHARE * problem.memory
    runs: list[Captured] = []
    ends = torch.tensor([0, *(chunk.samples for chunk in chunks)]).cumsum(0).tolist()
    places = [slice(start, stop) for start, stop in pairwise(ends)]

    def factors(place: int) -> dict[str, list[Use]]:
        return held[place] if place in held else capture(problem, chunks[place], point).merged(retain=False)

    for place, chunk in enumerate(chunks):
        captured = capture(problem, chunk, point)
        runs.append(captured)
        mine = captured.merged(retain=False)
        readings = {name: tally.add(uses, places[place]) for name, uses in mine.items()}
        if not _agree(captured, readings, recheck=recheck):
            return None
        for other in range(place):
            theirs = factors(other)
            for name, uses in mine.items():
                if name in theirs:
                    tally.add_pair(uses, places[place], theirs[name], places[other])
        room -= sum(use.nbytes for uses in mine.values() for use in uses)
        if room > 0:
            held[place] = mine
    return runs


def _agree(captured: Captured, readings: dict[str, Reading], *, recheck: bool) -> bool:
    known = captured.known
    captured.forget()
    if known.checked and not recheck:
        return True
    known.checked = check(captured, readings)
    return known.checked


def _scaled(tally: Tally, problem: Problem, runs: list[Captured], factor: float) -> SampleGram:
    layer_grams = None if tally.layer_grams is None else tally.layer_grams * factor**2
    gram = tally.gram * factor**2
    coverage: dict[str, float] = {}
    for run in runs:
        coverage = {name: _further(coverage.get(name, 1.0), found) for name, found in run.known.coverage.items()}
    return SampleGram(
        gram=gram,
        layers=tuple(problem.layout.layers),
        layer_norms=tally.layer_squares.clamp_min(0).sqrt() * factor,
        layer_grams=layer_grams,
        dots=tally.dots * factor,
        finite=gram.diagonal().isfinite(),
        coverage=coverage,
        calibration=max(run.known.calibration for run in runs),
        methods={name: tally.methods.get(name, "none") for name in problem.layout.names},
    )


def _further(a: float, b: float) -> float:
    """Of two coverages the one further from 1."""
    return max(a, b, key=lambda coverage: abs(coverage - 1))
