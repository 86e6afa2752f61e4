"""Laws of contrastive losses, dense and in tiles."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from theodolite import losses
from theodolite.losses.supervised import BindingBatches, check_batches


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


U, V = F.normalize(drawn(7, 3), dim=1), F.normalize(drawn(7, 3, seed=1), dim=1)


def test_equal_embeddings_cost_the_log_of_the_batch() -> None:
    same = torch.ones(7, 3, dtype=torch.float64)
    assert float(losses.info_nce(same, same)) == pytest.approx(math.log(7), rel=1e-12)
    assert float(losses.nt_xent(same, same)) == pytest.approx(math.log(13), rel=1e-12)


def test_info_nce_is_cross_entropy_of_the_cosines_with_rows_of_gradient_that_cancel() -> None:
    scores = (U @ V.T).requires_grad_()
    y = torch.arange(7)
    rows, columns = F.cross_entropy(scores / 0.2, y), F.cross_entropy(scores.T / 0.2, y)
    torch.testing.assert_close(losses.info_nce(U, V, temperature=0.2, symmetric=False), rows)
    torch.testing.assert_close(losses.info_nce(U, V, temperature=0.2), (rows + columns) / 2)
    (gradient,) = torch.autograd.grad(7 * rows, scores)
    p = torch.softmax(scores.detach() / 0.2, 1)
    torch.testing.assert_close(gradient, (p - torch.eye(7)) / 0.2)
    torch.testing.assert_close(gradient.sum(1), torch.zeros(7).double(), atol=1e-12, rtol=0)


def test_small_temperature_is_the_largest_violation() -> None:
    scores = U @ V.T
    violation = (scores - scores.diagonal()[:, None]).amax(1)
    value = 1e-4 * losses.info_nce(U, V, temperature=1e-4, symmetric=False, reduction="none")
    torch.testing.assert_close(value, violation, atol=1e-3, rtol=0)


@pytest.mark.parametrize("tile", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("name", ["info_nce", "nt_xent", "siglip"])
def test_tiles_equal_the_dense_loss_to_second_order(name: str, tile: int) -> None:
    function = losses.LOSSES[name].function
    leaves = [drawn(7, 3).requires_grad_(), drawn(7, 3, seed=1).requires_grad_()]
    results = []
    for option in (None, tile):
        value = function(*leaves, tile=option)
        first = torch.autograd.grad(value, leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.sin().sum() for g in first), leaves)
        results.append([value.detach(), *[g.detach() for g in first], *second])
    for dense, tiled in zip(*results, strict=True):
        torch.testing.assert_close(tiled, dense, atol=1e-12, rtol=1e-12)


def test_a_tile_has_rows() -> None:
    with pytest.raises(ValueError, match="Found tile = 0"):
        losses.info_nce(U, V, tile=0)


def test_temperature_and_scale_are_learnable_and_safe_under_autocast() -> None:
    t = torch.tensor(0.07, requires_grad=True)
    u, v = U.float(), V.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        amp = losses.info_nce(u, v, temperature=t)
        large = losses.clip(u, v, torch.tensor(math.log(100.0)))
    assert amp.dtype == torch.float32
    torch.testing.assert_close(amp, losses.info_nce(u, v, temperature=t), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(large, losses.clip(u, v, torch.tensor(math.log(100.0))), atol=1e-6, rtol=1e-6)
    (slope,) = torch.autograd.grad(amp, t)
    assert float(slope) != 0
    torch.testing.assert_close(
        losses.clip(U, V, torch.tensor(9.0, dtype=torch.float64)), losses.info_nce(U, V, temperature=0.01)
    )


def test_nt_xent_excludes_the_view_itself() -> None:
    every = torch.cat([U, V])
    scores = (every @ every.T / 0.5).masked_fill(torch.eye(14).bool(), -math.inf)
    y = torch.arange(14).roll(-7)
    torch.testing.assert_close(losses.nt_xent(U, V), F.cross_entropy(scores, y))


def test_siglip_gradient_and_single_pair() -> None:
    one = torch.ones(1, 2, dtype=torch.float64)
    assert float(losses.siglip(one, one, log_scale=0.0, bias=0.0)) == pytest.approx(math.log1p(math.exp(-1)), rel=1e-12)
    sign = 2 * torch.eye(7) - 1
    expected = -F.logsigmoid(sign * (10 * (U @ V.T) - 10)).sum() / 7
    torch.testing.assert_close(losses.siglip(U, V), expected)


def test_supervised_contrast_with_one_positive_is_nt_xent() -> None:
    labels = torch.arange(7).repeat(2)
    torch.testing.assert_close(losses.supcon(torch.cat([U, V]), labels, temperature=0.5), losses.nt_xent(U, V))


def test_inner_mean_is_never_larger_and_lonely_samples_count_nothing() -> None:
    z, labels = drawn(9, 4), torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 3])
    assert float(losses.supcon(z, labels, variant="in")) <= float(losses.supcon(z, labels)) + 1e-12
    free = z.clone().requires_grad_()
    value = losses.supcon(free, torch.arange(9), variant="in")
    (gradient,) = torch.autograd.grad(value, free)
    assert value == 0
    assert bool((gradient == 0).all())
    scaled = losses.supcon(z, labels, temperature=0.2, base_temperature=0.07)
    torch.testing.assert_close(scaled, 0.2 / 0.07 * losses.supcon(z, labels, temperature=0.2))


def optimised(counts: list[int], *, relu: bool, steps: int = 400) -> Tensor:
    """Class-mean cosines of free features after minimising supervised contrastive loss."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    raw = drawn(len(labels), 6, seed=3).requires_grad_()
    optimizer = torch.optim.Adam([raw], lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        # |h| in place of a rectifier: free features under relu die
        losses.supcon(raw.abs() if relu else raw, labels, temperature=0.3, relu=relu).backward()
        optimizer.step()
    z = F.normalize(raw.detach().abs() if relu else raw.detach(), dim=1)
    means = torch.stack([z[labels == k].mean(0) for k in range(len(counts))])
    assert float(losses.tolerance(z, labels)) > 0.99
    return F.normalize(means, dim=1) @ F.normalize(means, dim=1).T


def test_free_features_reach_the_simplex_and_rectified_ones_the_orthogonal_frame() -> None:
    off = ~torch.eye(4, dtype=torch.bool)
    simplex = optimised([6, 6, 6, 6], relu=False)
    torch.testing.assert_close(simplex[off], torch.full((12,), -1 / 3, dtype=torch.float64), atol=0.02, rtol=0)
    frame = optimised([12, 6, 3, 2], relu=True)
    assert float(frame[off].abs().max()) < 0.02


def test_batches_bind_when_one_sample_of_every_class_joins_them() -> None:
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    apart = [[0, 1, 4, 5], [2, 3, 6, 7]]  # classes meet, but each class falls in two halves
    found = check_batches(apart, labels)
    assert found.pairs_meet
    assert not bool(found.classes_connected.any())
    alone = check_batches([[0, 1, 2, 3], [4, 5, 6, 7]], labels)
    assert not alone.pairs_meet
    assert bool(alone.classes_connected.all())
    bound = list(BindingBatches(apart, labels))
    assert bound == [[0, 1, 4, 5], [2, 3, 6, 7, 0, 4]]  # no duplicates
    joined = check_batches(bound, labels)
    assert joined.pairs_meet
    assert bool(joined.classes_connected.all())


def test_alignment_and_uniformity_identities() -> None:
    torch.testing.assert_close(losses.alignment(U, V, reduction="none"), 2 - 2 * (U * V).sum(1))
    torch.testing.assert_close(losses.alignment(U, V, alpha=1.0), (U - V).norm(dim=1).mean())
    assert float(losses.uniformity(torch.ones(5, 3).double())) == pytest.approx(0.0, abs=1e-12)
    pair = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    assert float(losses.uniformity(pair, t=3.0)) == pytest.approx(-12.0, rel=1e-12)
    expected = torch.log(torch.exp(-2 * torch.pdist(U) ** 2).mean())
    torch.testing.assert_close(losses.uniformity(U), expected)


def test_large_batches_rank_embeddings_as_alignment_plus_uniformity() -> None:
    scores = []
    for spread, noise, seed in ((0.0, 0.1, 0), (0.0, 0.6, 1), (2.0, 0.1, 2), (2.0, 0.6, 3), (5.0, 0.3, 4)):
        base = drawn(600, 5, seed=seed) + torch.tensor([spread, 0, 0, 0, 0])
        u, v = (F.normalize(base + noise * drawn(600, 5, seed=seed + k), dim=1) for k in (10, 20))
        tau = 0.5
        mean_term = torch.logsumexp(u @ v.T / tau, 1).mean() - math.log(600)
        limit = losses.alignment(u, v) / (2 * tau) - 1 / tau + mean_term
        scores.append((float(losses.info_nce(u, v, temperature=tau, symmetric=False)) - math.log(600), float(limit)))
    first, second = (sorted(range(5), key=lambda i, k=k: scores[i][k]) for k in (0, 1))
    assert first == second
    assert scores[0][0] == pytest.approx(scores[0][1], abs=1e-9)


def test_koleo_measures_the_nearest_neighbour() -> None:
    distance = torch.cdist(U, U) + 9 * torch.eye(7)
    torch.testing.assert_close(losses.koleo(U, eps=0.0), -distance.amin(1).log().mean())
    collapsed = torch.ones(4, 3).requires_grad_()
    (gradient,) = torch.autograd.grad(losses.koleo(collapsed), collapsed)
    assert bool(gradient.isfinite().all())


def test_whitening_reaches_the_identity_and_survives_collapse() -> None:
    z = drawn(200, 4) @ drawn(4, 4, seed=1)
    white = losses.whitened(z, iterations=40)
    torch.testing.assert_close(torch.cov(white.T), torch.eye(4).double(), atol=1e-8, rtol=0)
    assert float(losses.intl(z, z, iterations=40)) == pytest.approx(0.0, abs=1e-8)
    collapsed = torch.ones(16, 3).requires_grad_()
    value = losses.intl(collapsed, 2 * collapsed)
    (gradient,) = torch.autograd.grad(value, collapsed)
    assert bool(value.isfinite() & gradient.isfinite().all())


@pytest.mark.parametrize("kind", ["l2", "cosine"])
def test_dispersion_vanishes_at_collapse_and_falls_with_scale(kind: str) -> None:
    assert float(losses.dispersive(torch.ones(5, 3).double(), kind=kind)) == pytest.approx(0.0, abs=1e-12)
    assert float(losses.dispersive(drawn(5, 3), kind=kind)) < 0
    near, far = (float(losses.dispersive(scale * drawn(5, 3))) for scale in (0.5, 2.0))
    assert far < near


def test_hinge_and_covariance_dispersion() -> None:
    h = drawn(6, 3)
    expected = torch.clamp(4.0 - torch.pdist(h) ** 2, min=0).square().mean()
    torch.testing.assert_close(losses.dispersive(h, kind="hinge", margin=4.0), expected)
    covariance = torch.cov(h.T)
    off = covariance - covariance.diag().diag()
    torch.testing.assert_close(losses.dispersive(h, kind="covariance"), off.square().sum())


def test_the_common_form_contains_the_others() -> None:
    labels = torch.tensor([0, 0, 1, 1, 1, 2, 2])
    same = (labels[:, None] == labels[None]) & ~torch.eye(7).bool()
    p = same / same.sum(1, keepdim=True)
    log_q = losses.log_neighbours(U, kernel="cosine", scale=0.1)
    expected = losses.supcon(U, labels) - same.sum(1).double().log().mean()
    torch.testing.assert_close(losses.icon(p.double(), log_q), expected)
    z, y = drawn(5, 4), torch.tensor([0, 3, 1, 1, 2])
    torch.testing.assert_close(losses.icon(F.one_hot(y, 4).double(), F.log_softmax(z, 1)), F.cross_entropy(z, y))
    log_p = losses.log_neighbours(drawn(7, 3, seed=5), scale=2.0)
    q = losses.log_neighbours(U)
    off = ~torch.eye(7).bool()
    neighbour_embedding = (log_p.exp()[off] * (log_p[off] - q[off])).sum() / 7
    torch.testing.assert_close(losses.icon(log_p.exp(), q), neighbour_embedding)
    assert float(losses.icon(q.exp(), q)) == pytest.approx(0.0, abs=1e-12)
    student = losses.log_neighbours(U, kernel="student").exp()
    torch.testing.assert_close(
        student[0, 1] / student[0, 2], (1 + (U[0] - U[2]).square().sum()) / (1 + (U[0] - U[1]).square().sum())
    )


def test_individual_temperature_is_dual_to_a_ball_around_uniform() -> None:
    s, own, rho = drawn(1, 6), torch.tensor([0.4]).double(), 0.3
    taus = torch.logspace(-2, 1.5, 4000, dtype=torch.float64)
    values = torch.stack([losses.isogclr(s, own, t[None], rho=rho) for t in taus])
    best = taus[values.argmin()]
    q = torch.softmax((s - own) / best, 1)[0]
    divergence = float((q * (6 * q).log()).sum())
    assert divergence == pytest.approx(rho, abs=2e-3)  # the constraint is met with equality
    assert float((q * (s[0] - own)).sum()) == pytest.approx(float(values.min()), abs=1e-3)


def best_temperature(scores: Tensor, rho: float) -> float:
    taus = torch.logspace(-2, 1.5, 3000, dtype=torch.float64)
    own = torch.ones(1, dtype=torch.float64)
    return float(taus[torch.stack([losses.isogclr(scores, own, t[None], rho=rho) for t in taus]).argmin()])


def test_frequent_semantics_get_a_larger_temperature_in_a_small_ball() -> None:
    # KL ≈ Var(s)/2τ² for a small radius, and the variance grows with the share of duplicates
    duplicates = torch.cat([torch.full((1, 5), 0.9), torch.full((1, 5), -0.2)], 1).double()
    rare = torch.cat([torch.full((1, 1), 0.9), torch.full((1, 9), -0.2)], 1).double()
    found = best_temperature(duplicates, 0.02), best_temperature(rare, 0.02)
    assert found[0] > 1.2 * found[1]
    assert found[0] == pytest.approx(math.sqrt(0.25 * 1.1**2 / (2 * 0.02)), rel=0.05)
