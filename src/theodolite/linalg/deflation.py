"""The spectral measure of a Lanczos run with its resolved eigenvalues counted one by one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import chi2

from theodolite.linalg.basis import NOISE
from theodolite.linalg.integrals import integrate
from theodolite.linalg.iteration import Iteration
from theodolite.linalg.quadrature import Quadrature
from theodolite.linalg.resolution import clusters
from theodolite.linalg.trace import TraceEstimate

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
    n, products = run.krylov.operator.size, run.krylov.products
    if run.krylov.exhausted:
        known = torch.from_numpy(run.ritz.values.copy())
        empty = torch.zeros(1, 0, dtype=torch.float64)
        return Quadrature(nodes=empty, weights=empty, size=n, products=products, known=known, uniform=True)
    nodes = _nodes(run)
    for node in nodes:
        node.known = node.resolved and n * node.weight <= chi2.isf(RARE, node.copies)
    # The rest needs a node to stand for it, and an eigenvalue to stand for.
    if all(node.known for node in nodes) or sum(node.copies for node in nodes if node.known) >= n:
        max(nodes, key=lambda node: node.weight).known = False
    deflated = _rule(run, nodes)
    if _contradicts(deflated, trace, power=1) or _contradicts(deflated, square, power=2):
        for node in nodes:
            node.known = False
        return _rule(run, nodes)
    return deflated


@dataclass
class _Node:
    """Ritz values of the first space that cannot be told apart.

    Args:
        rows: their positions.
        value: their mean by weight.
        weight: their sum.
        copies: how many Ritz values of the whole run lie there.
        resolved: whether they are one eigenvalue.
        known: whether it is taken out of the rule, so many times.
    """

    rows: slice
    value: float
    weight: float
    copies: int
    resolved: bool
    known: bool = False


def _nodes(run: Iteration) -> list[_Node]:
    weights, noise = run.first.coordinates[0] ** 2, NOISE * run.krylov.rounding
    slack = run.ritz.bounds + noise
    found = []
    for cluster in clusters(run.first.values, run.first.bounds + noise):
        inside = (run.ritz.values + slack >= cluster.low) & (run.ritz.values - slack <= cluster.high)
        parts = weights[cluster.nodes]
        node = _Node(
            rows=cluster.nodes,
            value=float(np.average(run.first.values[cluster.nodes], weights=parts + np.finfo(float).tiny)),
            weight=float(parts.sum()),
            copies=max(int((inside & (slack <= cluster.high - cluster.low)).sum()), 1),
            resolved=cluster.resolved,
        )
        found.append(node)
    return found


def _rule(run: Iteration, nodes: list[_Node]) -> Quadrature:
    weights = run.first.coordinates[0] ** 2
    known = [node for node in nodes if node.known]
    rest, converged = np.ones(len(weights), dtype=bool), np.zeros(len(weights), dtype=bool)
    for node in nodes:
        rest[node.rows], converged[node.rows] = not node.known, node.resolved
    mass = weights[rest].sum()
    values = np.array([node.value for node in known])
    # The rule of half the steps has not resolved them: it loses their true weights as negative ones.
    coarse_nodes = np.concatenate([run.coarse.values, values])
    coarse_weights = np.concatenate([run.coarse.coordinates[0] ** 2, [-node.weight for node in known]])
    return Quadrature(
        nodes=torch.from_numpy(run.first.values[rest])[None],
        weights=torch.from_numpy(weights[rest] / mass)[None],
        size=run.krylov.operator.size,
        products=run.krylov.products,
        known=torch.from_numpy(np.repeat(values, [node.copies for node in known])),
        uniform=True,
        converged=torch.from_numpy(converged[rest])[None],
        coarse_nodes=torch.from_numpy(coarse_nodes)[None],
        coarse_weights=torch.from_numpy(coarse_weights / mass)[None],
    )


def _contradicts(rule: Quadrature, unbiased: TraceEstimate, *, power: int) -> bool:
    """Whether the trace of a power of A by the rule differs from an unbiased estimate beyond their errors."""
    found = integrate(rule, lambda values: values**power)
    rounding = ROUNDING * integrate(rule, lambda values: values.abs() ** power).value
    # An unknown error contradicts nothing.
    return abs(found.value - unbiased.value) > CONTRADICTION * math.hypot(found.stderr, unbiased.stderr) + rounding
