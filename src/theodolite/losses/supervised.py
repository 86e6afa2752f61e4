"""Contrastive losses with labels: supervised contrastive, its batches that bind all classes, tolerance."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from theodolite.losses.contract import mean_over
from theodolite.losses.numerics import NEGLIGIBLE
from theodolite.losses.registry import loss, module_of
from theodolite.losses.tiles import at_full_precision, unit_rows


@loss("embeddings", temperature="(0, ∞)", base_temperature="(0, ∞)")
def supcon(
    embeddings: Float[Tensor, "b k"],
    labels: Int[Tensor, " b"],
    *,
    temperature: float = 0.1,
    variant: Literal["out", "in"] = "out",
    relu: bool = False,
    base_temperature: float | None = None,
) -> Float[Tensor, ""]:
    """Contrast each sample with all others, every sample of its class being a positive.

    ``"out"`` averages the log-probabilities of the positives, ``"in"`` takes the log of their mean probability, which is
    never larger. Free features collapse to a simplex in balanced classes; with ``relu`` to an orthogonal frame also in
    unbalanced ones.

    Args:
        embeddings: one a sample, normalised here.
        labels: class indices.
        temperature: τ.
        variant: where the mean over positives stands.
        relu: rectify before normalising.
        base_temperature: multiply the loss by τ over this, as in the released code.

    Returns:
        Mean over samples that have a positive, 0 if none has.

    Example:
        >>> supcon(torch.ones(4, 2), torch.tensor([0, 0, 1, 1]))
        tensor(1.0986)

    References:
        Khosla et al. 2020, "Supervised Contrastive Learning"; Kini et al. 2024, "Symmetric Neural-Collapse
        Representations with Supervised Contrastive Loss: The Impact of ReLU and Batching".
    """
    with at_full_precision(embeddings):
        z = unit_rows(torch.relu(embeddings) if relu else embeddings)
        own = torch.eye(len(z), dtype=torch.bool, device=z.device)
        positive = (labels[:, None] == labels[None]) & ~own
        scores = z @ z.T / temperature
        log_p = scores - torch.logsumexp(scores.masked_fill(own, NEGLIGIBLE), 1, keepdim=True)
        count = positive.sum(1).to(z.dtype)
        if variant == "out":
            values = -torch.where(positive, log_p, 0.0).sum(1) / count.clamp(min=1)
        else:
            lonely = (count == 0)[:, None]
            inside = torch.logsumexp(torch.where(positive | lonely, log_p, NEGLIGIBLE), 1)
            values = torch.log(count.clamp(min=1)) - inside
        total = torch.where(count > 0, values, 0.0).sum()
        factor = 1.0 if base_temperature is None else temperature / base_temperature
        return factor * mean_over(total, (count > 0).sum().to(z.dtype))


SupConLoss = module_of(supcon, "SupConLoss")


def tolerance(embeddings: Float[Tensor, "b k"], labels: Int[Tensor, " b"]) -> Float[Tensor, ""]:
    """Return the mean cosine of different samples of one class: 1 at class collapse, about 0 for isotropic features.

    References:
        Wang and Liu 2021, "Understanding the Behaviour of Contrastive Loss".
    """
    z = unit_rows(embeddings)
    pairs = (labels[:, None] == labels[None]) & ~torch.eye(len(z), dtype=torch.bool, device=z.device)
    return mean_over(torch.where(pairs, z @ z.T, 0.0).sum(), pairs.sum().to(z.dtype))


class BindingBatches:
    """Batches with one fixed sample of every class appended, so that mini-batches share one minimiser.

    Args:
        batches: batches of sample indices.
        labels: class of each sample.

    References:
        Kini et al. 2024, "Symmetric Neural-Collapse Representations with Supervised Contrastive Loss: The Impact of
        ReLU and Batching".
    """

    def __init__(self, batches: Iterable[Sequence[int]], labels: Int[Tensor, " n"]) -> None:
        self.batches = batches
        self.bound = [int((labels == label).nonzero()[0]) for label in labels.unique()]

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches:
            yield [*batch, *(index for index in self.bound if index not in set(batch))]


class BatchCheck(NamedTuple):
    """Whether supervised contrastive loss over these batches has the collapsed frame as its only minimiser.

    Args:
        pairs_meet: some batch holds both classes, for every pair of classes.
        classes_connected: for each class, sharing a batch connects all its samples.
    """

    pairs_meet: bool
    classes_connected: Bool[Tensor, " c"]


def check_batches(batches: Iterable[Sequence[int]], labels: Int[Tensor, " n"]) -> BatchCheck:
    """Check the two conditions under which mini-batches bind: pairs of classes meet, samples of a class are connected.

    Args:
        batches: an epoch's batches of sample indices, fixed over training.
        labels: class of each sample.

    Returns:
        Both conditions.

    References:
        Kini et al. 2024, "Symmetric Neural-Collapse Representations with Supervised Contrastive Loss: The Impact of
        ReLU and Batching".
    """
    classes = labels.unique()
    met = torch.eye(len(classes), dtype=torch.bool)
    root = list(range(len(labels)))

    def find(i: int) -> int:
        while root[i] != i:
            root[i] = root[root[i]]
            i = root[i]
        return i

    for batch in batches:
        members = torch.as_tensor(list(batch))
        present = torch.isin(classes, labels[members])
        met |= present[:, None] & present[None]
        for label in classes[present]:
            first, *others = members[labels[members] == label].tolist()
            for other in others:
                root[find(other)] = find(first)
    connected = [len({find(int(i)) for i in (labels == label).nonzero()}) == 1 for label in classes]
    return BatchCheck(bool(met.all()), torch.tensor(connected))
