"""Laws of losses on preferred and rejected answers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from theodolite import losses


def pairs(n: int = 6) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(-5 * torch.rand(n, generator=generator, dtype=torch.float64) - 0.1 for _ in range(4))


def test_dpo_at_zero_margin_and_under_common_shifts() -> None:
    w, l, rw, rl = pairs()  # noqa: E741
    zero = torch.zeros(3, dtype=torch.float64)
    assert float(losses.dpo(zero, zero, zero, zero)) == pytest.approx(math.log(2), rel=1e-12)
    torch.testing.assert_close(losses.dpo(w + 1.5, l, rw + 1.5, rl), losses.dpo(w, l, rw, rl))
    ones = torch.ones(6)
    constant = losses.dpo(w, l, zero.new_full((6,), -3.0), zero.new_full((6,), -3.0))
    torch.testing.assert_close(constant, losses.cpo(w, l, ones, ones, alpha=0.0))


def test_dpo_slope_in_the_margin() -> None:
    w, l, rw, rl = pairs()  # noqa: E741
    w.requires_grad_()
    (slope,) = torch.autograd.grad(losses.dpo(w, l, rw, rl, beta=0.5, label_smoothing=0.1, reduction="sum"), w)
    delta = (w - rw - l + rl).detach()
    torch.testing.assert_close(slope, -0.5 * (torch.sigmoid(-0.5 * delta) - 0.1))


def test_robust_dpo_is_unbiased_under_flips() -> None:
    w, l, rw, rl = pairs()  # noqa: E741
    rate = 0.3
    right = losses.robust_dpo(w, l, rw, rl, flip_rate=rate, reduction="none")
    wrong = losses.robust_dpo(l, w, rl, rw, flip_rate=rate, reduction="none")
    torch.testing.assert_close((1 - rate) * right + rate * wrong, losses.dpo(w, l, rw, rl, reduction="none"))
    with pytest.raises(ValueError, match=r"Found flip_rate = 0\.5"):
        losses.robust_dpo(w, l, rw, rl, flip_rate=0.5)


def test_ipo_stops_at_a_finite_margin_and_averages_are_another_loss() -> None:
    zero = torch.zeros(1, dtype=torch.float64)
    at = torch.tensor([5.0], dtype=torch.float64)  # 1/(2β) for β = 0.1
    assert float(losses.ipo(at, zero, zero, zero, beta=0.1)) == 0
    assert float(losses.ipo(2 * at, zero, zero, zero, beta=0.1)) > 0
    w, l, rw, rl = pairs()  # noqa: E741
    n = torch.full((6,), 8.0)
    summed = losses.ipo(w, l, rw, rl, beta=0.1, reduction="none")
    averaged = losses.ipo(w, l, rw, rl, beta=0.8, chosen_length=n, rejected_length=n, reduction="none")
    torch.testing.assert_close(averaged, summed / 64)  # equal lengths: β larger by the length, values by its square
    same_beta = losses.ipo(w, l, rw, rl, beta=0.1, chosen_length=n, rejected_length=n, reduction="none")
    assert not torch.allclose(same_beta, summed)


def test_rpo_adds_the_likelihood() -> None:
    w, l, rw, rl = pairs()  # noqa: E741
    gap = losses.rpo(w, l, rw, rl, beta=0.2, eta=0.5, reduction="none") - losses.dpo(
        w, l, rw, rl, beta=0.2, reduction="none"
    )
    torch.testing.assert_close(gap, -0.1 * w)


def test_losses_without_reference_in_probabilities() -> None:
    """Each loss −log σ(log a/b) is −log a/(a + b), with a and b products of answer probabilities."""
    w, l, _, _ = pairs()  # noqa: E741
    ones = torch.ones(6, dtype=torch.float64)
    p, q = w.exp(), l.exp()
    torch.testing.assert_close(losses.cpo(w, l, ones, ones, beta=1.0, alpha=0.0), -torch.log(p / (p + q)).mean())
    up, down = p * (1 - q), q * (1 - p)
    expected = -w.mean() - torch.log(up / (up + down)).mean()
    torch.testing.assert_close(losses.orpo(w, l, ones, ones, lam=1.0), expected)
    lengths = torch.tensor([2, 3, 4, 1, 2, 5])
    margin = 2 * (w / lengths - l) - 0.5
    torch.testing.assert_close(losses.simpo(w, l, lengths, ones, gamma=0.5), torch.log1p(torch.exp(-margin)).mean())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_orpo_is_finite_for_a_certain_answer(dtype: torch.dtype) -> None:
    w = torch.tensor([0.0, -1e-9, -1e4], dtype=dtype, requires_grad=True)
    l = torch.tensor([-1e4, 0.0, 0.0], dtype=dtype, requires_grad=True)  # noqa: E741
    value = losses.orpo(w, l, torch.ones(3, dtype=dtype), torch.ones(3, dtype=dtype))
    gradients = torch.autograd.grad(value, (w, l))
    assert bool(value.isfinite())
    assert all(bool(g.isfinite().all()) for g in gradients)


def test_sppo_target_is_linear_in_the_win_rate() -> None:
    before = torch.tensor([-3.0, -2.0, -4.0])
    rate = torch.tensor([0.9, 0.5, 0.2])
    assert float(losses.sppo(before + 10 * (rate - 0.5), before, rate, eta=10.0)) == pytest.approx(0.0, abs=1e-10)


def test_latent_preference_slope_and_fixed_point() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = 2 * torch.randn(
        20_000, generator=generator, dtype=torch.float64
    )  # calibrated: P(first is better) = σ(truth)
    better = torch.rand(20_000, generator=generator) < torch.sigmoid(truth)
    flipped = torch.rand(20_000, generator=generator) < 0.2
    margin = torch.where(better ^ flipped, truth, -truth).requires_grad_()
    module = losses.LatentPreferenceLoss(share=0.95, reduction="sum")
    for _ in range(200):
        value = module(margin)
    assert float(module.share) == pytest.approx(0.8, abs=0.02)
    (slope,) = torch.autograd.grad(value, margin)
    s = torch.sigmoid(margin.detach())
    share = float(module.share)
    weight = share * s / (share * s + (1 - share) * (1 - s))
    torch.testing.assert_close(slope, -(weight - s), atol=1e-4, rtol=0)
    before = float(module.share)
    module.eval()(margin + 3.0)
    assert float(module.share) == before


def test_regularised_self_play_estimates_both_divergences_without_bias() -> None:
    """Enumerated over five answers: expectations under the drawing policy are the divergences, with their gradients."""
    generator = torch.Generator().manual_seed(0)
    ours, before, reference = (torch.randn(5, generator=generator, dtype=torch.float64) for _ in range(3))
    ours.requires_grad_()
    log_p, log_t, log_q = (torch.log_softmax(x, 0) for x in (ours, before, reference))
    half = torch.full((5,), 0.5, dtype=torch.float64)

    def expected(**weights: float) -> Tensor:
        single = losses.rspo(log_p, log_t, log_q, half, eta=1.0, reduction="none", **weights)
        return (log_t.exp() * single).sum()

    plain = expected(forward=0.0, reverse=0.0)
    played = (log_t.exp() * losses.sppo(log_p, log_t, half, eta=1.0, reduction="none")).sum()
    torch.testing.assert_close(plain, played)
    for found, divergence in (
        (expected(forward=1.0, reverse=0.0) - plain, (log_q.exp() * (log_q - log_p)).sum()),
        (expected(forward=0.0, reverse=1.0) - plain, (log_p.exp() * (log_p - log_q)).sum()),
    ):
        torch.testing.assert_close(found, divergence)
        pair = [torch.autograd.grad(value, ours, retain_graph=True)[0] for value in (found, divergence)]
        torch.testing.assert_close(*pair)


def test_preference_losses_are_one_logical_form() -> None:
    generator = torch.Generator().manual_seed(0)
    w, l, rw, rl = (-3 * torch.rand(6, generator=generator, dtype=torch.float64) - 0.1 for _ in range(4))  # noqa: E741
    ones = torch.ones(6, dtype=torch.float64)
    dpo = losses.dpo(w, l, rw, rl, beta=1.0, reduction="none")
    torch.testing.assert_close(losses.preference_logic("dpo", w, l, rw, rl), dpo)
    cpo = losses.cpo(w, l, ones, ones, beta=1.0, alpha=0.0, reduction="none")
    torch.testing.assert_close(losses.preference_logic("cpo", w, l, rw, rl), cpo)
    orpo = losses.orpo(w, l, ones, ones, lam=1.0, reduction="none") + w
    torch.testing.assert_close(losses.preference_logic("orpo", w, l, rw, rl), orpo)
    a, b = torch.tensor(0.3, dtype=torch.float64), torch.tensor(0.8, dtype=torch.float64)
    torch.testing.assert_close(torch.sigmoid(torch.log(a / b)), a / (a + b))
    with pytest.raises(ValueError, match=r"\['cpo', 'dpo', 'orpo'\]. Found 'ppo'"):
        losses.preference_logic("ppo", w, l, rw, rl)
