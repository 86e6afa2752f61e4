"""Neighbourhood distributions, and the losses that the common form gives with them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from theodolite import losses


def points(n: int = 12, k: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_groups_and_nearest_are_uniform_without_oneself() -> None:
    p = losses.group_neighbours(torch.tensor([0, 1, 0, 0, 2]))
    torch.testing.assert_close(p[0], torch.tensor([0, 0, 0.5, 0.5, 0]))
    torch.testing.assert_close(p.sum(1), torch.tensor([1.0, 0, 1, 1, 0]))
    x = points()
    near = losses.nearest_neighbours(x, count=4)
    distance = torch.cdist(x, x).fill_diagonal_(math.inf)
    for i in range(12):
        assert set(near[i].nonzero()[:, 0].tolist()) == set(distance[i].argsort()[:4].tolist())
    torch.testing.assert_close(near.sum(1), torch.ones(12, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"between 1 and 11 neighbours among 12 points\. Found 12"):
        losses.nearest_neighbours(x, count=12)


@pytest.mark.parametrize("perplexity", [2.0, 5.0, 10.0])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_gaussian_neighbours_have_the_perplexity_asked_for_at_every_scale(perplexity: float, scale: float) -> None:
    p = losses.gaussian_neighbours(scale * points(), perplexity=perplexity)
    entropy = -torch.special.xlogy(p, p).sum(1)
    torch.testing.assert_close(entropy.exp(), torch.full((12,), perplexity, dtype=torch.float64), rtol=1e-8, atol=0.0)
    assert float(p.diagonal().abs().max()) == 0
    x = points()
    d = torch.cdist(x, x).square()
    order = p[0].argsort(descending=True)[:-1]
    assert bool((d[0][order].diff() >= 0).all())  # nearer is likelier


def test_gaussian_neighbours_refuse_more_than_there_are() -> None:
    with pytest.raises(ValueError, match="perplexity between 1 and 11"):
        losses.gaussian_neighbours(points(), perplexity=11.0)


def test_cluster_neighbours_are_a_walk_through_clusters() -> None:
    phi = torch.softmax(points(6, 3), 1)
    expected = torch.stack(
        [sum(phi[:, c] * phi[i, c] / phi[:, c].sum() for c in range(3)) for i in range(6)]  # type: ignore[misc]
    )
    q = losses.log_cluster_neighbours(phi).exp()
    torch.testing.assert_close(q, expected)
    torch.testing.assert_close(q.sum(1), torch.ones(6, dtype=torch.float64))
    skewed = torch.softmax(4 * points(6, 3) + torch.tensor([3.0, 0, 0], dtype=torch.float64), 1)
    torch.testing.assert_close(losses.log_cluster_neighbours(skewed).exp().sum(1), torch.ones(6, dtype=torch.float64))


def test_label_neighbours_give_supervised_contrast() -> None:
    z, labels = points(8), torch.tensor([0, 0, 1, 1, 1, 2, 2, 2])
    p = losses.group_neighbours(labels).double()
    log_q = losses.log_neighbours(z, kernel="cosine", scale=0.3)
    sizes = torch.tensor([1.0, 1, 2, 2, 2, 2, 2, 2], dtype=torch.float64)
    found = losses.icon(p, log_q)
    torch.testing.assert_close(found, losses.supcon(z, labels, temperature=0.3) - sizes.log().mean())


def test_augmentation_neighbours_give_info_nce() -> None:
    u, v = points(5), points(5, seed=1)
    p = losses.group_neighbours(torch.arange(5).repeat(2)).double()
    log_q = losses.log_neighbours(torch.cat([u, v]), kernel="cosine", scale=0.5)
    torch.testing.assert_close(losses.icon(p, log_q), losses.nt_xent(u, v, temperature=0.5))


def test_gaussian_and_gaussian_is_neighbour_embedding() -> None:
    x, z = points(), points(k=2, seed=1)
    p = losses.gaussian_neighbours(x, perplexity=4.0)
    log_q = losses.log_neighbours(z, scale=math.sqrt(0.5))  # e^{−d²}
    d = torch.cdist(z, z).square().fill_diagonal_(math.inf)
    off = ~torch.eye(12, dtype=torch.bool)
    q = torch.softmax(-d, 1)
    expected = (p[off] * (p[off] / q[off]).log()).sum() / 12
    torch.testing.assert_close(losses.icon(p, log_q), expected)
    assert float(expected) > 0


def test_supervision_entropy_is_what_the_common_form_adds_to_cross_entropy() -> None:
    p, z = torch.softmax(points(5, 4), 1), points(5, 4, seed=1)
    entropy = -torch.special.xlogy(p, p).sum(1).mean()
    torch.testing.assert_close(losses.icon(p, F.log_softmax(z, 1)), F.cross_entropy(z, p) - entropy)
