"""Spectral density of a symmetric operator by stochastic Lanczos quadrature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from theodolite.records.estimate import Estimate
from theodolite.records.record import Record
from theodolite.records.rules import Rules, step_criterion, unpadded
from theodolite.records.spectral import Spectral
from theodolite.records.text import plural

_WIDTH = 0.005  # standard deviation of the smoothing kernel, as a share of the range of the nodes


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Density(Spectral, Record):
    """Quadrature nodes and weights of the spectral density, one rule for each random probe.

    Args:
        nodes: Ritz values of each probe's Lanczos run of s steps; NaN-padded where a run broke down early. In front of them,
            in every row alike, those eigenvalues that were known and taken out of the run.
        weights: squared first components of the Ritz vectors, 1/n for a known eigenvalue; rows sum to 1; 0 where padded.
        operator: what was decomposed, ``"hessian"`` or ``"ggn"``.
        size: number of parameters n.
        deflated: how many known eigenvalues stand in front of each row.
        uniform: whether the probes are uniform on the unit sphere, so that even a single one has a known error.
    """

    kind: ClassVar[str] = "density"

    nodes: Float[np.ndarray, "m s"]
    weights: Float[np.ndarray, "m s"]
    operator: str = "hessian"
    size: int
    deflated: int = 0
    uniform: bool = False

    def rules(self) -> Rules:
        """The rules without padding."""
        return unpadded(self.nodes, self.weights, size=self.size, known=self.deflated, uniform=self.uniform)

    @property
    def probes(self) -> int:
        """Number of random probes m."""
        return len(self.nodes)

    @property
    def lanczos_steps(self) -> int:
        """Lanczos steps of each probe."""
        return int(self.nodes.shape[1]) - self.deflated

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

    def Kh(self, n: float = 0.5) -> Estimate:
        """The criterion Khₙ of LLA, the mean over probes of Σ_{λ<0}(|λ|w)ⁿ / Σ_{λ>0}(λw)ⁿ.

        For n < 1 it grows with the number of Lanczos steps, as each node adds a concave term: compare it only between
        densities of the same ``lanczos_steps``, and prefer ``K``, which converges. 0 for a probe without negative
        nodes, infinite for one without positive ones.

        Raises:
            ValueError: known eigenvalues stand in front of the nodes, so that the sums are over other terms.

        References:
            Gabdullin, Investigating generalization capabilities of neural networks by means of loss landscapes and
            Hessian analysis (2024), arXiv:2412.10146.
        """
        if self.deflated:
            raise ValueError(
                f"Kh(n) adds a term for each node of a plain Lanczos rule; {plural(self.deflated, 'known eigenvalue')} stand in "
                "front of these. Use K(p), which converges, or measure the density by itself."
            )
        return step_criterion(self.rules(), n)

    def grid(self, points: int = 1001) -> Float[np.ndarray, " points"]:
        """Evenly spaced positions from four kernel widths below the smallest node to four above the largest."""
        nodes = self.rules().nodes
        return np.linspace(nodes.min() - 4 * self._width(), nodes.max() + 4 * self._width(), points)

    def evaluate(
        self, grid: Float[np.ndarray, " g"], width: float | None = None
    ) -> tuple[Float[np.ndarray, " g"], Float[np.ndarray, " g"]]:
        """Density smoothed by a Gaussian kernel.

        Args:
            grid: positions.
            width: standard deviation of the kernel; by default half a percent of the range of the nodes.

        Returns:
            Mean over probes at each position, in 1/unit of λ, and its standard error; NaN with a single probe that is not
            uniform.

        Raises:
            ValueError: width is not positive.

        References:
            Ghorbani, Krishnan and Xiao, An investigation into neural net optimization via Hessian eigenvalue density
            (2019).
        """
        width = self._width() if width is None else width
        if not width > 0:
            raise ValueError(f"evaluate(width) expects a positive kernel width, found {width!r}.")
        rules = self.rules()
        distances = (grid - rules.nodes[..., None]) / width
        mean, error, _ = rules.average(np.exp(-0.5 * distances**2) / (width * np.sqrt(2 * np.pi)))
        return mean, error

    def summary(self) -> tuple[str, ...]:
        """Operator, trace, share of negative eigenvalues."""
        subject = f"{self.operator}, n={self.size:,}"
        if not self.nodes.size:
            return subject, "no nodes"
        rule = f"{plural(self.probes, 'probe')} of {plural(self.lanczos_steps, 'step')}"
        rule += f" beside {plural(self.deflated, 'known eigenvalue')}" if self.deflated else ""
        return subject, f"tr = {self.trace}", f"negative mass {self.negative_mass}", rule

    def _width(self) -> float:
        """Half a percent of the range of the nodes, of their size where all are equal."""
        nodes = self.rules().nodes
        span = float(nodes.max() - nodes.min())
        return _WIDTH * (span if span > 0 else float(np.abs(nodes).max()) or 1.0)
