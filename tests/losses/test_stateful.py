"""Laws of losses that remember, and of head curvature compared between environments."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from theodolite import losses


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_first_visit_is_the_stateless_loss_with_its_gradients() -> None:
    scores, positives, index = (
        normal(3, 6).requires_grad_(),
        normal(3, seed=1).requires_grad_(),
        torch.tensor([4, 0, 2]),
    )
    contrast = losses.IndividualTemperatures(5, rho=0.3, first=0.7).double()
    value = contrast(scores, positives, index)
    tau = torch.full((3,), 0.7, dtype=torch.float64, requires_grad=True)
    expected = losses.isogclr(scores, positives, tau, rho=0.3)
    torch.testing.assert_close(value, expected)
    found = torch.autograd.grad(value, (scores, positives, contrast.temperatures))
    wanted = torch.autograd.grad(expected, (scores, positives, tau))
    torch.testing.assert_close(found[:2], wanted[:2])
    torch.testing.assert_close(found[2][index], wanted[2])
    assert float(found[2][[1, 3]].abs().max()) == 0


def test_running_mean_follows_the_batches_in_place_of_their_own() -> None:
    contrast = losses.IndividualTemperatures(1, rho=0.0, first=1.0, gamma=0.25).double()
    zero, index = torch.zeros(1, dtype=torch.float64), torch.tensor([0])
    contrast(torch.full((1, 4), math.log(2.0), dtype=torch.float64), zero, index)  # mean of e^h is 2
    scores = torch.full((1, 4), math.log(6.0), dtype=torch.float64, requires_grad=True)
    value = contrast(scores, zero, index)  # 0.75·2 + 0.25·6 = 3
    assert value.item() == pytest.approx(math.log(3.0))
    (gradient,) = torch.autograd.grad(value, scores)
    torch.testing.assert_close(gradient, torch.full((1, 4), 6 / 3 / 4, dtype=torch.float64))
    contrast.eval()
    contrast(scores, zero, index)
    assert contrast.log_means.item() == pytest.approx(math.log(3.0))


def test_temperatures_stay_above_their_floor_and_large_scores_are_finite() -> None:
    contrast = losses.IndividualTemperatures(2, least=0.05)
    with torch.no_grad():
        contrast.temperatures.fill_(-1.0)
    value = contrast(torch.full((2, 3), 100.0), torch.full((2,), -100.0), torch.tensor([0, 1]))
    value.backward()
    assert bool(value.isfinite())
    assert contrast.temperatures.grad is not None
    assert bool(contrast.temperatures.grad.isfinite().all())
    assert contrast.temperatures.tolist() == pytest.approx([0.05, 0.05])


def test_temperature_learnt_over_small_batches_is_that_of_all_negatives() -> None:
    """The running mean makes single negatives enough: the root of ∂F/∂τ is found from batches of 8 of 256."""
    h = 0.3 * normal(256)
    contrast = losses.IndividualTemperatures(1, rho=0.5, first=0.5, gamma=0.05).double()
    optimizer = torch.optim.SGD(contrast.parameters(), lr=0.02)
    generator, trace = torch.Generator().manual_seed(0), []
    for _ in range(1500):
        optimizer.zero_grad()
        chosen = torch.randint(256, (8,), generator=generator)
        contrast(h[chosen][None], torch.zeros(1, dtype=torch.float64), torch.tensor([0])).backward()
        optimizer.step()
        trace.append(contrast.temperatures.item())
    taus = torch.linspace(0.06, 1.0, 2000, dtype=torch.float64)
    exact = taus * (torch.logsumexp(h[None] / taus[:, None], 1) - math.log(256) + 0.5)
    assert sum(trace[700:]) / 800 == pytest.approx(float(taus[exact.argmin()]), rel=0.1)


def environments(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    h, z = (torch.randn(3, 8, k, generator=generator, dtype=torch.float64) for k in (2, 3))
    return h, z, torch.randint(3, (3, 8), generator=generator)


def test_smoothed_variances_start_as_plain_ones_and_remember() -> None:
    first, second = environments(), environments(1)
    smoothed = losses.SmoothedFishr(decay=0.8)
    torch.testing.assert_close(smoothed(*first), losses.fishr(*first))
    variances = [losses.head_gradients(*data).var(1, correction=0) for data in (first, second)]
    mixed = 0.8 * variances[0] + variances[1]
    torch.testing.assert_close(smoothed(*second), (mixed - mixed.mean(0)).square().sum(1).mean())
    same = tuple(part[:1].expand(3, *part.shape[1:]) for part in first)
    fresh = losses.SmoothedFishr()
    assert float(fresh(*same)) == pytest.approx(0.0, abs=1e-24)
    assert float(fresh(*same)) == pytest.approx(0.0, abs=1e-20)


def test_smoothing_keeps_the_size_of_the_gradient() -> None:
    h, z, y = environments()
    z = z.requires_grad_()
    smoothed = losses.SmoothedFishr(decay=0.95)
    value = smoothed(h, z, y)
    torch.testing.assert_close(torch.autograd.grad(value, z)[0], torch.autograd.grad(losses.fishr(h, z, y), z)[0])


def test_penalties_come_in_late_and_do_not_scale_the_step() -> None:
    anneal = losses.AnnealedPenalty(weight=50.0, steps=10)
    risk, penalty = torch.tensor(2.0), torch.tensor(0.5)
    assert float(anneal(risk, penalty, step=9)) == 2.5
    assert float(anneal(risk, penalty, step=10)) == pytest.approx((2 + 25) / 50)
    assert [step for step in range(20) if anneal.resets(step)] == [10]


def head_hessians(h: Tensor, z: Tensor) -> Tensor:
    n = z.shape[2] * (h.shape[2] + 1)
    basis = torch.eye(n, dtype=torch.float64)
    return torch.stack([losses.head_hvp(h, z, v.expand(len(h), -1)) for v in basis], 2)


def test_hutchinson_diagonal_is_unbiased() -> None:
    h, z, _ = environments()
    dense = head_hessians(h, z)
    probes = 1000
    found = losses.hutchinson_diagonal(h, z, probes=probes)
    exact = torch.diagonal(dense, dim1=1, dim2=2)
    spread = (2 * (dense.square().sum(2) - exact.square()) / probes).sqrt()  # an upper bound of the standard error
    assert bool(((found - exact).abs() < 4.5 * spread).all())


def test_hessian_transfer_is_the_largest_norm_of_a_difference() -> None:
    h, z, y = environments()
    dense = head_hessians(h, z)
    norms = [float(torch.linalg.matrix_norm(dense[i] - dense[j], 2)) for i in range(3) for j in range(i)]
    assert float(losses.hessian_transfer(h, z, steps=500)) == pytest.approx(max(norms), rel=1e-4)
    same = (h[:1].expand(3, -1, -1), z[:1].expand(3, -1, -1), y[:1].expand(3, -1))
    assert float(losses.hessian_transfer(*same[:2])) == 0
    assert float(losses.hessian_transfer(h[:1], z[:1])) == 0
    assert float(losses.hutchinson_align(*same)) < 1e-30
    assert float(losses.hutchinson_align(h, z, y)) > 0
