"""Contenders on one model, timed in turn: every round times all of them and the plain gradient, in a new order."""

from __future__ import annotations

import copy
import gc
import importlib
import random
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from statistics import median

import numpy as np
import torch
from contenders import COLUMNS, Built, Contender, plain_gradient
from models import Case
from references import references, relative_error
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

Clock = Callable[[], float]
Attention = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class Effort:
    """Rounds are run until ``seconds`` are over, between ``fewest`` and ``most``, on every ``cut``-th part of the data."""

    seconds: float
    fewest: int
    most: int
    cut: int = 1


@dataclass
class Row:
    """What was measured of one contender, in gradients.

    Args:
        library: whose it is.
        product: what is computed, and how.
        columns: vectors in one call.
        note: failures, fallbacks, and what the operator says of its engine.
        construction: cost of making the operator.
        first: cost of the first call, of all its columns together.
        error: relative distance of the first product from float64.
        ratios: cost of one product in every round.
    """

    library: str
    product: str
    columns: int
    note: str = ""
    construction: float | None = None
    first: float | None = None
    error: float | None = None
    ratios: list[float] = field(default_factory=list)

    @property
    def quartiles(self) -> tuple[float, float, float] | None:
        """Lower quartile, median and upper quartile of the ratios."""
        if not self.ratios:
            return None
        low, middle, high = np.percentile(self.ratios, [25, 50, 75]).tolist()
        return low, middle, high


@dataclass(frozen=True)
class Running:
    """A contender that gave a first product, and how to repeat it."""

    row: Row
    built: Built
    attention: Attention

    def multiply(self) -> Tensor:
        with self.attention():
            return self.built.multiply()


def race(case: Case, entered: list[Contender], *, effort: Effort, clock: Clock) -> tuple[list[Row], str]:
    """Build all contenders, hold their first product against float64, and time repeated products.

    Args:
        case: model, criterion and batches; every contender gets a copy of the model and the same data.
        entered: the contenders.
        effort: how long to go on.
        clock: seconds.

    Returns:
        A row for each contender, and the size of the problem in words.
    """
    model, criterion, batches = case
    batches = [(inputs[:: effort.cut], targets[:: effort.cut]) for inputs, targets in batches]
    case = model, criterion, batches
    n = sum(parameter.numel() for parameter in model.parameters())
    V = torch.randn(n, COLUMNS, generator=torch.Generator().manual_seed(0))
    V /= V.norm(dim=0)
    exact = references(case, V)
    started = [_start(contender, case, V, exact[contender.matrix], clock) for contender in entered]
    rows, running = [row for row, _ in started], [runner for _, runner in started if runner]
    seconds = _rounds(plain_gradient(own(case), V), running, effort, clock)
    for runner in running:
        runner.row.note = "; ".join(part for part in (runner.row.note, runner.built.engine()) if part)
    for row in rows:
        row.construction, row.first = (None if s is None else s / seconds for s in (row.construction, row.first))
    count = max((len(row.ratios) for row in rows), default=0)
    shapes = " + ".join(str(tuple(inputs.shape)) for inputs, _ in batches)
    return rows, f"{n:,} parameters, inputs {shapes}, one gradient {1e3 * seconds:.0f} ms, {count} rounds"


@contextmanager
def math_attention() -> Iterator[None]:
    """Attention by plain matrix products, the only kernel with second derivatives."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


def _start(contender: Contender, case: Case, V: Tensor, exact: Tensor, clock: Clock) -> tuple[Row, Running | None]:
    """The first product; under math attention forced from outside where it fails without."""
    row = Row(contender.library, contender.product, contender.columns)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the peers; ours are tested to be silent
        try:
            importlib.import_module(contender.module)
        except ModuleNotFoundError as error:
            row.note = f"not installed ({error.name})"
            return row, None
        for attention in (nullcontext, math_attention):
            try:
                runner = _first(row, contender, case, V, exact, attention, clock)
            except Exception as error:  # whatever a library raises is what its row says
                row.note = "; ".join(part for part in (row.note, _reason(error)) if part)
                gc.collect()
                continue
            if row.note:
                row.note = f"math attention forced from outside, without it: {row.note}"
            return row, runner
    return row, None


def _first(
    row: Row, contender: Contender, case: Case, V: Tensor, exact: Tensor, attention: Attention, clock: Clock
) -> Running:
    mine = own(case)
    begin = clock()
    with attention():
        built = contender.build(mine, V)
    runner = Running(row, built, attention)
    middle = clock()
    product = runner.multiply()
    row.construction, row.first = middle - begin, clock() - middle
    row.error = relative_error(product, exact)
    return runner


def _rounds(gradient: Built, running: list[Running], effort: Effort, clock: Clock) -> float:
    """Fill in the ratios; a gradient is timed before every product, and the median of a round is its unit.

    Returns:
        Seconds of a gradient, the median over the rounds.
    """
    order = random.Random(0)
    units: list[float] = []
    deadline = time.perf_counter() + effort.seconds
    while len(units) < effort.fewest or (len(units) < effort.most and time.perf_counter() < deadline):
        gradients, products = [], []
        for runner in order.sample(running, len(running)):
            with math_attention():
                gradients.append(_timed(gradient.multiply, clock))
            products.append((runner.row, _timed(runner.multiply, clock) / runner.row.columns))
        units.append(median(gradients))
        for row, seconds in products:
            row.ratios.append(seconds / units[-1])
    return median(units)


def _timed(function: Callable[[], Tensor], clock: Clock) -> float:
    begin = clock()
    function()
    return clock() - begin


def own(case: Case) -> Case:
    """The same weights in a model that others cannot change."""
    model, criterion, batches = case
    return copy.deepcopy(model), criterion, batches


def _reason(error: Exception) -> str:
    """The first sentence of what was raised."""
    lines = str(error).strip().splitlines() or [""]
    sentence = lines[0].split(". ")[0]
    return f"{type(error).__name__}: {sentence.rstrip('.') if len(sentence) <= 160 else sentence[:159] + '…'}"
