"""Samples drawn with unequal probabilities, weighted so that their mean stays that of the data."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from jaxtyping import Float, Int
from scipy.cluster.vq import kmeans2

from theodolite.records.gradients import Gradients
from theodolite.records.gram import Gram


@final
@dataclass(frozen=True, eq=False)
class Sampling:
    """Probabilities with which samples are drawn, with replacement.

    Args:
        probabilities: of N samples, which add up to 1.
    """

    probabilities: Float[np.ndarray, " n"]

    @property
    def weights(self) -> Float[np.ndarray, " n"]:
        """1/(N p_i): the mean of weighted draws is that of all samples. Zero for a sample that is never drawn, which is left out
        of that mean unless what it adds is zero."""
        found = np.zeros_like(self.probabilities)
        np.divide(1.0, len(found) * self.probabilities, out=found, where=self.probabilities > 0)
        return found

    @property
    def effective_samples(self) -> float:
        """(Σ p w)²/Σ p w²: what share of a uniform draw one of these is worth for values that are all alike (Kish, 1965)."""
        mean = (self.probabilities * self.weights).sum()
        return float(mean**2 / (self.probabilities * np.square(self.weights)).sum())

    def draw(self, count: int, *, seed: int) -> tuple[Int[np.ndarray, " m"], Float[np.ndarray, " m"]]:
        """Places of samples, with replacement, and the weights that their losses are to be multiplied with."""
        rng = np.random.default_rng(seed)
        places = rng.choice(len(self.probabilities), size=count, p=self.probabilities)
        return places, self.weights[places]

    def variance(self, gram: Gram) -> float:
        """Trace of the covariance of w_i g_i for one draw, Σ‖g_i‖²/(N²p_i) − ‖ḡ‖²; a batch of m draws has 1/m of it.

        Exact for these samples; infinite where one with a gradient is never drawn.

        Args:
            gram: dot products of their gradients.
        """
        squares, drawn = np.diagonal(gram), self.probabilities > 0
        if (squares[~drawn] > 0).any():
            return float("inf")
        return float((squares[drawn] / self.probabilities[drawn]).sum() / len(gram) ** 2 - gram.mean())

    def saving(self, gram: Gram) -> float:
        """Variance over that of uniform draws: what share of the batch has the same noise; NaN where uniform draws have none."""
        uniform = Sampling(np.full(len(gram), 1 / len(gram))).variance(gram)
        return self.variance(gram) / uniform if uniform > 0 else float("nan")


def importance_sampling(scores: Gradients | Any, *, mix: float = 1.0) -> Sampling:
    """Draw samples by their scores: p = mix·s/Σs + (1 − mix)/N.

    By gradient norms, ``mix=1`` has the least variance of all, (Σ‖g_i‖/N)² − ‖ḡ‖². Scores are of some steps ago, or stand for
    the norms as EL2N does; the uniform part bounds the weights by 1/(1 − mix).

    Args:
        scores: not negative, such as ``data_scores(records).values``; or a record of ``gradients(problem, gram=True)``, for its
            norms of samples.
        mix: share of the draws that go by scores; PA&DA raises it from 0 to 1 over training.

    Raises:
        ValueError: scores are negative, not finite or all 0, or mix is no share.

    Example:
        >>> sampling = importance_sampling(np.array([1.0, 3.0]), mix=0.5)
        >>> sampling.probabilities.tolist(), float(sampling.probabilities @ sampling.weights)
        ([0.375, 0.625], 1.0)

    References:
        Zhao, Zhang, "Stochastic optimization with importance sampling for regularized loss minimization" (2015); Lu et al.,
        "PA&DA: jointly sampling path and data for consistent NAS" (2023).
    """
    if not 0 <= mix <= 1:
        raise ValueError(f"Expected mix to be a share between 0 and 1, found {mix}.")
    values = _checked(_scores(scores), "scores")
    total = values.sum()
    if len(values) and not total > 0:
        raise ValueError(f"Expected scores of which one is above 0 to draw by, found {len(values)} that are all 0.")
    return Sampling(mix * values / (total or 1.0) + (1 - mix) / max(len(values), 1))


def _scores(scores: Gradients | Any) -> Float[np.ndarray, " n"]:
    if isinstance(scores, Gradients):
        if scores.gram is None:
            raise ValueError(
                "Expected a record with samples, found one without. Measure with gradients(problem, gram=True)."
            )
        return np.asarray(scores.sample_norms, dtype=np.float64)
    values = np.asarray(scores)
    if values.ndim != 1 or values.dtype.kind not in "fiub":
        raise ValueError(
            f"Expected scores as an array of one number for each sample, found a {type(scores).__name__} of shape {values.shape}."
        )
    return values.astype(np.float64)


@final
@dataclass(frozen=True, eq=False)
class Clusters:
    """Samples in clusters of their embeddings.

    Args:
        labels: the cluster of each sample.
        distances: of each sample from the medoid of its cluster.
        medoids: the sample closest to the centre of each.
    """

    labels: Int[np.ndarray, " n"]
    distances: Float[np.ndarray, " n"]
    medoids: Int[np.ndarray, " k"]

    def sensitivity_sampling(
        self, medoid_losses: Float[np.ndarray, " k"], *, spread: float = 1.0, power: float = 2.0
    ) -> Sampling:
        """Draw samples by an upper bound of their loss: p ∝ ℓ(medoid) + spread·distance^power.

        Only the losses of the medoids must be evaluated. It bounds the loss if that is Hölder continuous in the embedding with this
        constant and power; the weighted mean of the draws is then close to the mean loss of the data.

        Args:
            medoid_losses: not negative.
            spread: λ, by how much losses differ at distance 1.
            power: z.

        Raises:
            ValueError: losses are negative, not finite, or not one for each cluster.

        References:
            Axiotis et al., "Data-efficient learning via clustering-based sensitivity sampling" (2024).
        """
        if len(medoid_losses) != len(self.medoids):
            raise ValueError(f"Expected a loss for each of {len(self.medoids)} medoids, found {len(medoid_losses)}.")
        losses = _checked(medoid_losses, "losses of the medoids")
        bounds = losses[self.labels] + spread * self.distances**power
        # Nothing is lost anywhere: all samples are alike.
        return importance_sampling(bounds if bounds.any() else np.ones(len(bounds)))


def clusters(embeddings: Float[np.ndarray, "n d"], *, count: int, seed: int = 0) -> Clusters:
    """Cluster samples by k-means, from centres that lie apart (k-means++).

    Args:
        embeddings: of the samples: features, or sketches of their gradients.
        count: how many clusters; those that end up empty are left out.
        seed: of the first centres.

    Raises:
        ValueError: there are more clusters than samples, or fewer than one, or an embedding is not finite.

    Example:
        >>> found = clusters(np.array([[0.0], [0.1], [5.0]]), count=2)
        >>> found.labels[0] == found.labels[1] != found.labels[2]
        np.True_
    """
    if not 1 <= count <= len(embeddings):
        raise ValueError(f"Expected from 1 to {len(embeddings)} clusters of as many samples, found count={count}.")
    if not np.isfinite(embeddings).all():
        place = int(np.flatnonzero(~np.isfinite(embeddings).all(axis=1))[0])
        raise ValueError(f"Expected finite embeddings, found NaN or infinity, first in sample {place}. Leave it out.")
    points = embeddings.astype(np.float64, copy=False)
    rng = np.random.default_rng(seed)
    start = _apart(points, count, rng)
    centres, labels = _k_means(points, start) if len(start) > 1 else _one(points)
    used, labels = np.unique(labels, return_inverse=True)
    off = np.linalg.norm(points - centres[used][labels], axis=1)
    medoids = np.array([int(np.where(labels == place, off, np.inf).argmin()) for place in range(len(used))])
    return Clusters(labels.astype(np.int64), np.linalg.norm(points - points[medoids][labels], axis=1), medoids)


def _k_means(
    points: Float[np.ndarray, "n d"], start: Float[np.ndarray, "k d"]
) -> tuple[Float[np.ndarray, "k d"], Int[np.ndarray, " n"]]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="One of the clusters is empty")  # it is left out
        centres, labels = kmeans2(points, start, minit="matrix", missing="warn")
    return centres, labels.astype(np.int64)


def _one(points: Float[np.ndarray, "n d"]) -> tuple[Float[np.ndarray, "1 d"], Int[np.ndarray, " n"]]:
    return points.mean(axis=0, keepdims=True), np.zeros(len(points), dtype=np.int64)


def _apart(points: Float[np.ndarray, "n d"], count: int, rng: np.random.Generator) -> Float[np.ndarray, "_ d"]:
    """Centres drawn one after the other by squared distance from those there are (Arthur & Vassilvitskii, 2007)."""
    chosen = [int(rng.integers(len(points)))]
    nearest = np.square(points - points[chosen[0]]).sum(axis=1)
    while len(chosen) < count and nearest.sum() > 0:  # no more centres than distinct points
        chosen.append(int(rng.choice(len(points), p=nearest / nearest.sum())))
        nearest = np.minimum(nearest, np.square(points - points[chosen[-1]]).sum(axis=1))
    return points[chosen]


def _checked(values: Float[np.ndarray, " n"], name: str) -> Float[np.ndarray, " n"]:
    wrong = ~(np.isfinite(values) & (values >= 0))
    if wrong.any():
        place = int(wrong.argmax())
        raise ValueError(
            f"Expected {name} that are finite and not negative, found {values[place]:g} at place {place}. Leave out samples whose "
            "gradient is not finite (record.finite)."
        )
    return values
