"""Dot products of the gradients of many samples, also between ranks and steps, from random sketches."""

from __future__ import annotations

import time

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from theodolite.errors import OperatorError, ProblemError
from theodolite.linalg.operator import bytes_in_words
from theodolite.measures.sample_gradients import drawn
from theodolite.operators.capture import sample_gram
from theodolite.operators.count_sketch import CountSketch
from theodolite.operators.sample_sketch import SampleSketch, sample_sketch
from theodolite.problem import Problem
from theodolite.problem.arrays import to_numpy
from theodolite.problem.ranks import Facts
from theodolite.records import Cost, GradientSketch
from theodolite.records.gradient_sketch import sketch_variance

GRAM = 1.5  # gradients that a walk over all samples takes, forward pass included
MISSING = 1e-3  # of a parameter's gradient, beyond which a note says so


def gradient_sketch(
    problem: Problem,
    *,
    size: int = 1024,
    repeats: int = 4,
    samples: int = 1024,
    exact: bool = True,
    seed: int = 0,
    step: int | None = None,
) -> GradientSketch:
    """Dot products of the gradients of many samples, exact within a rank and from sketches between ranks.

    Only ``repeats · size`` numbers a sample go from rank to rank and are kept, whatever the size of the model, and sketches of one
    seed compare over steps, checkpoints and data: ``records.SketchMemory`` reads how gradients of different steps align.

    Cost: 1.1 to 1.5 gradients of ``samples`` and an addition for every entry of every gradient and repeat: 1.6 gradients with one
        repeat and 2.3 with four on a transformer with 64 tokens a sample, more where samples are short. As much as a Gram matrix
        again for ranks with several chunks if ``exact``; once for each shape of batch three gradients more for its check.

    Args:
        problem: what to survey; with ``group`` its samples lie on all ranks, each of which makes this call.
        size: numbers in a sketch; a cosine between sketches has a standard error of at most √(2/(repeats · size)).
        repeats: independent sketches of each sample, from which the error is read a second time.
        samples: how many at most, of all ranks, drawn at random where there are more.
        exact: whether dot products of samples in different chunks of one rank are exact as well; those in one chunk always are.
        seed: of the sketches and of the draw of samples.
        step: optimiser step, kept in the record.

    Returns:
        A record, the same on all ranks; a sample whose gradient is not finite is a reading.

    Raises:
        OperatorError: samples are coupled, or the Gram matrix does not fit the memory of the problem.
        ProblemError: an option makes no sense.

    Example:
        >>> inputs, targets = torch.randn(64, 10), torch.randint(3, (64,))
        >>> problem = Problem(torch.nn.Linear(10, 3), torch.nn.CrossEntropyLoss(), [(inputs, targets)])
        >>> found = gradient_sketch(problem, size=256, seed=1)
        >>> found.gram.shape, found.sketches.shape, bool(found.exact.all())
        ((64, 64), (64, 4, 256), True)

    References:
        Charikar, Chen, Farach-Colton, "Finding frequent items in data streams" (2002).
    """
    started = time.perf_counter()
    if samples < 2:
        raise ProblemError(f"Expected at least 2 samples for dot products of their gradients, found samples={samples}.")
    sketch = CountSketch(size=size, repeats=repeats, seed=seed)
    _agree(problem, sketch)
    part, indices = drawn(problem, samples, seed=seed)
    _refuse_overflow(part, sketch)
    found = sample_sketch(part, sketch)
    twice = exact and bool(part.ranks.sum(torch.tensor(float(len(found.blocks) > 1))) > 0)
    blocks = [sample_gram(part).gram] if twice else list(found.blocks)
    sketches = to_numpy(part.ranks.join(found.sketches))
    ranks = _joined(part, np.full(len(indices), part.ranks.rank))
    gram, known = _gram(sketches, *_exact(part, blocks))
    squares = np.multiply.outer(np.diagonal(gram), np.diagonal(gram))
    stderrs = np.where(known, 0.0, np.sqrt(sketch_variance(gram, squares, repeats * size)))
    share = part.samples / problem.samples
    return GradientSketch(
        step=step,
        cost=Cost(gradients=(1 + twice) * GRAM * share, seconds=time.perf_counter() - started),
        seed=seed,
        notes=_notes(part, problem, found, gram),
        context=problem.context() | {"ranks": part.ranks.size},
        gram=gram,
        stderrs=stderrs,
        sketches=sketches,
        indices=_joined(part, indices),
        ranks=ranks,
        coverage=found.coverage,
        parameters=problem.layout.names,
        size=problem.n,
    )


def _agree(problem: Problem, sketch: CountSketch) -> None:
    """One map for all ranks, as only sketches by one map compare."""
    facts = {"the size of sketches": sketch.size, "their number of repeats": sketch.repeats, "their seed": sketch.seed}
    with problem.ranks.step("sketches", lambda: Facts({name: float(fact) for name, fact in facts.items()}, {}, {})):
        pass


def _refuse_overflow(part: Problem, sketch: CountSketch) -> None:
    count = part.samples
    wanted = 8 * (4 * count**2 + count * sketch.repeats * sketch.size)
    if wanted > part.memory:
        raise OperatorError(
            f"Expected sketches of {count:,} samples and their Gram matrix to fit {bytes_in_words(part.memory)}, found "
            f"{bytes_in_words(wanted)}. Ask for fewer samples=, a smaller size=, or raise memory= of the problem."
        )


def _joined(part: Problem, values: np.ndarray) -> np.ndarray:
    """Integers of all ranks."""
    return part.ranks.join(torch.from_numpy(values).double()).long().numpy()


def _exact(part: Problem, blocks: list[Float[Tensor, "_ _"]]) -> tuple[list[int], Float[np.ndarray, "b w"]]:
    """Sizes of the exact blocks of all ranks, and their rows one below the other, filled up with zeros."""
    sizes = part.ranks.join(torch.tensor([float(len(block)) for block in blocks])).int().tolist()
    rows = torch.zeros(sum(map(len, blocks)), max(sizes), dtype=torch.float64)
    start = 0
    for block in blocks:
        rows[start : start + len(block), : len(block)] = block.cpu()
        start += len(block)
    return sizes, part.ranks.join(rows).numpy()


def _gram(
    sketches: Float[np.ndarray, "b r d"], sizes: list[int], rows: Float[np.ndarray, "b w"]
) -> tuple[Float[np.ndarray, "b b"], np.ndarray]:
    """Dot products, exact in blocks along the diagonal, and where they are."""
    flat = sketches.reshape(len(sketches), -1).astype(np.float64, copy=False)
    with np.errstate(invalid="ignore"):  # samples that are not finite are readings
        gram = flat @ flat.T / sketches.shape[1]
    known = np.zeros(gram.shape, dtype=np.bool_)
    start = 0
    for size in sizes:
        own = slice(start, start + size)
        gram[own, own], known[own, own] = rows[own, :size], True
        start += size
    return gram, known


def _notes(part: Problem, whole: Problem, found: SampleSketch, gram: Float[np.ndarray, "b b"]) -> tuple[str, ...]:
    notes = []
    if part is not whole:
        notes.append(f"{part.samples:,} samples drawn from {whole.samples:,}")
    lost = int((~np.isfinite(np.diagonal(gram))).sum())
    if lost:
        notes.append(f"the gradient is NOT finite for {lost} of {len(gram):,} samples, which statistics leave out")
    low, high = found.coverage
    if max(1 - low, high - 1) > MISSING:
        notes.append(f"samples explain from {low:.4g} to {high:.4g} of the gradients of parameters, not all")
    return tuple(notes)
