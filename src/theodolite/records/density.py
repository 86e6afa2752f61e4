"""Spectral density of a symmetric operator by stochastic Lanczos quadrature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from theodolite.records.estimate import Estimate
from theodolite.records.record import Record
from theodolite.records.text import plural

_WIDTH = 0.005  # standard deviation of the smoothing kernel, as a share of the range of the nodes
_ZERO = 1e-6  # nodes below this share of the largest are zero: products in single precision carry 1e-7


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Density(Record):
    """Quadrature nodes and weights of the spectral density, one rule for each random probe.

    Args:
        nodes: Ritz values of each probe's Lanczos run of s steps; NaN-padded where a run broke down early.
        weights: squared first components of the Ritz vectors, rows sum to 1; 0 where padded.
        operator: what was decomposed, ``"hessian"`` or ``"ggn"``.
        size: number of parameters n.
    """

    kind: ClassVar[str] = "density"

    nodes: Float[np.ndarray, "m s"]
    weights: Float[np.ndarray, "m s"]
    operator: str = "hessian"
    size: int

    @property
    def probes(self) -> int:
        """Number of random probes m."""
        return len(self.nodes)

    @property
    def lanczos_steps(self) -> int:
        """Lanczos steps s of each probe."""
        return int(self.nodes.shape[1])

    def moment(self, p: int) -> Estimate:
        """Spectral moment tr(Hᵖ)/n, the mean over the eigenvalues of λᵖ."""
        return _mean((self.weights * self._filled**p).sum(axis=1))

    @property
    def trace(self) -> Estimate:
        """tr(H) = n · first moment."""
        first = self.moment(1)
        return Estimate(self.size * first.value, self.size * first.stderr, first.degrees)

    @property
    def frobenius(self) -> Estimate:
        """Frobenius norm ‖H‖_F = √(n · second moment), its error to first order."""
        second = self.moment(2)
        norm = float(np.sqrt(self.size * second.value))
        stderr = self.size * second.stderr / (2 * norm) if norm > 0 else second.stderr
        return Estimate(norm, stderr, second.degrees)

    def mass(self, lower: float, upper: float) -> Estimate:
        """Share of the eigenvalues with lower ≤ λ < upper.

        Raises:
            ValueError: lower is above upper.
        """
        if not lower <= upper:
            raise ValueError(f"mass(lower, upper) expects lower ≤ upper; found {lower} and {upper}.")
        inside = (self._filled >= lower) & (self._filled < upper)
        return _mean((self.weights * inside).sum(axis=1))

    @property
    def negative_mass(self) -> Estimate:
        """Share of the eigenvalues below zero, which is to say below −1e-6·|λ|max; NaN where a node is."""
        largest = float(np.abs(self._filled).max(initial=0.0))
        return Estimate(np.nan, np.nan) if np.isnan(largest) else self.mass(-np.inf, -_ZERO * largest)

    def K(self, p: float = 1.0) -> Estimate:
        """Negative against positive part of the spectrum, ∫_{λ<0}|λ|ᵖdμ / ∫_{λ>0}λᵖdμ.

        With p = 1 the negative share of the trace against its positive one. The error is that of a ratio of means over
        probes, to first order. 0 without negative nodes, infinite without positive ones.
        """
        negative, positive = ((self.weights * part**p).sum(axis=1) for part in self._parts())
        if not negative.any():
            return _mean(negative)
        if not positive.any():
            return Estimate(float("inf"), float("nan"))
        ratio = float(negative.mean() / positive.mean())
        error = _mean((negative - ratio * positive) / positive.mean())
        return Estimate(ratio, error.stderr, error.degrees)

    def Kh(self, n: float = 0.5) -> Estimate:
        """The criterion Khₙ of LLA, the mean over probes of Σ_{λ<0}(|λ|w)ⁿ / Σ_{λ>0}(λw)ⁿ.

        For n < 1 it grows with the number of Lanczos steps, as each node adds a concave term: compare it only between
        densities of the same ``lanczos_steps``, and prefer ``K``, which converges. 0 for a probe without negative
        nodes, infinite for one without positive ones.

        References:
            Gabdullin, Investigating generalization capabilities of neural networks by means of loss landscapes and
            Hessian analysis (2024), arXiv:2412.10146.
        """
        negative, positive = (((self.weights * part) ** n).sum(axis=1) for part in self._parts())
        infinite = np.where(negative > 0, np.inf, 0.0)
        ratios = np.divide(negative, positive, out=infinite, where=positive > 0)
        return _mean(ratios) if np.isfinite(ratios).all() else Estimate(float("inf"), float("nan"))

    def grid(self, points: int = 1001) -> Float[np.ndarray, " points"]:
        """Evenly spaced positions from four kernel widths below the smallest node to four above the largest."""
        nodes = self._filled
        return np.linspace(nodes.min() - 4 * self._width(), nodes.max() + 4 * self._width(), points)

    def evaluate(
        self, grid: Float[np.ndarray, " g"], width: float | None = None
    ) -> tuple[Float[np.ndarray, " g"], Float[np.ndarray, " g"]]:
        """Density smoothed by a Gaussian kernel.

        Args:
            grid: positions.
            width: standard deviation of the kernel; by default half a percent of the range of the nodes.

        Returns:
            Mean over probes at each position, in 1/unit of λ, and its standard error; NaN with a single probe.

        Raises:
            ValueError: width is not positive.

        References:
            Ghorbani, Krishnan and Xiao, An investigation into neural net optimization via Hessian eigenvalue density
            (2019).
        """
        width = self._width() if width is None else width
        if not width > 0:
            raise ValueError(f"evaluate(width) expects a positive kernel width, found {width!r}.")
        curves = np.empty((self.probes, len(grid)))
        for curve, nodes, weights in zip(curves, self._filled, self.weights, strict=True):
            kernel = np.exp(-0.5 * ((grid[None, :] - nodes[:, None]) / width) ** 2) / (width * np.sqrt(2 * np.pi))
            curve[:] = weights @ kernel
        return curves.mean(axis=0), _stderr(curves)

    def summary(self) -> tuple[str, ...]:
        """Operator, trace, share of negative eigenvalues."""
        subject = f"{self.operator}, n={self.size:,}"
        if not self.nodes.size:
            return subject, "no nodes"
        rule = f"{plural(self.probes, 'probe')} of {plural(self.lanczos_steps, 'step')}"
        return subject, f"tr = {self.trace}", f"negative mass {self.negative_mass}", rule

    @property
    def _filled(self) -> Float[np.ndarray, "m s"]:
        """Nodes with the padding, which has no weight, moved onto the first node of its probe."""
        return np.where(np.isnan(self.nodes) & (self.weights == 0), self.nodes[:, :1], self.nodes)

    def _parts(self) -> tuple[Float[np.ndarray, "m s"], Float[np.ndarray, "m s"]]:
        """Magnitudes of negative and of positive nodes, 0 elsewhere."""
        return np.maximum(-self._filled, 0.0), np.maximum(self._filled, 0.0)

    def _width(self) -> float:
        """Half a percent of the range of the nodes, of their size where all are equal."""
        nodes = self._filled
        span = float(nodes.max() - nodes.min())
        return _WIDTH * (span if span > 0 else float(np.abs(nodes).max()) or 1.0)


def _mean(values: Float[np.ndarray, " m"]) -> Estimate:
    """Mean over probes with its standard error."""
    return Estimate(float(values.mean()), float(_stderr(values)), len(values) - 1 if len(values) > 1 else None)


def _stderr(values: Float[np.ndarray, "m ..."]) -> Float[np.ndarray, "..."]:
    """Standard error of the mean over the first axis, NaN with a single entry."""
    count = len(values)
    if count < 2:
        return np.full(values.shape[1:], np.nan)
    return np.asarray(values.std(axis=0, ddof=1) / np.sqrt(count))
