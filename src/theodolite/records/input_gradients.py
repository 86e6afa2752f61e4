"""Gradients of samples in their inputs, plain and integrated along a path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from theodolite.records.estimate import Estimate
from theodolite.records.record import Record
from theodolite.records.text import number, plural, with_error


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class InputGradients(Record):
    """∇_x of a value of every sample.

    Args:
        values: of the samples; losses are scaled so that their mean is the loss.
        gradients: of the values in the flattened inputs.
        of: ``"loss"``, ``"logit"`` of the target's class, or the name of a function.
        shape: of one sample's inputs.
    """

    kind: ClassVar[str] = "input gradients"

    values: Float[np.ndarray, " b"]
    gradients: Float[np.ndarray, "b d"]
    of: str = "loss"
    shape: tuple[int, ...] = ()

    @property
    def norms(self) -> Float[np.ndarray, " b"]:
        """‖∇_x‖ of every sample."""
        return np.asarray(np.linalg.norm(self.gradients, axis=1))

    @property
    def mean_square(self) -> Estimate:
        """E‖∇_x‖², its error over the samples."""
        squares = np.square(self.norms)
        stderr = squares.std(ddof=1) / np.sqrt(len(squares)) if len(squares) > 1 else np.nan
        return Estimate(float(squares.mean()) if len(squares) else np.nan, float(stderr), max(len(squares) - 1, 1))

    def share_on(self, entries: np.ndarray) -> Estimate:
        """Mean share of Σ|∇_x| that falls on some of the flattened inputs: how far the gradient is localised there.

        Args:
            entries: indices, or whether each of d entries counts; or a row of those for each sample.
        """
        sizes = np.abs(self.gradients)
        counted = np.asarray(entries)
        if counted.dtype != np.bool_:
            counted = np.isin(np.arange(sizes.shape[1]), counted)
        with np.errstate(invalid="ignore"):
            shares = (sizes * counted).sum(axis=1) / sizes.sum(axis=1)
        shares = shares[np.isfinite(shares)]
        stderr = shares.std(ddof=1) / np.sqrt(len(shares)) if len(shares) > 1 else np.nan
        return Estimate(float(shares.mean()) if len(shares) else np.nan, float(stderr), max(len(shares) - 1, 1))

    def summary(self) -> tuple[str, ...]:
        """Samples, entries, mean square."""
        square = self.mean_square
        return (
            f"{self.of}, {plural(len(self.values), 'sample')} of {self.gradients.shape[1]:,} entries",
            f"E‖∇ₓ‖² = {with_error(square.value, square.stderr, source='data')}",
        )


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class IntegratedGradients(Record):
    """(x − x′)·∫∇F(x′ + a(x − x′))da of every sample: what each input adds to the change of F from a baseline.

    Args:
        attributions: of the flattened inputs.
        changes: F(x) − F(x′).
        nodes: of the Gauss–Legendre rule.
        of: which value F.
        shape: of one sample's inputs.
    """

    kind: ClassVar[str] = "integrated gradients"

    attributions: Float[np.ndarray, "b d"]
    changes: Float[np.ndarray, " b"]
    nodes: int
    of: str = "logit"
    shape: tuple[int, ...] = ()

    @property
    def gaps(self) -> Float[np.ndarray, " b"]:
        """Σ attributions − (F(x) − F(x′)) of every sample: the error of the quadrature, zero for the exact integral."""
        return np.asarray(self.attributions.sum(axis=1) - self.changes)

    @property
    def relative_gap(self) -> float:
        """Largest |gap| over the largest |F(x) − F(x′)|."""
        largest = float(np.abs(self.changes).max(initial=0.0))
        return float(np.abs(self.gaps).max(initial=0.0)) / largest if largest > 0 else float("nan")

    def summary(self) -> tuple[str, ...]:
        """Samples, entries, quadrature error."""
        return (
            f"{self.of}, {plural(len(self.changes), 'sample')} of {self.attributions.shape[1]:,} entries, {self.nodes} nodes",
            f"quadrature error up to {number(float(np.abs(self.gaps).max(initial=0.0)))}, {100 * self.relative_gap:.2g} % of "
            "the largest change",
        )
