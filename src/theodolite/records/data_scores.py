"""Scores of samples by which data is pruned, averaged over runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
from jaxtyping import Float, Int

from theodolite.records.gradients import Gradients

Score = Literal["grand", "el2n", "loss"]


@final
@dataclass(frozen=True, eq=False)
class DataScores:
    """One score for every sample that any of the runs has, the mean over those runs.

    Args:
        indices: places of the samples in the data, ascending.
        values: mean scores; NaN where a gradient was not finite.
        stderrs: their standard errors over runs, NaN for a sample of a single run.
        runs: that each sample was scored in.
    """

    indices: Int[np.ndarray, " n"]
    values: Float[np.ndarray, " n"]
    stderrs: Float[np.ndarray, " n"]
    runs: Int[np.ndarray, " n"]

    def keep(self, fraction: float, *, skip: float = 0.0) -> Int[np.ndarray, " m"]:
        """Places in the data of the samples with the largest scores, ascending.

        Samples with the largest scores of all are often mislabelled: ``skip`` leaves out a share of them, typically 0.01 to 0.05.
        Samples without a score are never kept.

        Args:
            fraction: of the samples to keep, rounded to the nearest number.
            skip: of the samples, from the top, to leave out before.

        Raises:
            ValueError: fraction or skip are no shares, or exceed 1 together.
        """
        if not (0 <= fraction <= 1 and 0 <= skip <= 1 and fraction + skip <= 1 + 1e-12):
            raise ValueError(
                f"Expected fraction and skip to be shares of at most 1 together, found {fraction} and {skip}."
            )
        known = np.flatnonzero(np.isfinite(self.values))
        order = known[np.argsort(-self.values[known], kind="stable")]
        start, count = round(skip * len(self.values)), round(fraction * len(self.values))
        return np.asarray(np.sort(self.indices[order[start : start + count]]))


def data_scores(
    records: Gradients | Sequence[Gradients], *, score: Score | Callable[[Gradients], np.ndarray] = "el2n"
) -> DataScores:
    """Average the scores of samples over several short runs, or read them off one.

    GraNd at initialisation mostly says how long the inputs are; take records of models trained for a few epochs, ten of them with
    different seeds in the paper.

    Args:
        records: of ``gradients(problem, gram=True)`` on the same data, which may be different draws of its samples.
        score: ``"grand"``, the norm ‖∇ℓ_i‖; ``"el2n"``, the error norm ‖softmax(f(x_i)) − y_i‖ of a classifier; ``"loss"``; or a
            function of a record that gives one number for each sample in its Gram matrix.

    Raises:
        ValueError: there is no record, one has no such score, or the function gives another number of them.

    Example:
        >>> gram = np.diag([4.0, 1.0, 9.0])
        >>> one, none = np.ones(1), np.zeros(0)
        >>> record = Gradients(loss=1.0, loss_stderr=0.1, norm=1.0, norm_stderr=0.1, layers=("0",), layer_norms=one,
        ...                    layer_norm_stderrs=one, parameter_norms=one, samples=3, gram=gram, indices=np.arange(3))
        >>> data_scores(record, score="grand").keep(2 / 3).tolist()
        [0, 2]

    References:
        Paul, Ganguli, Dziugaite, "Deep learning on a data diet: finding important examples early in training" (2021).
    """
    records = [records] if isinstance(records, Gradients) else list(records)
    if not records:
        raise ValueError("Expected at least one Gradients record to score samples by, found none.")
    found = [_scores(record, score) for record in records]
    places = [np.arange(len(s)) if r.indices is None else r.indices for r, s in zip(records, found, strict=True)]
    indices, where = np.unique(np.concatenate(places), return_inverse=True)
    values = np.concatenate(found)
    runs = np.bincount(where, minlength=len(indices))
    with np.errstate(divide="ignore", invalid="ignore"):  # a loss may be infinite
        means = np.bincount(where, weights=values, minlength=len(indices)) / runs
        squares = np.bincount(where, weights=np.square(values - means[where]), minlength=len(indices))
        stderrs = np.where(runs > 1, np.sqrt(squares / (runs - 1) / runs), np.nan)
    return DataScores(indices, means, stderrs, runs)


def _scores(record: Gradients, score: str | Callable[[Gradients], np.ndarray]) -> Float[np.ndarray, " b"]:
    if record.gram is None:
        raise ValueError(
            "Expected Gradients records of samples, found one without. Measure with gradients(problem, gram=True)."
        )
    if callable(score):
        values: np.ndarray | None = np.asarray(score(record), dtype=np.float64)
    elif score == "grand":
        values = record.sample_norms
    elif score in ("el2n", "loss"):
        values = record.el2n if score == "el2n" else record.sample_losses
    else:
        raise ValueError(f"Expected score to be 'grand', 'el2n', 'loss' or a function of a record, found {score!r}.")
    if values is None:
        raise ValueError(
            f"Expected records with {score}, found one without: EL2N is of classifiers with one class for each sample. Use "
            "score='grand', or a function of the record."
        )
    if values.shape != (len(record.gram),):
        raise ValueError(
            f"Expected a score for each of the {len(record.gram)} samples of a record, found an array of shape {values.shape}."
        )
    return values
