"""Laws of transport, weak supervision, generative losses and invariance penalties."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from theodolite import losses


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_sinkhorn_divergence_is_a_symmetric_distance_of_distributions() -> None:
    x, y = drawn(12, 2), drawn(9, 2, seed=1) + 1
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    options = {"blur": 0.5, "steps": 200}
    assert float(losses.sinkhorn_divergence(x, x[order], **options)) == pytest.approx(0.0, abs=1e-8)
    forward = losses.sinkhorn_divergence(x, y, **options)
    assert float(forward) > 0.1
    torch.testing.assert_close(losses.sinkhorn_divergence(y, x, **options), forward)
    doubled = torch.cat([x[:1], x]), torch.tensor([1.0, 1] + [2.0] * 11, dtype=torch.float64) / 24
    weighed = losses.sinkhorn_divergence(doubled[0], y, weights_x=doubled[1], **options)
    torch.testing.assert_close(weighed, forward)


def test_small_blur_is_sorted_transport() -> None:
    x, y = drawn(8, 1), drawn(8, 1, seed=1)
    exact = (x.sort(0).values - y.sort(0).values).square().mean() / 2
    found = losses.sinkhorn_divergence(x, y, blur=0.05, steps=2000)
    torch.testing.assert_close(found, exact, atol=3e-3, rtol=0)


def test_envelope_gradient_is_that_of_the_unrolled_loop_at_convergence() -> None:
    x, y = drawn(6, 2).requires_grad_(), drawn(5, 2, seed=1)
    gradients = [
        torch.autograd.grad(losses.sinkhorn_divergence(x, y, blur=1.0, steps=200, envelope=e), x)[0]
        for e in (True, False)
    ]
    torch.testing.assert_close(*gradients, atol=1e-8, rtol=0)


def warped(x: Tensor, y: Tensor) -> float:
    n, m = len(x), len(y)
    cost = torch.cdist(x, y) ** 2
    table = [[0.0 if i == j == 0 else math.inf for j in range(m + 1)] for i in range(n + 1)]
    for i in range(1, n + 1):
        for j in range(1, m + 1):
            table[i][j] = float(cost[i - 1, j - 1]) + min(table[i - 1][j], table[i][j - 1], table[i - 1][j - 1])
    return table[n][m]


def test_soft_warping_tends_to_warping_from_below() -> None:
    x, y = drawn(2, 5, 2), drawn(2, 7, 2, seed=1)
    exact = [warped(x[i], y[i]) for i in range(2)]
    assert losses.soft_dtw(x, y, gamma=1e-4, reduction="none").tolist() == pytest.approx(exact, abs=1e-2)
    assert bool((losses.soft_dtw(x, y, gamma=1.0, reduction="none") < torch.tensor(exact)).all())


def test_soft_warping_equals_a_sum_over_all_paths() -> None:
    x, y = drawn(1, 3, 1), drawn(1, 3, 1, seed=1)
    cost = (torch.cdist(x[0], y[0]) ** 2).tolist()

    def paths(i: int, j: int) -> list[float]:
        if i == j == 0:
            return [cost[0][0]]
        before = [(i - 1, j), (i, j - 1), (i - 1, j - 1)]
        return [cost[i][j] + total for a, b in before if a >= 0 and b >= 0 for total in paths(a, b)]

    expected = -0.7 * math.log(sum(math.exp(-total / 0.7) for total in paths(2, 2)))
    assert len(paths(2, 2)) == 13  # the Delannoy number
    assert float(losses.soft_dtw(x, y, gamma=0.7)) == pytest.approx(expected, rel=1e-12)


def spd(seed: int) -> Tensor:
    m = drawn(4, 4, seed=seed)
    return m @ m.T + 0.1 * torch.eye(4)


def root(m: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(m)
    return vectors * values.sqrt() @ vectors.T


def test_bures_distance_value_gradient_and_metric() -> None:
    a, b, c = spd(0), spd(1), spd(2)
    a.requires_grad_()
    value = losses.bures_wasserstein(a, b)
    middle = root(root(a.detach()) @ b @ root(a.detach()))
    torch.testing.assert_close(value.detach(), torch.trace(a.detach()) + torch.trace(b) - 2 * torch.trace(middle))
    (gradient,) = torch.autograd.grad(value, a)
    half = root(b)
    expected = torch.eye(4) - half @ torch.linalg.inv(root(half @ a.detach() @ half)) @ half
    torch.testing.assert_close(gradient, expected, atol=1e-9, rtol=0)
    d = {
        k: math.sqrt(float(losses.bures_wasserstein(*pair)))
        for k, pair in {"ab": (a.detach(), b), "bc": (b, c), "ac": (a.detach(), c)}.items()
    }
    assert d["ac"] <= d["ab"] + d["bc"]
    assert float(losses.bures_wasserstein(b, b)) == pytest.approx(0.0, abs=1e-9)


def test_bures_distance_of_commuting_matrices_and_near_lost_rank() -> None:
    a, b = torch.tensor([4.0, 1.0, 1.0]).double(), torch.tensor([1.0, 9.0, 9.0]).double()
    found = losses.bures_wasserstein(torch.diag(a), torch.diag(b))
    assert float(found) == pytest.approx(float((a.sqrt() - b.sqrt()).square().sum()), rel=1e-12)

    def curvature(ridge: float) -> float:
        x = torch.tensor(1e-4, dtype=torch.float64, requires_grad=True)
        value = losses.bures_wasserstein(torch.diag(torch.stack([x, x * 0 + 1])), torch.eye(2).double(), ridge=ridge)
        (first,) = torch.autograd.grad(value, x, create_graph=True)
        return float(torch.autograd.grad(first, x)[0])

    assert curvature(0.0) == pytest.approx(0.5 * 1e-4**-1.5, rel=1e-6)  # d²(−2√x)/dx²
    assert curvature(0.1) < 1e-3 * curvature(0.0)


def test_bag_and_instance_losses_differ_by_the_variance() -> None:
    f, y = drawn(5, 4), drawn(5, seed=1)
    instance = (y[:, None] - f).square().mean()
    torch.testing.assert_close(losses.bag_square(f, y, rho=1.0), instance)
    torch.testing.assert_close(losses.bag_square(f, y), F.mse_loss(f.mean(1), y))


def test_label_proportions_are_unbiased_with_variance_growing_in_the_bag() -> None:
    generator = torch.Generator().manual_seed(0)
    prior, spread = 0.3, []
    for k in (1, 8):
        y = (torch.rand(40_000, k, generator=generator) < prior).double()
        f = (2 * y - 1) * 0.5 + drawn(40_000, k, seed=k)
        single = losses.easy_llp(f, y.mean(1), prior=prior, reduction="none")
        truth = F.binary_cross_entropy_with_logits(f, y)
        error = float(single.mean() - truth)
        assert abs(error) < 4 * float(single.std()) / 200
        spread.append(float(single.var()))
    assert spread[1] > 4 * spread[0] / 8
    one = drawn(6, 1)
    y = torch.tensor([1.0, 0, 1, 0, 0, 1]).double()
    torch.testing.assert_close(losses.easy_llp(one, y, prior=0.4), F.binary_cross_entropy_with_logits(one[:, 0], y))


def test_square_loss_from_draws_is_unbiased() -> None:
    p, q = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.2, 0.2, 0.6]).double()
    generator = torch.Generator().manual_seed(0)
    values = []
    for _ in range(400):
        x, y = (torch.multinomial(w, 20, replacement=True, generator=generator) for w in (p, q))
        values.append(float(losses.black_box_square(x, y)))
    found = torch.tensor(values)
    expected = float((p - q).square().sum() - q.square().sum())
    assert abs(float(found.mean()) - expected) < 4 * float(found.std()) / 20
    with pytest.raises(ValueError, match=r"Found 1\."):
        losses.black_box_square(torch.tensor([0]), torch.tensor([0]))


@pytest.mark.parametrize("sigma", [0.1, 3.0])
def test_two_score_targets_have_one_minimiser_and_opposite_variances(sigma: float) -> None:
    # x ~ N(0, 1): the score of y = x + σε is −y/(1 + σ²); the best slope of s(y) = a·y is −1/(1 + σ²) for both
    x, noise = drawn(400_000), drawn(400_000, seed=1)
    y = x + sigma * noise
    a = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    level = torch.full((400_000,), sigma, dtype=torch.float64)
    gradients = {}
    for name, value in (
        ("dsm", losses.denoising_score((a * y)[:, None], noise[:, None], level, reduction="none")),
        ("tsm", losses.target_score((a * y)[:, None], -x[:, None], reduction="none")),
    ):
        (first,) = torch.autograd.grad(value.mean(), a, create_graph=True)
        gradients[name] = -float(first.detach()) / float(y.square().mean())
        assert gradients[name] == pytest.approx(-1 / (1 + sigma**2), abs=0.02)
    residual = {"dsm": (-noise / sigma + y / (1 + sigma**2)).var(), "tsm": (-x + y / (1 + sigma**2)).var()}
    assert (float(residual["tsm"]) < float(residual["dsm"])) == (sigma < 1)


def test_likelihood_score_and_timestep_weights() -> None:
    noise, sigma = drawn(4, 3), torch.full((4,), 0.5, dtype=torch.float64)
    score, guide = drawn(4, 3, seed=1), drawn(4, 3, seed=2)
    expected = 0.5 * (guide + score + noise / 0.5).square().sum(1).mean()
    torch.testing.assert_close(losses.denoising_likelihood_score(guide, score, noise, sigma), expected)
    snr = torch.tensor([0.1, 1.0, 9.0])
    torch.testing.assert_close(losses.p2_weight(torch.ones(3), snr, gamma=0.0), torch.ones(3))
    torch.testing.assert_close(losses.p2_weight(torch.ones(3), snr), 1 / (1 + snr))


def test_adversarial_pairing_and_penalty() -> None:
    x = drawn(5, 2, 3).requires_grad_()
    w = drawn(2, 3, seed=1)
    assert float(losses.relativistic_pairing(torch.ones(3), torch.ones(3))) == pytest.approx(math.log(2))
    values = (x * w).sum((1, 2))
    expected = 0.5 * 2.0 * w.square().sum()
    torch.testing.assert_close(losses.zero_centred_penalty(values, x, gamma=2.0).detach(), expected)


H, Z, Y = (
    drawn(3, 20, 2),
    drawn(3, 20, 4, seed=1),
    torch.randint(4, (3, 20), generator=torch.Generator().manual_seed(0)),
)


def test_equal_environments_cost_nothing() -> None:
    h, z, y = H[:1].expand(3, -1, -1), Z[:1].expand(3, -1, -1), Y[:1].expand(3, -1)
    assert float(losses.fishr(h, z, y)) == pytest.approx(0.0, abs=1e-30)
    assert float(losses.hessian_align(h, z, y, alpha=1.0, beta=1.0)) == pytest.approx(0.0, abs=1e-30)
    assert float(losses.v_rex(torch.full((3,), 0.7), beta=100.0)) == pytest.approx(0.7)


def test_irm_penalty_is_the_squared_derivative_in_a_scale() -> None:
    w = torch.ones((), dtype=torch.float64, requires_grad=True)
    slopes = [torch.autograd.grad(F.cross_entropy(w * Z[e], Y[e]), w)[0] for e in range(3)]
    torch.testing.assert_close(losses.irm_v1(Z, Y), torch.stack(slopes).square().mean())
    halves = [torch.autograd.grad(F.cross_entropy(w * Z[e, s::2], Y[e, s::2]), w)[0] for e in range(3) for s in (0, 1)]
    expected = torch.stack([halves[2 * e] * halves[2 * e + 1] for e in range(3)]).mean()
    torch.testing.assert_close(losses.irm_v1(Z, Y, unbiased=True), expected)


def test_the_invariant_feature_has_no_penalty_and_the_spurious_one_has() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = lambda: torch.randn(2, 50_000, generator=generator, dtype=torch.float64)  # noqa: E731
    x1 = noise()
    y = x1 + noise()
    x2 = y + torch.tensor([[0.1], [2.0]]).double() * noise()  # noise depends on the environment
    cause = losses.irm_v2(x1[..., None], torch.ones(1).double(), y)
    best = (x2 * y).mean() / (x2 * x2).mean()  # the pooled regression on the effect
    effect = losses.irm_v2(x2[..., None], best[None], y)
    assert float(cause) < 1e-3
    assert float(effect) > 0.02


def test_excess_risk_penalty_equals_the_fall_and_bounds_the_plain_gradient() -> None:
    phi, w, y = drawn(1, 30, 3), drawn(3, seed=2), drawn(1, 30, seed=3)
    penalty = losses.irm_v2(phi, w, y, ridge=0.0)
    best = torch.linalg.lstsq(phi[0], y[0][:, None]).solution[:, 0]
    risk = lambda v: (phi[0] @ v - y[0]).square().mean()  # noqa: E731
    torch.testing.assert_close(penalty, risk(w) - risk(best))
    gradient = 2 * phi[0].T @ (phi[0] @ w - y[0]) / 30
    largest = torch.linalg.eigvalsh(phi[0].T @ phi[0] / 30).max()
    assert float(penalty) >= float(gradient.square().sum() / (4 * largest)) - 1e-12


def test_a_feature_scaled_down_hides_from_the_plain_gradient_alone() -> None:
    phi, w, y = drawn(1, 200, 2), torch.tensor([1.0, 1.0]).double(), drawn(1, 200, seed=3)
    scale = torch.tensor([1.0, 1e-4]).double()
    hidden = losses.irm_v2(phi * scale, w / scale, y, ridge=1e-14)
    torch.testing.assert_close(hidden, losses.irm_v2(phi, w, y, ridge=1e-14), rtol=1e-4, atol=0)
    plain = 2 * (phi[0] * scale).T @ (phi[0] @ w - y[0]) / 200
    assert abs(float(plain[1])) < 1e-3


def test_risk_extrapolation_equalises_risks() -> None:
    # two environments that want w = 1 and w = 3 with unequal noise floors: a large β makes the risks meet
    w = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([w], max_iter=200, line_search_fn="strong_wolfe")

    def risks() -> Tensor:
        return torch.stack([(w - 1).square() + 0.5, (w - 3).square()])

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = losses.v_rex(risks(), beta=1e4)
        value.backward()
        return value

    optimizer.step(closure)
    final = risks().detach()
    assert float(final[0] - final[1]) == pytest.approx(0.0, abs=1e-3)


def test_gradient_variances_and_hessian_products_equal_autograd() -> None:
    head = torch.cat([drawn(4, 2, seed=5).flatten(), drawn(4, seed=6)]).requires_grad_()

    def logits(parameters: Tensor, h: Tensor) -> Tensor:
        return h @ parameters[:8].reshape(4, 2).T + parameters[8:]

    z = torch.stack([logits(head, H[e]) for e in range(3)]).detach()
    per_sample = torch.func.vmap(
        torch.func.grad(lambda p, h, y: F.cross_entropy(logits(p, h), y)), in_dims=(None, 0, 0)
    )
    direct = torch.stack([per_sample(head.detach(), H[e], Y[e]) for e in range(3)])
    torch.testing.assert_close(losses.head_gradients(H, z, Y), direct)
    variances = direct.var(1, correction=0)
    torch.testing.assert_close(losses.fishr(H, z, Y), (variances - variances.mean(0)).square().sum(1).mean())
    vectors = drawn(3, 12, seed=7)
    for e in range(3):
        hessian = torch.autograd.functional.hessian(
            lambda p, e=e: F.cross_entropy(logits(p, H[e]), Y[e]), head.detach()
        )
        torch.testing.assert_close(losses.head_hvp(H, z, vectors)[e], hessian @ vectors[e])
    gradient = lambda p, e: torch.autograd.grad(F.cross_entropy(logits(p, H[e]), Y[e]), p, create_graph=True)[0]  # noqa: E731
    each = torch.stack([gradient(head, e) for e in range(3)])
    products = [torch.autograd.grad(each[e] @ each[e].detach(), head, retain_graph=True)[0] for e in range(3)]
    pooled = each.mean(0)
    pooled_product = torch.autograd.grad(pooled @ pooled.detach(), head, retain_graph=True)[0]
    curved = sum((product - pooled_product).square().sum() for product in products) / 3
    flat = (each - pooled).square().sum(1).mean().detach()
    torch.testing.assert_close(losses.hessian_align(H, z, Y, alpha=2.0, beta=3.0), 2 * curved + 3 * flat)


def test_domains_are_aligned_where_their_features_are_alike() -> None:
    x, y = (torch.randn(n, 2, generator=torch.Generator().manual_seed(n), dtype=torch.float64) for n in (6, 5))
    pairs = losses.sinkhorn_divergence(x, y, blur=0.5) * 2
    torch.testing.assert_close(losses.domain_alignment([x, y, x], blur=0.5), pairs, atol=1e-9, rtol=1e-9)
    assert float(losses.domain_alignment([x, x.flip(0)], blur=0.5)) == pytest.approx(0.0, abs=1e-9)
