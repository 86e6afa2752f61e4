"""Few samples that stand for a batch: medoids of its gradients, weighted by what they stand for."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Bool, Float, Int

from theodolite.records.gram import Gram


@final
@dataclass(frozen=True, eq=False)
class Coreset:
    """Chosen samples of a batch.

    Args:
        places: of the samples in the batch, ascending.
        weights: how many samples each stands for, itself included; they add up to the size of the batch.
    """

    places: Int[np.ndarray, " m"]
    weights: Float[np.ndarray, " m"]

    def error(self, gram: Gram) -> float:
        """‖Σ w_i g_i/Σ w_i − ḡ‖ over ‖ḡ‖: how far the weighted mean of the chosen gradients is from that of the batch."""
        difference = np.full(len(gram), -1 / len(gram))
        difference[self.places] += self.weights / self.weights.sum()
        square = float(difference @ gram @ difference)
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(np.sqrt(max(square, 0.0) / np.float64(gram.mean())))


def coreset(
    gram: Gram,
    *,
    size: int,
    sources: Int[np.ndarray, " b"] | None = None,
    keep: Collection[int] | None = None,
) -> Coreset:
    """Choose the samples whose gradients cover those of a large batch, to train on as if on all of it.

    All samples of small sources are kept, and the others share what is left of the size in proportion to theirs, one sample at
    least. In each, samples are added one by one that most raise Σ_i max_{j ∈ S} s_ij, the facility location of similarities
    s = max D − D of the distances D between gradients; this reaches at least 1 − 1/e of the best there is.

    Cost: m·b² operations for m of b samples.

    Args:
        gram: dot products of the gradients of the batch, such as ``record.finite_gram``; of sketches they may be approximate.
        size: number of samples to choose.
        sources: the source (domain, group) of each sample; None for a single one.
        keep: sources all of whose samples are kept; None for those that have less than the share 1/(number of sources).

    Raises:
        ValueError: size is not between 1 and the batch, or too small for the kept sources and one sample of each other, sources
            are not one for each sample, or a product is not finite.

    Example:
        >>> rows = np.array([[1.0, 0.0], [1.1, 0.0], [0.0, 2.0]])
        >>> found = coreset(rows @ rows.T, size=2)
        >>> found.weights.tolist(), 2 in found.places
        ([2.0, 1.0], True)

    References:
        Nguyen et al., "Mini-batch coresets for memory-efficient language model training on data mixtures" (2025), whose rule for
        small sources this reconstructs; Nemhauser, Wolsey, Fisher, "An analysis of approximations for maximizing submodular set
        functions" (1978).
    """
    count = len(gram)
    if not 1 <= size <= count:
        raise ValueError(f"Expected a size between 1 and the {count} samples of the batch, found {size}.")
    owners = np.zeros(count, dtype=np.int64) if sources is None else np.asarray(sources)
    if owners.shape != (count,):
        raise ValueError(
            f"Expected one source for each of the {count} samples of the batch, found sources of shape {owners.shape}. Where "
            "gradients that are not finite were left out, leave out their sources: sources[record.finite]."
        )
    names, sizes = np.unique(owners, return_counts=True)
    kept = np.isin(names, list(keep)) if keep is not None else (sizes * len(names) < count)
    if sizes[kept].sum() + (~kept).sum() > size:
        raise ValueError(
            f"Expected a size that holds all {sizes[kept].sum()} samples of the kept sources {names[kept].tolist()} and one of "
            f"each of {(~kept).sum()} others, found {size}. Raise it, or name fewer in keep=."
        )
    if not np.isfinite(gram).all():
        raise ValueError(
            f"Expected finite products, found {int((~np.isfinite(gram)).sum())} that are not. Leave these samples out: "
            "record.finite_gram."
        )
    budgets = _budgets(sizes, kept, size)
    squares = np.diagonal(gram)
    distances = np.sqrt(np.maximum(squares[:, None] + squares - 2 * gram, 0.0))
    chosen: list[int] = []
    weights: list[float] = []
    for name, budget in zip(names, budgets.tolist(), strict=True):
        own = np.flatnonzero(owners == name)
        medoids, stood_for = facility_location(
            distances[np.ix_(own, own)].max() - distances[np.ix_(own, own)], size=budget
        )
        chosen += own[medoids].tolist()
        weights += stood_for.tolist()
    order = np.argsort(chosen)
    return Coreset(np.array(chosen, dtype=np.int64)[order], np.array(weights, dtype=np.float64)[order])


def facility_location(
    similarities: Float[np.ndarray, "n n"], *, size: int
) -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " m"]]:
    """Samples that cover all others best, one by one, and how many each stands for.

    Args:
        similarities: s_ij ≥ 0 of sample i to sample j.
        size: how many; of equal gains the first is taken.
    """
    covered = np.zeros(len(similarities))
    chosen: list[int] = []
    for _ in range(size):
        gains = np.maximum(similarities - covered[:, None], 0.0).sum(axis=0)
        gains[chosen] = -1.0
        chosen.append(int(gains.argmax()))
        covered = np.maximum(covered, similarities[:, chosen[-1]])
    places = np.array(chosen, dtype=np.int64)
    nearest = similarities[:, places].argmax(axis=1) if size else np.zeros(0, dtype=np.int64)
    nearest[places] = np.arange(size)  # a chosen sample stands for itself, also among equals
    return places, np.bincount(nearest, minlength=size)


def _budgets(sizes: Int[np.ndarray, " s"], kept: Bool[np.ndarray, " s"], size: int) -> Int[np.ndarray, " s"]:
    """All of the kept sources, and of the others in proportion, one at least, made up by what was rounded most."""
    rest = np.where(kept, 0, sizes)
    if not rest.any():
        return sizes
    exact = np.where(kept, sizes, (size - sizes[kept].sum()) * rest / rest.sum())
    budgets = np.maximum(np.floor(exact), 1).astype(np.int64)
    while budgets.sum() < size:
        budgets[(exact - budgets).argmax()] += 1
    while budgets.sum() > size:  # sources that were given their one
        budgets[np.where((budgets > 1) & ~kept, budgets - exact, -np.inf).argmax()] -= 1
    return budgets
