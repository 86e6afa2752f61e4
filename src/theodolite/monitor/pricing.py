"""What the sharpness will cost, from a timed product, before it is measured for the first time."""

from __future__ import annotations

import torch
from torch.optim import Optimizer

from theodolite.measures.rules import Rule, rule_of
from theodolite.operators import Hessian
from theodolite.problem import Problem
from theodolite.problem.data import Batches, split

# On networks of two layers, to a residual of 1e-2, readings took 13 to 30 products under SGD and 24 to 48 under AdamW. The
# graphs of all chunks, the gradient and the recomputed residual come on top, in units of a product.
LANCZOS_PRODUCTS = 20
OTHER_PRODUCTS = 6


def expected_products(problem: Problem, optimizer: Optimizer, *, max_products: int) -> int:
    """Products that a reading of stability is worth; Lanczos runs twice where the bound needs an eigenvalue of its own."""
    rule = rule_of(optimizer, problem)
    runs = 2 if isinstance(rule, Rule) and rule.shift is None else 1
    return OTHER_PRODUCTS + runs * min(LANCZOS_PRODUCTS, max_products)


def product_seconds(problem: Problem) -> float:
    """Seconds that one warm Hessian product over all the data takes, by the engine that will be used.

    Products with the first chunk are timed on a graph that a product before them built, and scaled by samples; where the
    graphs of all chunks exceed the memory cap, on graphs that are built anew.

    Cost: the certificate and the checks of the problem, which are made only once, and a gradient and three products of one
    chunk, or twice that.
    """
    problem.ensure_checked()
    one = problem.select(None)
    batch = problem.batches.first()
    first = batch if problem.microbatch is None else split(batch, problem.microbatch)[0]
    one.batches = Batches([first])
    share = problem.objective.samples(first) / problem.samples
    seconds, kept = _warm_product(one)
    if kept / share > problem.memory:
        one.engine = "fresh"
        seconds, _ = _warm_product(one)
    return seconds / share


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
