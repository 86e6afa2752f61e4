"""Laws of metric learning: mining, boundaries, codes, mean fields, submodular sets, sorting networks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from theodolite import losses


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LABELS = torch.tensor([0, 1, 0, 2, 1, 0, 2, 3])
Z = drawn(8, 3)


def test_mining_equals_brute_force() -> None:
    d = torch.cdist(Z, Z)
    hard, every, semi = [], [], []
    for a in range(8):
        up = [float(d[a, p]) for p in range(8) if p != a and LABELS[p] == LABELS[a]]
        down = [float(d[a, n]) for n in range(8) if LABELS[n] != LABELS[a]]
        if up:
            hard.append(max(max(up) - min(down) + 0.3, 0))
        triplets = [(p, n) for p in up for n in down if p - n + 0.3 > 0]
        every += [p - n + 0.3 for p, n in triplets]
        semi += [p - n + 0.3 for p, n in triplets if n > p]
    for mining, values in (("hard", hard), ("all", every), ("semi", semi)):
        found = losses.triplet(Z, LABELS, mining=mining)
        assert float(found) == pytest.approx(sum(values) / len(values), rel=1e-9)


@pytest.mark.parametrize("mining", ["hard", "all"])
def test_collapsed_embeddings_cost_the_margin(mining: str) -> None:
    same = torch.ones(8, 3, dtype=torch.float64, requires_grad=True)
    value = losses.triplet(same, LABELS, mining=mining)
    assert value.item() == pytest.approx(0.3, rel=1e-12)
    assert bool(torch.autograd.grad(value, same)[0].isfinite().all())
    assert losses.triplet(same, LABELS, mining=mining, margin=None).item() == pytest.approx(math.log(2), rel=1e-12)
    assert losses.triplet(same, torch.arange(8), mining=mining).item() == 0


def test_triplet_agrees_with_torch_on_one_triplet() -> None:
    labels = torch.tensor([0, 0, 1])
    expected = F.triplet_margin_loss(Z[[0, 1]], Z[[1, 0]], Z[[2, 2]], margin=2.0, eps=0.0)
    torch.testing.assert_close(losses.triplet(Z[:3], labels, margin=2.0), expected)


def test_the_circle_boundary_is_a_circle() -> None:
    m = 0.25
    for angle in (0.3, 0.9, 1.4):
        s_n, s_p = math.sqrt(2) * m * math.cos(angle), 1 - math.sqrt(2) * m * math.sin(angle)
        # anchor e1, a positive at cosine s_p, a negative at cosine s_n
        points = torch.tensor([[1.0, 0, 0], [s_p, math.sqrt(1 - s_p**2), 0], [s_n, 0, math.sqrt(1 - s_n**2)]]).double()
        s = F.normalize(points, dim=1) @ F.normalize(points, dim=1).T
        up = -256 * (1 + m - s[0, 1]) * (s[0, 1] - 1 + m)
        down = 256 * (s[0, 2] + m) * (s[0, 2] - m)
        assert float(up + down) == pytest.approx(0.0, abs=1e-4)  # the points were given in float32
        both = losses.circle(points, torch.tensor([0, 0, 1]), margin=m)
        other = F.softplus(256 * (m**2 - (1 - s[1, 0]) ** 2) * -1 + 256 * (s[1, 2] + m) * (s[1, 2] - m))
        expected = (math.log(2) + float(other)) / 2
        assert float(both) == pytest.approx(expected, abs=1e-3)


def test_circle_weights_are_held_constant() -> None:
    z = Z.clone().requires_grad_()
    held, moving = losses.circle(z, LABELS, gamma=2.0), losses.circle(z, LABELS, gamma=2.0, detach_weight=False)
    torch.testing.assert_close(held, moving)
    assert not torch.allclose(torch.autograd.grad(held, z)[0], torch.autograd.grad(moving, z)[0])


def test_multi_similarity_equals_its_definition() -> None:
    s = F.normalize(Z, dim=1) @ F.normalize(Z, dim=1).T
    total = 0.0
    for a in range(8):
        up = [float(s[a, p]) for p in range(8) if p != a and LABELS[p] == LABELS[a]]
        down = [float(s[a, n]) for n in range(8) if LABELS[n] != LABELS[a]]
        kept_up = [x for x in up if x < max(down) + 0.1]
        kept_down = [x for x in down if up and x > min(up) - 0.1]
        total += math.log(1 + sum(math.exp(-2 * (x - 1)) for x in kept_up)) / 2
        total += math.log(1 + sum(math.exp(50 * (x - 1)) for x in kept_down)) / 50
    assert float(losses.multi_similarity(Z, LABELS)) == pytest.approx(total / 8, rel=1e-10)
    apart = torch.eye(4, dtype=torch.float64)[[0, 1, 0, 1]]
    assert float(losses.multi_similarity(apart, torch.tensor([0, 1, 0, 1]))) == 0  # no pair survives


def test_easy_recommendations_have_no_gradient() -> None:
    user, item = drawn(1, 3), drawn(1, 3, seed=1)
    negatives = -user[:, None].clone()
    negatives.requires_grad_()
    value = losses.ccl(user, item, negatives, weight=7.0)
    torch.testing.assert_close(value.detach(), 1 - F.cosine_similarity(user, item)[0])
    assert bool((torch.autograd.grad(value, negatives)[0] == 0).all())
    hard = losses.ccl(user, item, user[:, None], margin=0.4, weight=2.0)
    assert float(hard) == pytest.approx(value.item() + 1.2)


def test_prototype_triplet_and_pairs() -> None:
    protos = torch.tensor([[0.0, 0.0], [3.0, 4.0]]).double()
    query = torch.tensor([[3.0, 0.0]]).double()
    assert float(losses.proto_triplet(query, protos, torch.tensor([1]), margin=0.5)) == pytest.approx(4 - 3 + 0.5)
    same = torch.tensor([1.0, 0.0]).double()
    found = losses.pair_contrastive(query.expand(2, 2), protos, same, margin=5.0, reduction="none")
    assert found.tolist() == pytest.approx([9.0, 1.0])


def test_hadamard_codes_are_orthogonal_and_features_reach_them() -> None:
    codes = losses.hadamard_codes(6, 8)
    assert torch.equal(codes @ codes.T, 8 * torch.eye(6))
    with pytest.raises(ValueError, match="Found 6 bits for 4 classes"):
        losses.hadamard_codes(4, 6)
    features = drawn(6, 8).float().requires_grad_()
    optimizer = torch.optim.Adam([features], lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        losses.orthohash(features, codes, torch.arange(6)).backward()
        optimizer.step()
    used = features.detach()[:, 1:]  # no class needs the bit that is the same in all codes
    assert torch.equal(used.sign(), codes[:, 1:])
    # not 1: beyond its code a feature also gains by negative cosines to the other codes
    assert float(F.cosine_similarity(used, used.sign()).min()) > 0.85
    plain = losses.orthohash(Z[:, :2].float(), losses.hadamard_codes(2, 2), LABELS % 2, margin=0.0)
    angled = losses.orthohash(Z[:, :2].float(), losses.hadamard_codes(2, 2), LABELS % 2, margin=0.0, kind="angle")
    torch.testing.assert_close(plain, angled, atol=1e-4, rtol=0)


def test_mean_field_contrast_vanishes_at_perfect_clusters_and_ignores_class_names() -> None:
    fields = torch.eye(4, dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 3, 3])
    assert float(losses.mean_field_contrastive(fields[y], fields, y, lam=1.0)) == 0
    z, m = drawn(5, 4), drawn(4, 4, seed=1)
    order = torch.tensor([2, 0, 3, 1])
    renamed = torch.argsort(order)[y]
    for function in (losses.mean_field_contrastive, losses.mean_field_multi_similarity):
        torch.testing.assert_close(function(z, m[order], renamed, lam=0.5), function(z, m, y, lam=0.5))


def test_mean_field_multi_similarity_equals_its_formula() -> None:
    z, m, y = drawn(5, 4), drawn(4, 4, seed=1), torch.tensor([0, 0, 1, 3, 3])
    f, g = F.normalize(z, dim=1), F.normalize(m, dim=1)
    d, between = 1 - f @ g.T, 1 - g @ g.T
    alpha, beta, b = 0.5, 5.0, 0.8
    up, down = torch.exp(alpha * (d + b - 1)), torch.exp(-beta * (d + b - 1))
    mean = lambda e, c: e[y == c].mean(0) if bool((y == c).any()) else torch.zeros(4).double()  # noqa: E731
    ups, downs = torch.stack([mean(up, c) for c in range(4)]), torch.stack([mean(down, c) for c in range(4)])
    pull = torch.log1p(ups.diagonal()).sum() / (alpha * 3)
    off = ~torch.eye(4).bool()
    push = torch.log1p(downs + downs.T)[off].sum() / (2 * beta * 3)
    spread = ((F.softplus(beta * (1 - b - between)) / beta) ** 2)[off].sum() / 4
    found = losses.mean_field_multi_similarity(z, m, y, alpha=alpha, beta=beta, lam=0.3)
    torch.testing.assert_close(found, pull + push + 0.3 * spread)


@pytest.mark.parametrize("function", ["facility", "logdet", "graph-cut"])
def test_set_functions_have_diminishing_returns(function: str) -> None:
    s = torch.exp(-(torch.cdist(drawn(7, 3), drawn(7, 3)) ** 2))
    generator = torch.Generator().manual_seed(2)
    mask = lambda chosen: torch.zeros(7, dtype=torch.bool).index_fill(0, torch.tensor(chosen), True)  # noqa: E731
    value = lambda chosen: float(losses.set_value(s, mask(chosen), function=function))  # noqa: E731
    for _ in range(40):
        order = torch.randperm(7, generator=generator).tolist()
        small, large, extra = order[:2], order[:4], order[6]
        gain_small = value([*small, extra]) - value(small)
        gain_large = value([*large, extra]) - value(large)
        assert gain_large <= gain_small + 1e-9 + (1.0 if function == "facility" else 0.0)


def test_graph_cut_pulls_classes_together_and_apart_from_others() -> None:
    z = Z.clone().requires_grad_()
    before = float(losses.submodular(z, LABELS, function="graph-cut").detach())
    (gradient,) = torch.autograd.grad(losses.submodular(z, LABELS, function="graph-cut"), z)
    assert float(losses.submodular(z.detach() - 0.01 * gradient, LABELS, function="graph-cut")) < before
    clustered = torch.eye(4, dtype=torch.float64)[LABELS]
    for function in ("facility", "logdet", "graph-cut"):
        best = float(losses.submodular(clustered, LABELS, function=function))
        assert best < float(losses.submodular(Z, LABELS, function=function))


def test_soft_permutation_is_doubly_stochastic_and_sorts_in_the_limit() -> None:
    x = drawn(4, 7)
    p, _ = losses.soft_permutation(x)
    ones = torch.ones(4, 7, dtype=torch.float64)
    torch.testing.assert_close(p.sum(1), ones)
    torch.testing.assert_close(p.sum(2), ones)
    assert float(p.min()) >= 0
    hard, ordered = losses.soft_permutation(x, steepness=1e9)
    torch.testing.assert_close(ordered, x.sort(1).values, atol=1e-6, rtol=0)
    torch.testing.assert_close((x[:, None] @ hard)[:, 0], x.sort(1).values, atol=1e-6, rtol=0)


def cosines_of(values: list[float]) -> Tensor:
    return torch.tensor([[v, math.sqrt(1 - v * v)] for v in values], dtype=torch.float64)[None]


def test_group_order_prefers_no_inversion() -> None:
    anchor = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    right = losses.group_ordering(anchor, cosines_of([0.3, 0.9]), cosines_of([-0.2, 0.1]), hardest=2)
    inverted = losses.group_ordering(anchor, cosines_of([0.3, 0.9]), cosines_of([-0.2, 0.95]), hardest=2)
    assert float(right) == pytest.approx(0.314, abs=1e-3)
    assert float(inverted) == pytest.approx(0.440, abs=1e-3)
    swapped = losses.group_ordering(anchor, cosines_of([0.3, 0.9]), cosines_of([0.1, -0.2]), hardest=2)
    torch.testing.assert_close(swapped, right)


def test_hashing_of_one_label_as_a_set_of_labels_is_the_same() -> None:
    z, codes, y = drawn(6, 8), losses.hadamard_codes(4, 8).double(), torch.tensor([0, 1, 2, 3, 0, 1])
    for kind in ("cosine", "angle"):
        single = losses.orthohash(z, codes, y, kind=kind)
        torch.testing.assert_close(losses.orthohash(z, codes, F.one_hot(y, 4).double(), kind=kind), single)
    both = F.one_hot(y, 4).double()
    both[0, 2] = 1
    logits = 8 * F.normalize(z) @ F.normalize(codes).T - 8 * 0.2 * both
    expected = -(both / both.sum(1, keepdim=True) * F.log_softmax(logits, 1)).sum(1)
    torch.testing.assert_close(losses.orthohash(z, codes, both, reduction="none"), expected)


def test_batch_normalisation_balances_the_bits() -> None:
    """Each bit of the signs is 1 for half of a balanced batch, though all features share a large offset."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(64) % 4
    x = torch.randn(4, 10, generator=generator)[y] + 0.5 * torch.randn(64, 10, generator=generator) + 3
    codes = losses.hadamard_codes(8, 8)[[1, 2, 4, 7]]  # without the bit that all codes share
    balance = {}
    for normalised in (False, True):
        torch.manual_seed(0)
        head = torch.nn.Sequential(torch.nn.Linear(10, 8))
        if normalised:
            head.append(torch.nn.BatchNorm1d(8, affine=False))
        optimizer = torch.optim.SGD(head.parameters(), lr=0.05)
        start = (head(x) > 0).float().mean(0)
        for _ in range(100):
            optimizer.zero_grad()
            losses.orthohash(head(x), codes, y).backward()
            optimizer.step()
        bits = (head(x) > 0).float().mean(0)
        balance[normalised] = float((start - 0.5).abs().mean()), float((bits[1:] - 0.5).abs().mean())
    assert balance[True][0] < 0.5 * balance[False][0]  # already before training
    assert balance[True][1] < 0.05


def test_class_form_of_the_circle_is_the_pair_form_on_class_vectors() -> None:
    s, y = drawn(6, 4).clamp(-1, 1), torch.tensor([0, 1, 2, 3, 0, 1])
    up, down = s.gather(1, y[:, None]), s.clone()
    down = down[F.one_hot(y, 4) == 0].reshape(6, 3)
    alpha_up, alpha_down = (1.25 - up).clamp(min=0), (down + 0.25).clamp(min=0)
    expected = F.softplus((8 * alpha_down * (down - 0.25)).logsumexp(1) - 8 * (alpha_up * (up - 0.75))[:, 0])
    torch.testing.assert_close(losses.circle_classes(s, y, gamma=8.0, reduction="none"), expected)
    fixed = torch.log1p(torch.exp(8 * (down - up + 1 - 0.5)).sum(1))  # weights of 1: AM-softmax with margin 1 − 2m
    logits = torch.cat([up - 0.5, down], 1)
    torch.testing.assert_close(F.cross_entropy(8 * logits, torch.zeros(6).long(), reduction="none"), fixed)


def test_angular_margins_are_cosine_margins_where_they_should_be() -> None:
    s, y = drawn(6, 4).clamp(-0.9, 0.9), torch.tensor([0, 1, 2, 3, 0, 1])
    plain = F.cross_entropy(5 * s, y)
    for kind in ("angle", "cosine"):
        torch.testing.assert_close(losses.angular_margin(s, y, scale=5.0, margin=0.0, kind=kind), plain)
    moved = s - 0.3 * F.one_hot(y, 4)
    torch.testing.assert_close(
        losses.angular_margin(s, y, scale=5.0, margin=0.3, kind="cosine"), F.cross_entropy(5 * moved, y)
    )
    turned = torch.where(F.one_hot(y, 4) > 0, torch.cos(torch.arccos(s) + 0.3), s)
    torch.testing.assert_close(losses.angular_margin(s, y, scale=5.0, margin=0.3), F.cross_entropy(5 * turned, y))
