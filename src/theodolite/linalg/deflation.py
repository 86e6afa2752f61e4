"""The spectral measure of a Lanczos run with its resolved eigenvalues counted one by one."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import chi2

from theodolite.linalg.basis import NOISE
from theodolite.linalg.integrals import integrate
from theodolite.linalg.iteration import Iteration
from theodolite.linalg.quadrature import Quadrature
from theodolite.linalg.trace import TraceEstimate

RESOLVED = 2e-2  # width of uncertainty over distance to the next node, below which a node is one eigenvalue
RARE = 1e-4  # probability that the weight of a single eigenvalue is taken for that of several
CONTRADICTION = 5.0  # standard errors
ROUNDING = 1e-5  # of the sum of absolute values, in single precision


def deflated_rule(run: Iteration, *, trace: TraceEstimate, square: TraceEstimate) -> Quadrature:
    """The Gauss rule of a run that began at a random vector, less the eigenvalues that it resolved.

    The squared components of a random unit vector make the weight of each eigenvalue a random number of mean 1/n; a resolved
    one is counted exactly once instead, which leaves the error of the rest only. One vector cannot tell an eigenvalue from
    several equal ones: a node whose weight is too large for a single one stays in the rule, copies found by fresh vectors are
    counted, and if the measure still contradicts the unbiased traces of A and A² nothing is taken out.
    """
    n, products = run.krylov.operator.shape[0], run.krylov.products
    if run.krylov.exhausted:
        known = torch.from_numpy(run.ritz.values.copy())
        empty = torch.zeros(1, 0, dtype=torch.float64)
        return Quadrature(nodes=empty, weights=empty, size=n, products=products, known=known, uniform=True)
    clusters = _clusters(run)
    for cluster in clusters:
        cluster.known = cluster.resolved and n * cluster.weight <= chi2.isf(RARE, cluster.copies)
    # The rest needs a node to stand for it, and an eigenvalue to stand for.
    if all(c.known for c in clusters) or sum(c.copies for c in clusters if c.known) >= n:
        max(clusters, key=lambda c: c.weight).known = False
    deflated = _rule(run, clusters)
    if _contradicts(deflated, trace, power=1) or _contradicts(deflated, square, power=2):
        return _rule(run, [])
    return deflated


@dataclass
class _Cluster:
    """Nodes of the first space that may be one eigenvalue.

    Args:
        nodes: their positions.
        value: where they are, on average by weight.
        weight: their sum.
        copies: how many Ritz values of the whole run lie there.
        resolved: whether nothing else is near.
        known: whether they are taken out of the rule as so many copies of one eigenvalue.
    """

    nodes: slice
    value: float
    weight: float
    copies: int
    resolved: bool
    known: bool = False


def _clusters(run: Iteration) -> list[_Cluster]:
    """Nodes whose intervals of uncertainty overlap, together; what they hold is one eigenvalue if they are resolved."""
    values, weights = run.first.values, run.first.coordinates[0] ** 2
    slack = run.first.bounds + NOISE * run.krylov.rounding
    lower, upper = values - slack, np.maximum.accumulate(values + slack)
    borders = [0, *(np.flatnonzero(lower[1:] > upper[:-1]) + 1).tolist(), len(values)]
    slices = [slice(first, last) for first, last in itertools.pairwise(borders)]
    starts, ends = np.array([lower[s].min() for s in slices]), np.array([upper[s][-1] for s in slices])
    gaps = np.concatenate([[np.inf], starts[1:] - ends[:-1], [np.inf]])
    final_slack = run.ritz.bounds + NOISE * run.krylov.rounding
    found = []
    for row, (nodes, low, high) in enumerate(zip(slices, starts, ends, strict=True)):
        inside = (run.ritz.values + final_slack >= low) & (run.ritz.values - final_slack <= high)
        resolved = bool(high - low <= RESOLVED * min(gaps[row], gaps[row + 1]))
        middle = float(np.average(values[nodes], weights=weights[nodes] + np.finfo(float).tiny))
        copies = max(int((inside & (final_slack <= high - low)).sum()), 1)
        found.append(
            _Cluster(nodes=nodes, value=middle, weight=float(weights[nodes].sum()), copies=copies, resolved=resolved)
        )
    return found


def _rule(run: Iteration, clusters: list[_Cluster]) -> Quadrature:
    nodes, weights = run.first.values, run.first.coordinates[0] ** 2
    known = [cluster for cluster in clusters if cluster.known]
    rest = np.ones(len(nodes), dtype=bool)
    for cluster in known:
        rest[cluster.nodes] = False
    mass = weights[rest].sum()
    values = np.array([cluster.value for cluster in known])
    # The rule of half the steps has not resolved them: it loses their true weights as negative ones.
    coarse_nodes = np.concatenate([run.coarse.values, values])
    coarse_weights = np.concatenate([run.coarse.coordinates[0] ** 2, [-cluster.weight for cluster in known]])
    return Quadrature(
        nodes=torch.from_numpy(nodes[rest])[None],
        weights=torch.from_numpy(weights[rest] / mass)[None],
        size=run.krylov.operator.shape[0],
        products=run.krylov.products,
        known=torch.from_numpy(np.repeat(values, [cluster.copies for cluster in known])),
        uniform=True,
        coarse_nodes=torch.from_numpy(coarse_nodes)[None],
        coarse_weights=torch.from_numpy(coarse_weights / mass)[None],
    )


def _contradicts(rule: Quadrature, unbiased: TraceEstimate, *, power: int) -> bool:
    """Whether the trace of a power of A by the rule differs from an unbiased estimate beyond their errors."""
    found = integrate(rule, lambda values: values**power)
    rounding = ROUNDING * integrate(rule, lambda values: values.abs() ** power).value
    # An unknown error contradicts nothing.
    return abs(found.value - unbiased.value) > CONTRADICTION * math.hypot(found.stderr, unbiased.stderr) + rounding
