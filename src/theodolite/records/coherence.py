"""Per-sample curvature at one point, and whether stochastic gradient descent is stable there."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

from theodolite.errors import OperatorError
from theodolite.records.estimate import Estimate
from theodolite.records.record import Record
from theodolite.records.text import number, plural, with_error

# Directions that curve less than this share of λ₁ are left out: at a rate below 2/λ₁ they shrink by less than 4e-6 a step, and
# so many factors next to 1 would leave the iteration without a gap.
FLAT = 1e-6


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Coherence(Record):
    """How the curvatures of single samples align, which decides whether small batches leave a minimum.

    H_i = A_iᵀA_i is the Gauss-Newton matrix of sample i and H their mean. The conditions are for samples that enter a batch
    independently with probability B/N, and hold near a point where every sample's gradient vanishes; anywhere else they are a
    heuristic. What is said of a batch is of these N samples, exactly, and has no error; nor has σ, which grows with N and has the
    sharpest sample in its denominator. λ₁ and the loss are also those of the data's distribution, and have one.

    Args:
        gram: inner products of all rows of all A_i.
        rows: number of rows of each A_i.
        population: samples of the data that these were drawn from; None where they are all of them.
        loss: loss of the samples.
        loss_stderr: its standard error from the data (jackknife over chunks), NaN with one chunk.
        size: number of parameters n.
    """

    kind: ClassVar[str] = "coherence"

    gram: Float[np.ndarray, "m m"]
    rows: Int[np.ndarray, " s"]
    population: int | None = None
    loss: float
    loss_stderr: float = math.nan
    size: int

    @property
    def samples(self) -> int:
        """Number of samples, N where they are all of the data."""
        return int(self.rows.size)

    @property
    def sharpness(self) -> float:
        """λ₁(H)."""
        return float(np.linalg.eigvalsh(self.gram)[-1]) / self.samples if self.gram.size else 0.0

    @property
    def sharpness_estimate(self) -> Estimate:
        """λ₁(H) with its error from the data: the jackknife over samples of vᵀHv, with the top eigenvector v held."""
        if self.samples < 2 or not self.sharpness > 0:
            return Estimate(self.sharpness, math.nan)
        values, vectors = np.linalg.eigh(self.gram)
        # v = Aᵀu/√λ for the top eigenvector u of AAᵀ, so that vᵀH_iv = ‖A_iv‖² = λ‖u_i‖².
        forms = values[-1] * np.bincount(self._owners, np.square(vectors[:, -1]), minlength=self.samples)
        return Estimate(self.sharpness, float(forms.std(ddof=1)) / math.sqrt(self.samples), self.samples - 1)

    @property
    def interactions(self) -> Float[np.ndarray, "s s"]:
        """S_ij = ‖A_i A_jᵀ‖_F = √tr(H_iH_j)."""
        edges = np.concatenate([[0], np.cumsum(self.rows)])
        cumulated = np.zeros((len(self.gram) + 1, len(self.gram) + 1))
        cumulated[1:, 1:] = np.square(self.gram).cumsum(axis=0).cumsum(axis=1)
        squares = np.diff(np.diff(cumulated[np.ix_(edges, edges)], axis=0), axis=1)
        return np.asarray(np.sqrt(np.maximum(squares, 0.0)))

    @property
    def sample_sharpness(self) -> Float[np.ndarray, " s"]:
        """λ₁(H_i)."""
        return np.array([np.linalg.eigvalsh(block)[-1] if block.size else 0.0 for block in self._blocks])

    @property
    def coherence(self) -> float:
        """σ = λ₁(S) / max λ₁(H_i): 1 where the samples curve along orthogonal directions, N where all curve alike."""
        largest = float(self.sample_sharpness.max(initial=0.0))
        return float(np.linalg.eigvalsh(self.interactions)[-1]) / largest if largest > 0 else math.nan

    def bound(self, batch: float | int) -> float:
        """Learning rate above which SGD is certainly unstable: the smaller of 2/λ₁ and σ/(λ₁·√(N/B − 1)).

        Sufficient, not necessary: ``radius`` may exceed 1 below it.

        Raises:
            ValueError: the samples are a part of the data, or the batch is not between 0 and all of them.
        """
        self._refuse(batch)
        sharpness = self.sharpness
        if not sharpness > 0:
            return math.inf
        noise = math.sqrt(max(self.samples / batch - 1, 0.0))
        return min(2.0, self.coherence / noise if noise > 0 else math.inf) / sharpness

    def radius(self, learning_rate: float, *, batch: float | int) -> float:
        """Exact factor by which E‖θ − θ*‖² grows a step at last, within the span of the rows; beyond 1 is unstable.

        The largest eigenvalue of M ↦ JMJ + (η²/N²)(N/B − 1) Σ H_iMH_i with J = I − ηH, a symmetric positive map. Orthogonal to
        the span nothing moves, and directions that curve less than 1e-6 of λ₁ are not counted to it.

        Cost: an eigenproblem for matrices of the size of the span, none for the model.

        Raises:
            ValueError: the samples are a part of the data, or the batch is not between 0 and all of them.
            OperatorError: the eigenproblem did not converge.
        """
        self._refuse(batch)
        factors = self._factors
        m = factors.shape[1]
        if not m:
            return 1.0
        noise = (learning_rate / self.samples) ** 2 * max(self.samples / batch - 1, 0.0)
        J = np.eye(m) - learning_rate * (factors.T @ factors) / self.samples
        same = np.equal.outer(self._owners, self._owners)

        def step(flat: np.ndarray) -> np.ndarray:
            M = flat.reshape(m, m)
            return np.asarray(
                J @ M @ J + noise * (factors.T @ np.where(same, factors @ M @ factors.T, 0.0) @ factors)
            ).ravel()

        if m == 1:
            return float(step(np.ones(1))[0])
        # From the identity, which is inside the cone that holds the leading eigenvector.
        transfer = LinearOperator((m * m, m * m), matvec=step, dtype=np.float64)
        try:
            found = eigsh(transfer, k=1, which="LA", v0=np.eye(m).ravel())
        except ArpackNoConvergence as error:
            raise OperatorError(
                f"Expected the growth of SGD at learning_rate={learning_rate:g}, batch={batch:g} from matrices of {m} × {m}, found "
                "no convergence: its largest factors lie too close together. Ask at another learning rate."
            ) from error
        return float(found[0][0])

    def max_learning_rate(self, *, batch: float | int, tol: float = 1e-4) -> float:
        """Largest learning rate at which ``radius`` stays below 1, by bisection to a relative tolerance.

        Raises:
            ValueError: the samples are a part of the data, or the batch is not between 0 and all of them.
            OperatorError: the eigenproblem of a radius did not converge.
        """
        below, above = 0.0, self.bound(batch)
        if math.isinf(above):
            return above
        while above - below > tol * above:
            middle = (below + above) / 2
            below, above = (middle, above) if self.radius(middle, batch=batch) <= 1 else (below, middle)
        return (below + above) / 2

    def summary(self) -> tuple[str, ...]:
        """Samples, coherence, sharpness."""
        sharpness = self.sharpness_estimate if self._readable else None
        return (
            f"{plural(self.samples, 'sample')}{'' if self.population is None else f' of {self.population:,}'}, n={self.size:,}",
            f"σ = {number(self.coherence)} (of these samples), λ₁ = {with_error(sharpness.value, sharpness.stderr, source='data')}"
            if sharpness is not None
            else "no curvature to read",
            f"loss {with_error(self.loss, self.loss_stderr, source='data')}",
        )

    def _refuse(self, batch: float | int) -> None:
        """Batches whose noise these samples do not tell: it grows with N/B, and their own number is not N."""
        if self.population is not None and self.population != self.samples:
            raise ValueError(
                f"Expected all samples of the data, as the noise of a batch depends on N/B, found {self.samples} of "
                f"{self.population}. Measure it with samples={self.population} (problem.samples)."
            )
        if not 0 < batch <= self.samples:
            raise ValueError(
                f"Expected a batch of more than 0 and at most all {self.samples} samples, found batch={batch}."
            )

    @property
    def _readable(self) -> bool:
        """Whether there are rows, as many as the samples say, all finite."""
        counted = bool((self.rows >= 0).all()) and int(self.rows.sum(dtype=np.float64)) == len(self.gram)
        return bool(self.gram.size) and counted and bool(np.isfinite(np.square(self.gram).sum()))

    @property
    def _owners(self) -> Int[np.ndarray, " m"]:
        """The sample of each row."""
        return np.repeat(np.arange(self.samples), self.rows)

    @property
    def _blocks(self) -> list[Float[np.ndarray, "_ _"]]:
        edges = np.concatenate([[0], np.cumsum(self.rows)])
        return [self.gram[a:b, a:b] for a, b in pairwise(edges.tolist())]

    @property
    def _factors(self) -> Float[np.ndarray, "m k"]:
        """The rows in an orthonormal basis of their span."""
        values, vectors = np.linalg.eigh(self.gram)
        kept = values > FLAT * values.max(initial=0.0)
        return np.asarray(vectors[:, kept] * np.sqrt(values[kept]))
