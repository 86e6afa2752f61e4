"""What the extreme eigenvalues of an operator say against each other, and against the rest of its spectrum."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from theodolite.records.spectral import Spectral

NOISE = 1e-6  # of λ₁: ratios between smaller eigenvalues are those of rounding, in float32 that of their products


class Extremes(Spectral):
    """Extreme eigenvalues, descending, from one end of a spectrum or from both, with the rules of the rest if measured.

    Attributes:
        eigenvalues: in descending order.
        converged: whether each met its tolerance.
        which: ``"largest"``, ``"smallest"`` or ``"both"`` ends.
        size: number of eigenvalues in all.
    """

    eigenvalues: Float[np.ndarray, " k"]
    converged: Bool[np.ndarray, " k"]
    which: str
    size: int

    @property
    def max(self) -> float:
        """Largest eigenvalue λ₁.

        Raises:
            ValueError: only the smallest were asked for.
        """
        return float(self.eigenvalues[self._end("largest")])

    @property
    def min(self) -> float:
        """Smallest eigenvalue λₙ.

        Raises:
            ValueError: only the largest were asked for.
        """
        return float(self.eigenvalues[self._end("smallest")])

    @property
    def re(self) -> float:
        """How far from convex: −λₙ/λ₁, 0 where the smallest eigenvalue is not negative, infinite where none is positive.

        Signed, unlike ``re_unsigned``, which calls the convex spectrum (0.5, 1, 2) as non-convex as (−0.5, 1, 2).

        Raises:
            ValueError: not both ends were asked for.

        References:
            Gabdullin, Investigating generalization capabilities of neural networks by means of loss landscapes and
            Hessian analysis (2024), arXiv:2412.10146.
        """
        if self.min >= 0:
            return 0.0
        return -self.min / self.max if self.max > 0 else float("inf")

    @property
    def re_unsigned(self) -> float:
        """LLA's own |λₙ/λ₁|, blind to the sign, to compare with published values; infinite where λ₁ is zero.

        Raises:
            ValueError: not both ends were asked for.
        """
        return abs(self.min / self.max) if self.max else float("inf")

    def decay(self, rank: int) -> float:
        """λ₁/λ_{rank+1}; with the number of classes as rank, how far the outliers stand above the bulk.

        Raises:
            ValueError: so many of the largest were not asked for.
        """
        top = self.top
        if not 1 <= rank < len(top):
            raise ValueError(
                f"decay({rank}) needs the {rank + 1} largest eigenvalues; this spectrum holds {len(top)}. "
                f"Measure it with k={rank + 1} or more."
            )
        return float(top[0] / top[rank]) if top[rank] else float("inf")

    @property
    def top(self) -> Float[np.ndarray, " j"]:
        """The eigenvalues from the upper end, none where only the smallest were asked for."""
        count = len(self.eigenvalues)
        return self.eigenvalues[: {"largest": count, "both": (count + 1) // 2}.get(self.which, 0)]

    @property
    def conditioning(self) -> float:
        """λ₁ over the median of |λ|, an order of magnitude: the median is no finer than the nodes next to zero.

        Raises:
            ValueError: the spectrum was measured without probes, or without the upper end.
        """
        median = self.median_magnitude
        return self.max / median if median else float("inf")

    def outliers(self, kappa: float = 10.0) -> Float[np.ndarray, " j"]:
        """The largest eigenvalues as far as they lie more than κ scales above the centre of the bulk.

        Args:
            kappa: κ. A trained network has a long-tailed bulk with half of it near zero, where ``gap`` says more.

        Raises:
            ValueError: the spectrum was measured without probes, or all that it holds are outliers.
        """
        centre, scale = self.bulk
        top = self.top
        count = int((top > centre + kappa * scale).sum())
        if count == len(top) < self.size:
            raise ValueError(
                f"All {len(top)} largest eigenvalues lie more than {kappa:g} scales ({scale:.3g}) above the centre of the bulk "
                f"at {centre:.3g}, so that there are more. Measure the spectrum with a larger k than {len(top)}, or raise kappa."
            )
        return top[:count]

    def gap(self, limit: int | None = None) -> int:
        """How many eigenvalues stand above the widest gap on a logarithmic scale, of those that ``comparable`` leaves.

        Args:
            limit: how many of the largest positive eigenvalues to look at, three times the number of classes for instance;
                all by default.

        Raises:
            ValueError: fewer than two of them are known.
        """
        top = self.comparable(limit)
        if len(top) < 2:
            raise ValueError(
                f"gap(limit={limit}) needs two positive eigenvalues or more; this spectrum holds {len(top)} that converged. "
                "Measure it with a larger k, about three times the number of classes."
            )
        return int(np.argmax(np.log(top[:-1] / top[1:]))) + 1

    def comparable(self, limit: int | None = None) -> Float[np.ndarray, " j"]:
        """The largest positive eigenvalues as far as they converged; below 1e-6·λ₁ they are rounding and count as that.

        Args:
            limit: how many to look at; all by default.
        """
        reached = self.converged[: len(self.top)]
        top = self.top[: int(np.logical_and.accumulate(reached).sum())][:limit]
        top = top[top > 0]
        return np.maximum(top, NOISE * top[0]) if top.size else top

    def _end(self, end: str) -> int:
        """Index of an extreme eigenvalue, refused where that end was not computed."""
        if self.which not in (end, "both") or not self.eigenvalues.size:
            raise ValueError(
                f"This spectrum holds {self.eigenvalues.size} eigenvalues from the end which={self.which!r} and does not "
                f"know the {end}; measure it with which='both'."
            )
        return 0 if end == "largest" else -1
