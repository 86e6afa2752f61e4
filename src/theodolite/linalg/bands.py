"""Shares of eigenvalues from a quadrature, with bands for the probes and for the resolution of the rules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.special import betainc, ndtri

from theodolite.errors import OperatorError
from theodolite.linalg.quadrature import Quadrature

BISECTIONS = 50
NODES = 4.0  # standard errors in the weight of a node: at the border of a gap half a node is missing, two of them

Side = Literal["left", "right"]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Share:
    """Shares of the eigenvalues, each with a confidence interval.

    Args:
        value: the estimates.
        lower: lower ends of their intervals.
        upper: upper ends.
        resolution: how far the shares could move without a change of the rules, a certain bound. The intervals hold a
            standard error of a quarter of the larger neighbouring weight for it. More Lanczos steps reduce it, more probes
            the rest.
    """

    value: Float[np.ndarray, "*g"]
    lower: Float[np.ndarray, "*g"]
    upper: Float[np.ndarray, "*g"]
    resolution: Float[np.ndarray, "*g"]


def cumulative(quadrature: Quadrature, points: Float[np.ndarray, " g"], *, level: float = 0.95) -> Share:
    """Share of the eigenvalues at most each point, with its band.

    Two errors make the band. The mass that m probes uniform on the sphere of dimension N give to K eigenvalues has the law
    Beta(mK/2, m(N − K)/2), which is inverted for K. And a Gauss rule determines the mass up to a point only to within the
    weights of the neighbouring nodes (Chebyshev, Markov, Stieltjes); between them the mass is interpolated. Known eigenvalues
    and nodes that have converged are jumps without that second error. Signs as probes vary less than the law says.

    Cost: no products.

    Args:
        quadrature: from ``slq`` or ``decompose``.
        points: where.
        level: coverage of the band at each point.

    Raises:
        OperatorError: level is not between 0 and 1.

    Example:
        >>> import numpy as np, torch
        >>> from theodolite.linalg import Diagonal, cumulative, slq
        >>> A = Diagonal(torch.linspace(0, 1, 400, dtype=torch.float64))
        >>> share = cumulative(slq(A, probes=4, steps=30), np.array([0.25, 2.0]))
        >>> bool(share.lower[0] < 0.25 < share.upper[0]), round(float(share.value[1]), 9)
        (True, 1.0)

    References:
        Chen, Trogdon, Ubaru (2021), Analysis of stochastic Lanczos quadrature for spectrum approximation.
    """
    below = np.full(len(points), -np.inf)
    return _share(quadrature, below, np.asarray(points, dtype=np.float64), include_upper=True, level=level)


def mass(quadrature: Quadrature, lower: float, upper: float, *, level: float = 0.95) -> Share:
    """Share of the eigenvalues with lower ≤ λ < upper, with its interval, as ``cumulative`` states it.

    Cost: no products.

    Args:
        quadrature: from ``slq`` or ``decompose``.
        lower: lower end, −∞ allowed.
        upper: upper end, ∞ allowed.
        level: coverage of the interval.

    Raises:
        OperatorError: lower is above upper, or level is not between 0 and 1.

    Example:
        >>> import torch
        >>> from theodolite.linalg import Diagonal, decompose, mass
        >>> A = Diagonal(torch.linspace(-1, 3, 400, dtype=torch.float64))
        >>> found = mass(decompose(A, k=1, steps=60).quadrature, -float("inf"), 0.0)
        >>> bool(found.lower < 0.25 < found.upper)
        True
    """
    if not lower <= upper:
        raise OperatorError(f"mass(lower, upper) expects lower ≤ upper, found {lower} and {upper}.")
    found = _share(quadrature, np.array([lower]), np.array([upper]), include_upper=False, level=level)
    return Share(
        value=found.value.reshape(()),
        lower=found.lower.reshape(()),
        upper=found.upper.reshape(()),
        resolution=found.resolution.reshape(()),
    )


def _share(
    quadrature: Quadrature,
    lower: Float[np.ndarray, " g"],
    upper: Float[np.ndarray, " g"],
    *,
    include_upper: bool,
    level: float,
) -> Share:
    if not 0 < level < 1:
        raise OperatorError(f"level is a coverage between 0 and 1, for example 0.95; found {level}.")
    n, rest = quadrature.size, quadrature.unknown
    known = np.sort(quadrature.known.numpy())
    side: Side = "right" if include_upper else "left"
    counted = np.searchsorted(known, upper, side=side) - np.searchsorted(known, lower, side="left")
    if not rest:
        exact = counted / n
        return Share(value=exact, lower=exact, upper=exact, resolution=np.zeros(len(exact)))
    high, high_width, high_node = _up_to(quadrature, upper, inclusive=include_upper)
    low, low_width, low_node = _up_to(quadrature, lower, inclusive=False)
    part = np.clip(high - low, 0.0, 1.0)
    from_probes = _invert_beta(part, rest, probes=len(quadrature.nodes), level=level)
    from_rules = float(ndtri((1 + level) / 2)) * np.hypot(high_node, low_node) / NODES
    return Share(
        value=(counted + rest * part) / n,
        lower=(counted + rest * np.maximum(part - np.hypot(part - from_probes[0], from_rules), 0.0)) / n,
        upper=(counted + rest * np.minimum(part + np.hypot(from_probes[1] - part, from_rules), 1.0)) / n,
        resolution=rest / n * (high_width + low_width),
    )


def _up_to(quadrature: Quadrature, points: Float[np.ndarray, " g"], *, inclusive: bool) -> Float[np.ndarray, "3 g"]:
    """Mass of the rules up to points, how far they leave it open, and the larger neighbouring weight; means over probes."""
    converged = torch.zeros_like(quadrature.nodes, dtype=torch.bool)
    converged = converged if quadrature.converged is None else quadrature.converged
    rows = zip(quadrature.nodes.numpy(), quadrature.weights.numpy(), converged.numpy(), strict=True)
    # The probes' rules err alike where the density is smooth: widths are averaged, not divided by the root of their number.
    found: np.ndarray = np.mean([_of_one_rule(*row, points, inclusive=inclusive) for row in rows], axis=0)
    return found


def _of_one_rule(
    nodes: Float[np.ndarray, " s"],
    weights: Float[np.ndarray, " s"],
    converged: Bool[np.ndarray, " s"],
    points: Float[np.ndarray, " g"],
    *,
    inclusive: bool,
) -> Float[np.ndarray, "3 g"]:
    side: Side = "right" if inclusive else "left"
    jumps, open_ = converged & ~np.isnan(nodes), ~converged & ~np.isnan(nodes)
    steps = np.append(0.0, np.cumsum(weights[jumps]))[np.searchsorted(nodes[jumps], points, side=side)]
    theta, w = nodes[open_], weights[open_]
    if not len(theta):
        return np.stack([steps, np.zeros(len(points)), np.zeros(len(points))])
    sums = np.append(0.0, np.cumsum(w))
    # Ritz values lie inside the spectrum: its ends are taken to be half a distance beyond the outermost.
    first, last = (theta[1] - theta[0], theta[-1] - theta[-2]) if len(theta) > 1 else (0.0, 0.0)
    xs = np.concatenate([[theta[0] - first / 2], theta, [theta[-1] + last / 2]])
    ys = np.concatenate([[0.0], sums[:-1] + w / 2, sums[-1:]])
    smooth = np.interp(points, xs, ys) if len(theta) > 1 else sums[np.searchsorted(theta, points, side=side)]
    k = np.searchsorted(theta, points, side="right")
    width = sums[np.minimum(k + 1, len(theta))] - sums[np.maximum(k - 1, 0)]
    padded = np.concatenate([[0.0], w, [0.0]])
    neighbour = np.maximum(padded[k], padded[k + 1])
    outside = (points < theta[0] - first) | (points > theta[-1] + last)
    return np.stack([steps + smooth, np.where(outside, 0.0, width), np.where(outside, 0.0, neighbour)])


def _invert_beta(
    share: Float[np.ndarray, " g"], size: int, *, probes: int, level: float
) -> tuple[Float[np.ndarray, " g"], Float[np.ndarray, " g"]]:
    """The shares K/N under which the observed mass lies at the upper and at the lower tail of its law."""
    ends = []
    for tail in ((1 + level) / 2, (1 - level) / 2):
        low, high = np.zeros(len(share)), np.ones(len(share))
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            # The probability of a mass no larger than observed falls as the true share grows.
            beyond = betainc(probes * size * middle / 2, probes * size * (1 - middle) / 2, share) < tail
            low, high = np.where(beyond, low, middle), np.where(beyond, middle, high)
        ends.append((low + high) / 2)
    certain = (share <= 0) | (share >= 1)
    return np.where(certain, share, ends[0]), np.where(certain, share, ends[1])
