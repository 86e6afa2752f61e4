"""Traces of functions of an operator from its quadrature, with the error of the probes and that of the steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from theodolite.errors import OperatorError
from theodolite.linalg.probes import mean_with_stderr
from theodolite.linalg.quadrature import Quadrature

FEW = 10.0


class Integral(NamedTuple):
    """The trace of a function of an operator.

    Args:
        value: the estimate.
        stderr: its standard error over probes, NaN where it is not known.
        bias: how much the estimate moved when the Lanczos steps were doubled to those it has, an estimate from above of
            what more steps would still change; NaN where half the steps were not kept.
    """

    value: float
    stderr: float
    bias: float


def integrate(quadrature: Quadrature, f: Callable[[Tensor], Tensor]) -> Integral:
    """The trace of f(A), with its standard error over probes and its bias by doubling the steps.

    Several probes give their own standard error. A single one that is uniform on the sphere of dimension N has the variance
    2/(N+2)·Var f over the eigenvalues it samples, which the rule itself estimates; where fewer than ten of them decide, its
    weights for them are too random for that and the error is NaN. Known eigenvalues add no error.

    Args:
        quadrature: from ``slq`` or ``decompose``.
        f: a function of eigenvalues, elementwise, from a float64 tensor to a tensor of the same shape.

    Raises:
        OperatorError: f is not elementwise.

    Example:
        >>> import torch
        >>> from theodolite.linalg import Diagonal, integrate, slq
        >>> A = Diagonal(torch.linspace(1, 2, 50, dtype=torch.float64))
        >>> found = integrate(slq(A, probes=10, steps=8), torch.log)
        >>> abs(found.value - float(A.entries.log().sum())) < 3 * found.stderr, found.bias < 1e-3
        (True, True)

    References:
        Ubaru, Chen, Saad (2017), Fast estimation of tr(f(A)) via stochastic Lanczos quadrature.
    """
    exact = float(_elementwise(f, quadrature.known).sum()) if len(quadrature.known) else 0.0
    if not quadrature.unknown:
        return Integral(exact, 0.0, 0.0)
    size, values = quadrature.unknown, _on_nodes(f, quadrature.nodes)
    means = (quadrature.weights * values).sum(dim=1)
    mean, stderr = mean_with_stderr(means)
    if len(means) == 1 and quadrature.uniform:
        stderr = _law_of_one_vector(quadrature.weights[0], values[0] - mean, size)
    return Integral(exact + size * mean, size * stderr, size * _bias(quadrature, f, mean))


def _law_of_one_vector(weights: Float[Tensor, " s"], deviations: Float[Tensor, " s"], size: int) -> float:
    """√(2/(N+2)·Var f), NaN where so few eigenvalues make up the variance that one vector cannot tell it."""
    second, fourth = float(weights @ deviations**2), float(weights @ deviations**4)
    if second == 0:
        return 0.0
    # N·m₂²/m₄ is the number of eigenvalues if all contribute alike, and 1 if it is one of them.
    return math.sqrt(2 * second / (size + 2)) if size * second**2 / fourth >= FEW else math.nan


def _bias(quadrature: Quadrature, f: Callable[[Tensor], Tensor], mean: float) -> float:
    if quadrature.coarse_nodes is None or quadrature.coarse_weights is None:
        return math.nan
    coarse = (quadrature.coarse_weights * _on_nodes(f, quadrature.coarse_nodes)).sum(dim=1)
    return abs(float(coarse.mean()) - mean)


def _on_nodes(f: Callable[[Tensor], Tensor], nodes: Float[Tensor, "m s"]) -> Float[Tensor, "m s"]:
    """f at the nodes, 0 where they are padding."""
    valid = ~nodes.isnan()
    values = torch.zeros_like(nodes)
    values[valid] = _elementwise(f, nodes[valid])
    return values


def _elementwise(f: Callable[[Tensor], Tensor], points: Float[Tensor, " p"]) -> Float[Tensor, " p"]:
    found = f(points)
    if found.shape != points.shape:
        raise OperatorError(
            f"integrate needs an elementwise function: {len(points)} nodes went in, "
            f"a tensor of shape {tuple(found.shape)} came out."
        )
    return found.to(points)
