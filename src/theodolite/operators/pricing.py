"""What a pass over all the data will take, from passes over its first chunk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch

from theodolite.operators.certificate import clock
from theodolite.operators.hessian import Hessian
from theodolite.problem import Problem
from theodolite.problem.data import Batches, split
from theodolite.records import Cost


@final
@dataclass(frozen=True, kw_only=True)
class Prices:
    """Seconds of one warm pass over all the data.

    Args:
        product: a Hessian product with one vector.
        gradient: a forward and a backward pass.
        forward: a forward pass.
    """

    product: float
    gradient: float
    forward: float

    def seconds(self, cost: Cost) -> float:
        """What the passes of a cost take together."""
        return cost.products * self.product + cost.gradients * self.gradient + cost.forwards * self.forward


def prices(problem: Problem) -> Prices:
    """Seconds of a product, a gradient and a forward pass, each timed warm on the first chunk and scaled by samples.

    Cost: that of ``product_seconds``, two gradients and two forward passes of one chunk.

    Args:
        problem: what will be surveyed.

    Raises:
        ProblemError: the problem cannot be surveyed.
        DerivativeError: second derivatives are missing or wrong.
    """
    product = product_seconds(problem)
    one, share = _first_chunk(problem)
    return Prices(
        product=product,
        gradient=_faster_of_two(one, one.gradient) / share,
        forward=_faster_of_two(one, one.loss) / share,
    )


def product_seconds(problem: Problem) -> float:
    """Seconds that one warm Hessian product over all the data takes, by the engine that will be used.

    Products with the first chunk are timed on a graph that a product before them built, and scaled by samples; where the
    graphs of all chunks exceed the memory cap, on graphs that are built anew.

    Cost: the certificate and the checks of the problem, which are made only once, and a gradient and three products of one
    chunk, or twice that.
    """
    one, share = _first_chunk(problem)
    seconds, kept = _warm_product(one)
    if kept / share > problem.memory:
        one.engine = "fresh"
        seconds, _ = _warm_product(one)
    return seconds / share


def _first_chunk(problem: Problem) -> tuple[Problem, float]:
    """The problem on its first chunk alone, and the share of the samples that it holds."""
    problem.ensure_checked()
    one = problem.select(None)
    batch = problem.batches.first()
    first = batch if problem.microbatch is None else split(batch, problem.microbatch)[0]
    one.batches = Batches([first])
    return one, problem.objective.samples(first) / problem.samples


def _warm_product(problem: Problem) -> tuple[float, float]:
    """Seconds of the faster of the second and the third product, and the bytes that the graph keeps."""
    H = Hessian(problem)
    v = torch.ones(problem.n, dtype=problem.dtype, device=problem.device)
    times = []
    for _ in range(3):
        before = H.seconds
        H @ v
        times.append(H.seconds - before)
    certificate = H.certificate
    return min(times[1:]), 0.0 if certificate is None else certificate.bytes_per_sample * problem.samples


def _faster_of_two(problem: Problem, measured: Callable[[], object]) -> float:
    """Seconds of the faster of two calls; the first one warms up."""
    times = []
    for _ in range(2):
        start = clock(problem)
        measured()
        times.append(clock(problem) - start)
    return min(times)
