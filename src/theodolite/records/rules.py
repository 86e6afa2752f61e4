"""Gauss quadrature rules of a spectral density, one for each probe, and means over them with their errors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from theodolite.records.estimate import Estimate


@dataclass(frozen=True)
class Rules:
    """Nodes and weights with no padding left.

    Args:
        nodes: one rule a row; in front of each, in every row alike, eigenvalues that are known.
        weights: not negative, 1/size for a known eigenvalue; rows sum to 1.
        size: number of eigenvalues that they stand for.
        known: number of known eigenvalues.
        uniform: whether the probes are uniform on the unit sphere, so that even one of them has a known error.
    """

    nodes: Float[np.ndarray, "m s"]
    weights: Float[np.ndarray, "m s"]
    size: int
    known: int = 0
    uniform: bool = False

    def average(
        self, values: Float[np.ndarray, "m s *g"]
    ) -> tuple[Float[np.ndarray, "*g"], Float[np.ndarray, "*g"], int | None]:
        """Mean over the eigenvalues of what ``values`` are at the nodes, its standard error, and the degrees of freedom.

        A probe that is uniform on the sphere of dimension N has the error √(2/(N+2)·Var), with the variance over the
        eigenvalues it samples, which its rule estimates itself.
        """
        rows = np.einsum("ms,ms...->m...", self.weights, values)
        mean, count = np.asarray(rows.mean(axis=0)), len(rows)
        if count > 1:
            return mean, np.asarray(rows.std(axis=0, ddof=1) / np.sqrt(count)), count - 1
        return mean, self._error_of_one(values), None

    def mean(self, values: Float[np.ndarray, "m s"]) -> Estimate:
        """The same for one function.

        The variance that a single probe estimates is uncertain itself: in Satterthwaite's sense it has N/(κ − 1) degrees of
        freedom, with the kurtosis κ of the values.

        References:
            Satterthwaite, "An approximate distribution of estimates of variance components" (1946).
        """
        mean, error, degrees = self.average(values)
        if len(values) == 1 and self.uniform:
            degrees = self._degrees_of_one(values[0])
        return Estimate(float(mean), float(error), degrees)

    def ratio(self, above: Float[np.ndarray, "m s"], below: Float[np.ndarray, "m s"]) -> Estimate:
        """Ratio of two means over the same probes, its error to first order."""
        size = self.mean(below).value
        ratio = self.mean(above).value / size
        error = self.mean((above - ratio * below) / size)
        return Estimate(ratio, error.stderr, error.degrees)

    def blur(self, threshold: float) -> float:
        """Standard error of the weight below a threshold that the distance of the nodes leaves, known eigenvalues apart.

        Where the density is smooth, half of a node's weight lies on each side of it, so that counting whole nodes errs
        uniformly between minus half the weight of the node below and half that of the node above.
        """
        widths = []
        for nodes, weights in zip(self.nodes[:, self.known :], self.weights[:, self.known :], strict=True):
            below, above = nodes[nodes < threshold], nodes[nodes >= threshold]
            if below.size and above.size:
                widths.append(weights[(nodes == below.max()) | (nodes == above.min())].sum())
        return float(np.sqrt(np.square(widths).sum() / 48) / len(self.nodes)) if widths else 0.0

    def _degrees_of_one(self, values: Float[np.ndarray, " s"]) -> int | None:
        rest, weights, sampled = self.size - self.known, self.weights[0, self.known :], values[self.known :]
        if rest < 1 or not weights.sum() > 0:
            return None
        weights = weights / weights.sum()
        square, fourth = ((weights * (sampled - weights @ sampled) ** p).sum() for p in (2, 4))
        excess = fourth - square**2
        return max(1, int(min(rest * square**2 / excess, 1e9))) if excess > 0 and np.isfinite(excess) else None

    def _error_of_one(self, values: Float[np.ndarray, "1 s *g"]) -> Float[np.ndarray, "*g"]:
        rest = self.size - self.known
        if not self.uniform:
            return np.full(values.shape[2:], np.nan)
        if rest < 1:
            return np.zeros(values.shape[2:])
        weights, sampled = self.weights[0, self.known :], values[0, self.known :]
        weights = weights / weights.sum()
        centred = sampled - np.tensordot(weights, sampled, axes=1)
        variance = np.tensordot(weights, np.square(centred), axes=1)
        return np.asarray(rest / self.size * np.sqrt(2 * variance / (rest + 2)))


def unpadded(
    nodes: Float[np.ndarray, "m s"],
    weights: Float[np.ndarray, "m s"],
    *,
    size: int,
    known: int = 0,
    uniform: bool = False,
) -> Rules:
    """Rules whose padding, NaN without weight, is moved onto the first node of its probe."""
    filled = np.where(np.isnan(nodes) & (weights == 0), nodes[:, :1], nodes)
    return Rules(filled, weights, size, known, uniform)


def quantile(values: Float[np.ndarray, "*s"], weights: Float[np.ndarray, "*s"], share: float) -> float:
    """The smallest value at or below which at least ``share`` of the weight lies.

    Args:
        values: of any shape.
        weights: not negative, in the same shape.
        share: between 0 and 1.

    Returns:
        One of the values; NaN where there are none or their weights vanish.
    """
    flat, mass = values.ravel(), weights.ravel()
    total = mass.sum()
    if not total > 0:
        return float("nan")
    places = np.argsort(flat, kind="stable")
    reached = np.cumsum(mass[places]) >= share * total * (1 - 1e-12)
    return float(flat[places][int(np.argmax(reached))])


def step_criterion(rules: Rules, n: float) -> Estimate:
    """Khₙ of LLA, the mean over probes of Σ_{λ<0}(|λ|w)ⁿ / Σ_{λ>0}(λw)ⁿ.

    0 for a probe without negative nodes, infinite for one without positive ones.
    """
    negative = ((rules.weights * np.maximum(-rules.nodes, 0)) ** n).sum(axis=1)
    positive = ((rules.weights * np.maximum(rules.nodes, 0)) ** n).sum(axis=1)
    infinite = np.where(negative > 0, np.inf, 0.0)
    ratios = np.divide(negative, positive, out=infinite, where=positive > 0)
    if not np.isfinite(ratios).all():
        return Estimate(float("inf"), float("nan"))
    count = len(ratios)
    error = float(ratios.std(ddof=1) / np.sqrt(count)) if count > 1 else float("nan")
    return Estimate(float(ratios.mean()), error, count - 1 if count > 1 else None)
