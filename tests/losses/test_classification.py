"""Laws of single classification losses: limits, invariances, minima, identities of their papers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from theodolite import losses

Y = torch.tensor([0, 1, 2, 3, 1, 0])


def logits(seed: int = 0, classes: int = 4, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(6, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def least_eigenvalue(name: str, **options: object) -> float:
    found = math.inf
    for seed in range(20):
        hessian = losses.LOSSES[name].hessian
        assert hessian is not None
        found = min(found, float(torch.linalg.eigvalsh(hessian(logits(seed), Y, **options).dense()).min()))
    return found


def test_z_loss_is_shift_and_scale_invariant_and_bounded_in_its_logit() -> None:
    z = logits().requires_grad_()
    torch.testing.assert_close(losses.z_loss_spherical(3.7 * z + 5.0, Y), losses.z_loss_spherical(z, Y))
    (gradient,) = torch.autograd.grad(losses.z_loss_spherical(z, Y, reduction="sum"), z)
    torch.testing.assert_close(gradient.sum(1), torch.zeros(6).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close((gradient * z).sum(1), torch.zeros(6).double(), atol=1e-12, rtol=0)
    one_hot = torch.tensor([[1.0, 0.0, 0.0, 0.0]]).double()  # ẑ_y = √(C − 1), its largest value
    expected = math.log1p(math.exp(2.0 - math.sqrt(3.0)))
    assert float(losses.z_loss_spherical(one_hot, Y[:1])) == pytest.approx(expected, rel=1e-12)


def test_z_loss_depends_on_two_moments_and_the_true_logit() -> None:
    z = logits()
    moments = losses.z_loss_from_moments(z.sum(1), z.square().sum(1), z.gather(1, Y[:, None])[:, 0], 4, a=0.5)
    torch.testing.assert_close(moments, losses.z_loss_spherical(z, Y, a=0.5, reduction="none"))


def test_the_two_losses_called_z_loss_differ() -> None:
    z = logits()
    shifted = losses.z_loss_spherical(z + 3.0, Y) - losses.z_loss_spherical(z, Y)
    assert abs(float(shifted)) < 1e-12
    lse = torch.logsumexp(z, 1)
    change = losses.aux_log_z2(z + 3.0, Y, alpha=1.0, reduction="none") - lse**2
    torch.testing.assert_close(change, (lse + 3.0) ** 2 - lse**2)


def test_log_z_penalty_is_least_over_shifts_where_log_z_vanishes() -> None:
    z = logits()
    at_zero = z - torch.logsumexp(z, 1, keepdim=True)
    torch.testing.assert_close(losses.aux_log_z2(at_zero, Y), torch.zeros(()).double(), atol=1e-12, rtol=0)
    assert least_eigenvalue("aux_log_z2") < 0


def test_taylor_softmax_approaches_softmax_and_refuses_odd_orders() -> None:
    z = logits(scale=1.0).clamp(-2.9, 2.9)
    torch.testing.assert_close(losses.taylor_softmax_ce(z, Y, order=12), F.cross_entropy(z, Y), atol=2e-3, rtol=0)
    with pytest.raises(ValueError, match=r"even order.*Found order = 3"):
        losses.taylor_softmax_ce(z, Y, order=3)
    assert abs(float(losses.taylor_softmax_ce(z + 1, Y) - losses.taylor_softmax_ce(z, Y))) > 1e-2


def test_spherical_softmax_is_even_and_scale_invariant() -> None:
    z = logits()
    flipped = z * torch.tensor([1.0, -1.0, 1.0, -1.0]).double()
    torch.testing.assert_close(losses.spherical_softmax_ce(flipped, Y), losses.spherical_softmax_ce(z, Y))
    scaled = losses.spherical_softmax_ce(7 * z, Y, eps=0.0)
    torch.testing.assert_close(scaled, losses.spherical_softmax_ce(z, Y, eps=0.0))


def test_sparsemax_is_the_projection_onto_the_simplex() -> None:
    z = logits()
    p = losses.sparsemax(z)
    torch.testing.assert_close(p.sum(1), torch.ones(6).double())
    # the variational inequality of the projection: (z − p)·(v − p) ≤ 0 at every vertex v
    gap = (z - p)[:, None] * (torch.eye(4).double() - p[:, None])
    assert float(gap.sum(-1).max()) <= 1e-12


@settings(deadline=None)
@given(st.floats(-3, 3), st.floats(-5, 5))
def test_sparsemax_loss_in_two_classes(t: float, offset: float) -> None:
    z = torch.tensor([[t + offset, offset]], dtype=torch.float64)
    expected = 0.0 if t >= 1 else -t if t <= -1 else (1 - t) ** 2 / 4
    assert float(losses.sparsemax_loss(z, Y[:1])) == pytest.approx(expected, abs=1e-12)


def test_sparsemax_loss_has_its_gradient_at_the_edge_of_the_support() -> None:
    """A lead of exactly 1 is right: the gradient vanishes, however the other logits tie."""
    for rest in ([0.0, 0.0, 0.0], [0.0, -1.0, -2.0]):
        z = torch.tensor([[1.0, *rest]], dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(losses.sparsemax_loss(z, torch.tensor([0])), z)
        torch.testing.assert_close(gradient, losses.sparsemax_loss_grad(z.detach(), torch.tensor([0])))
        assert float(gradient.abs().max()) == 0


def test_sparsemax_loss_of_soft_targets_vanishes_at_its_own_prediction() -> None:
    z = logits()
    torch.testing.assert_close(
        losses.sparsemax_loss(z, losses.sparsemax(z)), torch.zeros(()).double(), atol=1e-12, rtol=0
    )
    hard = F.one_hot(Y, 4).double()
    torch.testing.assert_close(losses.sparsemax_loss(z, hard), losses.sparsemax_loss(z, Y))
    assert float(losses.sparsemax_loss(z, Y, reduction="none").min()) >= 0


def test_sparse_softmax_lies_between_zero_and_cross_entropy() -> None:
    z = logits(classes=8).requires_grad_()
    torch.testing.assert_close(losses.sparse_softmax_ce(z, Y, k=20), F.cross_entropy(z, Y))
    single = losses.sparse_softmax_ce(z, Y, k=3, reduction="none")
    assert float(single.detach().min()) >= 0
    assert bool((single <= F.cross_entropy(z, Y, reduction="none") + 1e-12).all())
    (gradient,) = torch.autograd.grad(single.sum(), z)
    outside = torch.ones_like(z, dtype=torch.bool).scatter(1, z.topk(3, dim=1).indices, False)
    outside = outside.scatter(1, Y[:, None], False)
    assert bool((gradient[outside] == 0).all())


def test_poly_completes_and_removes_the_series_of_cross_entropy() -> None:
    z = logits(scale=0.5)
    q = 1 - torch.softmax(z, 1).gather(1, Y[:, None])[:, 0]
    torch.testing.assert_close(losses.poly(z, Y, coefficients=(0.0,)), F.cross_entropy(z, Y))
    without = losses.poly(z, Y, coefficients=(-1.0,), reduction="none")
    series = torch.stack([q**j / j for j in range(2, 2000)]).sum(0)
    torch.testing.assert_close(without, series)
    torch.testing.assert_close(losses.poly_focal(z, Y, epsilon=0.0), losses.focal(z, Y))


def test_squentropy_formula_strict_convexity_and_shift() -> None:
    z = logits(classes=2)
    y = Y % 2
    expected = F.cross_entropy(z, y, reduction="none") + z.gather(1, 1 - y[:, None])[:, 0] ** 2
    torch.testing.assert_close(losses.squentropy(z, y, reduction="none"), expected)
    assert least_eigenvalue("squentropy") > 0
    assert abs(float(losses.squentropy(z + 1, y) - losses.squentropy(z, y))) > 1e-2


def test_focal_reduces_to_cross_entropy_and_is_not_convex() -> None:
    z = logits()
    torch.testing.assert_close(losses.focal(z, Y, gamma=0.0), F.cross_entropy(z, Y))
    assert least_eigenvalue("focal", gamma=2.0) < -1e-3


def test_dual_focal_takes_the_best_class_below_the_true_one() -> None:
    p = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
    for label, below in ((0, 0.3), (1, 0.2), (2, 0.0)):
        value = losses.dual_focal(p.log(), torch.tensor([label]), gamma=5.0)
        true = float(p[0, label])
        assert float(value) == pytest.approx(-((1 - true + below) ** 5) * math.log(true), rel=1e-12)
    z = logits()
    gap = losses.dual_focal(z, Y, reduction="none") - losses.focal(z, Y, gamma=5.0, reduction="none")
    assert float(gap.min()) >= 0


def test_comp_sum_special_cases_continuity_and_convexity() -> None:
    z = logits()
    p = torch.softmax(z, 1).gather(1, Y[:, None])[:, 0]
    others = torch.exp(z - z.gather(1, Y[:, None])).sum(1) - 1
    torch.testing.assert_close(losses.comp_sum(z, Y, tau=0.0, reduction="none"), others)
    torch.testing.assert_close(losses.comp_sum(z, Y, tau=1.0), F.cross_entropy(z, Y))
    torch.testing.assert_close(losses.comp_sum(z, Y, tau=1.7), losses.gce(z, Y, q=0.7))
    torch.testing.assert_close(losses.comp_sum(z, Y, tau=2.0, reduction="none"), 1 - p)
    for tau in (1 - 1e-7, 1 + 1e-7):
        torch.testing.assert_close(losses.comp_sum(z, Y, tau=tau), F.cross_entropy(z, Y), atol=1e-5, rtol=0)
    assert least_eigenvalue("comp_sum", tau=0.5) > -1e-12
    assert least_eigenvalue("comp_sum", tau=1.0) > -1e-12
    assert least_eigenvalue("comp_sum", tau=1.5) < -1e-3


@pytest.mark.parametrize(("name", "constant"), [("mae", 6.0), ("nce", 1.0), ("rce", 12 * math.log(10))])
def test_symmetric_losses_sum_to_a_constant_over_labels(name: str, constant: float) -> None:
    z = logits()
    total = sum(losses.LOSSES[name].function(z, torch.full((6,), k), reduction="none") for k in range(4))
    torch.testing.assert_close(total, torch.full((6,), constant).double())


def test_robust_losses_reach_their_limits() -> None:
    z = logits()
    torch.testing.assert_close(losses.gce(z, Y, q=1e-6), F.cross_entropy(z, Y), atol=1e-4, rtol=0)
    torch.testing.assert_close(losses.js(z, Y, label_share=1e-6), F.cross_entropy(z, Y), atol=1e-4, rtol=0)
    torch.testing.assert_close(losses.sce(z, Y, alpha=1.0, beta=0.0), F.cross_entropy(z, Y))
    torch.testing.assert_close(losses.agce(z, Y, q=1.0), losses.aul(z, Y, q=1.0))
    torch.testing.assert_close(losses.agce(z, Y, q=1.0), losses.mae(z, Y) / 2)


def test_jensen_shannon_equals_its_definition() -> None:
    z, share = logits(), 0.3
    p, e = torch.softmax(z, 1), F.one_hot(Y, 4).double()
    mixed = share * e + (1 - share) * p
    entropy = lambda q: -torch.special.xlogy(q, q).sum(1)  # noqa: E731
    expected = (entropy(mixed) - (1 - share) * entropy(p)) / (-(1 - share) * math.log(1 - share))
    torch.testing.assert_close(losses.js(z, Y, label_share=share, reduction="none"), expected)


def test_ldr_limits_and_fenchel_identity() -> None:
    z = logits()
    torch.testing.assert_close(losses.ldr_kl(z, Y), F.cross_entropy(z, Y) - math.log(4))
    hinge = losses.crammer_singer(z, Y, margin=0.0)
    torch.testing.assert_close(losses.ldr_kl(z, Y, lam=1e-4), hinge, atol=1e-3, rtol=0)
    gaps = z - z.gather(1, Y[:, None])
    torch.testing.assert_close(losses.ldr_kl(z, Y, lam=1e5), gaps.mean(), atol=1e-3, rtol=0)
    lam = 0.7
    q = torch.softmax(gaps / lam, 1)
    dual = (q * gaps).sum(1) - lam * (q * (4 * q).log()).sum(1)
    torch.testing.assert_close(losses.ldr_kl(z, Y, lam=lam, reduction="none"), dual)
    for seed in range(5):
        other = torch.softmax(logits(seed + 1), 1)
        assert bool(((other * gaps).sum(1) - lam * (other * (4 * other).log()).sum(1) <= dual + 1e-12).all())
    scaled = losses.ldr_kl(5 * z, Y, normalize=True)
    torch.testing.assert_close(scaled, losses.ldr_kl(z, Y, normalize=True))


def test_adaptive_ldr_gives_confident_examples_a_small_lambda() -> None:
    module = losses.ALDRKLLoss(10, lam0=1.0, alpha=2.0)
    z = torch.tensor([[9.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    index = torch.tensor([7, 2])
    for _ in range(3):
        module(z, torch.tensor([1, 0]), index)
    assert 0.5 <= float(module.lam[7]) < float(module.lam[2]) <= 1.0
    assert bool((module.lam[torch.tensor([0, 1, 3])] == 1).all())
    module.eval()
    before = module.lam.clone()
    module(z, torch.tensor([0, 0]), index)
    assert torch.equal(before, module.lam)


def test_pass_at_n_factor_and_limits() -> None:
    z = logits()
    torch.testing.assert_close(losses.dco(z, Y, samples=1), F.cross_entropy(z, Y))
    u = torch.linspace(0.01, 30, 50, dtype=torch.float64)
    factors = []
    for samples in (1, 4, 16, 10**6):
        v = (-u).clone().requires_grad_()
        (slope,) = torch.autograd.grad(losses.dco_sequence(v, samples=samples, reduction="sum"), v)
        factors.append(-slope)
    stacked = torch.stack(factors)
    assert float(stacked.min()) >= 0
    assert float(stacked.max()) <= 1 + 1e-12
    assert bool((stacked.diff(dim=0) <= 1e-12).all())  # falls with N
    assert bool((stacked.diff(dim=1) >= -1e-12).all())  # grows as p falls
    exact = -torch.log(-torch.expm1(16 * torch.log1p(-torch.exp(-u[:20]))))
    torch.testing.assert_close(losses.dco_sequence(-u[:20], samples=16, reduction="none"), exact)
    # 60-digit arithmetic at u = 12.01
    for samples, expected in ((10**5, 0.78585515571197625), (10**7, 3.8146476511873199e-27)):
        value = losses.dco_sequence(torch.tensor([-12.01], dtype=torch.float64), samples=samples)
        assert float(value) == pytest.approx(expected, rel=1e-12, abs=0.0)


def test_harmonic_is_invariant_to_motion_and_scale_and_zero_at_the_prototype() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    w = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    moved = losses.harmonic(2.5 * x @ turn + 1.0, 2.5 * w @ turn + 1.0, Y)
    torch.testing.assert_close(moved, losses.harmonic(x, w, Y))
    assert float(losses.harmonic(w, w, torch.arange(4))) < 1e-12
    d = torch.cdist(x, w)
    expected = 2.0 * d.gather(1, Y[:, None])[:, 0].log() + (d**-2).sum(1).log()
    torch.testing.assert_close(losses.harmonic(x, w, Y, exponent=2.0, reduction="none"), expected)


def test_random_ensembles_draw_calibrated_convex_losses() -> None:
    module = losses.EnsLoss(period=1, seed=3)
    margins = torch.linspace(-4, 4, 101).double()
    for _ in range(5):
        module(margins, torch.ones(101).double())
        slopes = module.slopes(margins)
        assert float(slopes.max()) < 0
        assert bool((slopes.diff() >= 0).all())
    scores = torch.tensor([0.3, -2.0]).double().requires_grad_()
    signs = torch.tensor([1.0, -1.0]).double()
    first, second = losses.EnsLoss(seed=5), losses.EnsLoss(seed=5)
    torch.testing.assert_close(first(scores, signs), second(scores, signs))
    (gradient,) = torch.autograd.grad(first(scores, signs), scores)
    assert float(gradient[0]) < 0 < float(gradient[1])


def test_random_ensembles_find_the_bayes_sign() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 2, generator=generator)
    signs = torch.sign(x[:, 0] + 0.5 * torch.randn(2000, generator=generator))
    w = torch.zeros(2, requires_grad=True)
    module, optimizer = losses.EnsLoss(seed=0), torch.optim.SGD([w], lr=0.5)
    for _ in range(150):
        optimizer.zero_grad()
        module(x @ w, signs).backward()
        optimizer.step()
    found = w.detach()
    assert float(found[0]) > 5 * abs(float(found[1]))


def test_binary_hinges() -> None:
    scores, signs = torch.tensor([0.5, 2.0, -1.0]), torch.tensor([1.0, 1.0, 1.0])
    torch.testing.assert_close(losses.hinge(scores, signs, reduction="none"), torch.tensor([0.5, 0.0, 2.0]))
    torch.testing.assert_close(losses.hinge(scores, signs, power=2.0, reduction="sum"), torch.tensor(4.25))
