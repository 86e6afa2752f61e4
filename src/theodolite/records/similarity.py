"""How alike several models represent the same inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from theodolite.records.estimate import Estimate
from theodolite.records.jackknife import jackknife_stderr
from theodolite.records.record import Record
from theodolite.records.text import with_error

FEWEST = 4  # samples for which the unbiased estimate exists


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Similarity(Record):
    """Linear centred kernel alignment (CKA) between checkpoints on the same samples.

    Args:
        names: of the checkpoints.
        values: debiased CKA of each pair: 1 for representations that differ by a rotation, a scale and a shift, 0 in expectation
            for independent ones; it may lie a little outside of 0 and 1.
        stderrs: their standard errors over samples (jackknife over blocks of samples); about 1.4 times too large for independent
            representations, where the estimate is a degenerate U-statistic.
        biased: CKA without the correction, which tends to 1 where a sample has more features than there are samples.
        module: whose outputs were compared; None for the outputs of the model.
        samples: that were compared.
        blocks: of samples, left out one at a time.
    """

    kind: ClassVar[str] = "similarity"
    lengths: ClassVar[Mapping[str, str]] = {"names": "k"}

    names: tuple[str, ...]
    values: Float[np.ndarray, "k k"]
    stderrs: Float[np.ndarray, "k k"]
    biased: Float[np.ndarray, "k k"]
    module: str | None = None
    samples: int
    blocks: int

    def between(self, first: str, second: str) -> Estimate:
        """Of two checkpoints.

        Raises:
            ValueError: there is no such checkpoint.
        """
        unknown = [name for name in (first, second) if name not in self.names]
        if unknown:
            raise ValueError(f"Expected checkpoints among {', '.join(map(repr, self.names))}, found {unknown[0]!r}.")
        place = self.names.index(first), self.names.index(second)
        degrees = self.blocks - 1 if self.blocks > 1 else None
        return Estimate(float(self.values[place]), float(self.stderrs[place]), degrees)

    def summary(self) -> tuple[str, ...]:
        """The pairs that are least and most alike."""
        what = "outputs" if self.module is None else self.module
        subject = f"{what} of {len(self.names)} checkpoints, {self.samples:,} samples"
        rows, columns = np.triu_indices(len(self.names), k=1)
        found = self.values[rows, columns]
        if not np.isfinite(found).any():
            return subject, "no CKA is finite"
        readings = []
        for word, at in (("least", int(np.nanargmin(found))), ("most", int(np.nanargmax(found)))):
            row, column = rows[at], columns[at]
            value = with_error(float(self.values[row, column]), float(self.stderrs[row, column]), source="samples")
            readings.append(f"{word} alike {value} ({self.names[row]}, {self.names[column]})")
        return subject, *readings


def cka(
    first: Float[np.ndarray, "b p"], second: Float[np.ndarray, "b q"], *, blocks: int = 20
) -> tuple[Estimate, float]:
    """Debiased linear CKA of two sets of features of the same samples, with its error, and the biased one.

    Cost: 2·b²·(p + q) operations and 2·b² numbers.

    Args:
        first: features, one row a sample.
        second: of the same samples in the same order.
        blocks: into which samples are divided, every so-manieth to the same one, each left out once for the error.

    Returns:
        HSIC₁(K, L)/√(HSIC₁(K, K)·HSIC₁(L, L)) with the unbiased estimate HSIC₁; ‖YᵀX‖²/(‖XᵀX‖·‖YᵀY‖) of centred features. NaN for
        features that do not vary and for fewer than four samples.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(50, 3))
        >>> round(cka(x, 5 - 2 * x[:, ::-1])[0].value, 12)
        1.0

    References:
        Kornblith, Norouzi, Lee & Hinton, "Similarity of neural network representations revisited" (2019); Song, Smola, Gretton,
        Bedo & Borgwardt, "Feature selection via dependence maximization" (2012), the unbiased estimate; Nguyen, Raghu &
        Kornblith, "Do wide and deep networks learn the same things?" (2021), its use.
    """
    grams = [_gram(each) for each in (first, second)]
    count, parts = len(first), min(blocks, len(first) // 2)
    owners = np.arange(count) % max(parts, 1)
    value = _debiased(*grams)
    errors = Estimate(value, float("nan"))
    if parts > 1 and count - np.bincount(owners).max() >= FEWEST:
        kept = [np.flatnonzero(owners != part) for part in range(parts)]
        left_out = np.array([_debiased(*(gram[np.ix_(each, each)] for gram in grams)) for each in kept])
        weights = np.bincount(owners).astype(np.float64)
        error = float(jackknife_stderr(left_out, whole=np.array(value), weights=weights))
        errors = Estimate(value, error, parts - 1)
    return errors, _biased(*grams)


def _gram(features: Float[np.ndarray, "b p"]) -> Float[np.ndarray, "b b"]:
    centred = features - features.mean(axis=0)
    return np.asarray(centred @ centred.T, dtype=np.float64)


def _debiased(first: Float[np.ndarray, "b b"], second: Float[np.ndarray, "b b"]) -> float:
    if len(first) < FEWEST:
        return float("nan")
    square = _hsic(first, first) * _hsic(second, second)
    return float(_hsic(first, second) / np.sqrt(square)) if square > 0 else float("nan")


def _hsic(first: Float[np.ndarray, "b b"], second: Float[np.ndarray, "b b"]) -> float:
    """n(n−3)·HSIC₁: tr K̃L̃ + 1ᵀK̃1·1ᵀL̃1/((n−1)(n−2)) − 2/(n−2)·1ᵀK̃L̃1 with zeros on the diagonals."""
    n = len(first)
    diagonals = np.diagonal(first), np.diagonal(second)
    rows = first.sum(axis=1) - diagonals[0], second.sum(axis=1) - diagonals[1]
    product = np.vdot(first, second) - diagonals[0] @ diagonals[1]
    return float(product + rows[0].sum() * rows[1].sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * rows[0] @ rows[1])


def _biased(first: Float[np.ndarray, "b b"], second: Float[np.ndarray, "b b"]) -> float:
    square = np.vdot(first, first) * np.vdot(second, second)
    return float(np.vdot(first, second) / np.sqrt(square)) if square > 0 else float("nan")
