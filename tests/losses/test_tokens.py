"""Laws of token losses and divergences."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import optimize, stats
from torch import Tensor
from torch.nn import functional as F

from theodolite import losses

NAN = math.nan


def logits(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_number_loss_measures_distance_where_the_moment_form_is_blind() -> None:
    values = torch.tensor([4.0, 5.0, 6.0, NAN], dtype=torch.float64)
    split = torch.tensor([[0.0, -1e4, 0.0, 9.0]], dtype=torch.float64)  # half on 4, half on 6
    five = torch.tensor([1])
    assert float(losses.number_token(split, five, values=values, kind="moment")) == pytest.approx(0.0, abs=1e-12)
    assert float(losses.number_token(split, five, values=values)) == pytest.approx(1.0, abs=1e-12)
    right = torch.tensor([[-1e4, 0.0, -1e4, 9.0]], dtype=torch.float64)
    assert float(losses.number_token(right, five, values=values)) == pytest.approx(0.0, abs=1e-12)


def test_number_loss_is_the_wasserstein_distance_on_uneven_numbers() -> None:
    values = torch.tensor([10.0, -1.0, 0.5, 3.0], dtype=torch.float64)
    z = logits(3, 4)
    y = torch.tensor([0, 2, 3])
    p = torch.softmax(z, 1)
    expected = [stats.wasserstein_distance(values, values[k : k + 1], p[i]) for i, k in enumerate(y.tolist())]
    assert float(losses.number_token(z, y, values=values)) == pytest.approx(sum(expected) / 3, rel=1e-12)
    one_hot = F.one_hot(y, 4).double()
    torch.testing.assert_close(losses.wasserstein_1d(p, one_hot, values), torch.tensor(expected, dtype=torch.float64))


def test_number_loss_leaves_other_tokens_and_other_positions_alone() -> None:
    values = torch.tensor([1.0, NAN, 3.0, 7.0], dtype=torch.float64)
    z = logits(4, 4).requires_grad_()
    labels = torch.tensor([0, 1, -100, 3])
    (gradient,) = torch.autograd.grad(losses.number_token(z, labels, values=values), z)
    assert bool((gradient[:, 1] == 0).all())
    assert bool((gradient[1:3] == 0).all())
    assert float(losses.number_token(z[:2].detach(), torch.tensor([1, -100]), values=values)) == 0


def test_goldfish_hash_decides_by_the_ordered_context_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    passage = torch.randint(1000, (40,), generator=generator)
    filler = torch.randint(1000, (2, 30), generator=generator)
    one = torch.cat([filler[0], passage])[None]
    other = torch.cat([filler[1, :17], passage, filler[1, 17:]])[None]
    masks = losses.goldfish_mask(one)[0, 30 + 13 :], losses.goldfish_mask(other)[0, 17 + 13 : 57]
    assert torch.equal(*masks)
    assert bool(masks[0].any())
    assert bool((~masks[0]).any())


def test_goldfish_hash_is_order_sensitive_and_survives_token_zero() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1000, (2000, 4), generator=generator)
    swapped = tokens[:, [1, 0, 2, 3]]
    one, two = (losses.goldfish_mask(t, context=3)[:, 3] for t in (tokens, swapped))
    differ = float((one != two).double().mean())
    assert differ == pytest.approx(2 * 0.25 * 0.75, abs=3 * math.sqrt(0.375 * 0.625 / 2000))  # independent decisions
    tokens[:, 0] = 0
    rate = float((~losses.goldfish_mask(tokens, context=3)[:, 3]).double().mean())
    assert rate == pytest.approx(0.25, abs=3 * math.sqrt(0.25 * 0.75 / 2000))


@pytest.mark.parametrize("strategy", ["hash", "static", "random"])
@pytest.mark.parametrize("k", [2.0, 4.0])
def test_goldfish_drops_one_in_k(strategy: str, k: float) -> None:
    tokens = torch.randint(50_000, (20, 1013), generator=torch.Generator().manual_seed(1))
    kept = losses.goldfish_mask(tokens, k=k, strategy=strategy)[:, 13:]
    rate, n = float((~kept).double().mean()), kept.numel()
    assert rate == pytest.approx(1 / k, abs=3 * math.sqrt((1 / k) * (1 - 1 / k) / n) + 1e-3)
    assert bool(losses.goldfish_mask(tokens, k=math.inf, strategy=strategy).all())
    assert bool(losses.goldfish_mask(tokens)[:, :13].all())
    assert bool(losses.goldfish_mask(tokens[:, :5]).all())


def test_dropped_tokens_have_no_gradient() -> None:
    z = logits(3, 20, 5).requires_grad_()
    labels = torch.randint(5, (3, 20), generator=torch.Generator().manual_seed(0))
    kept = losses.goldfish_mask(labels, context=2)
    (gradient,) = torch.autograd.grad(losses.goldfish(z, labels, context=2), z)
    assert bool((gradient[~kept] == 0).all())
    assert bool((gradient[kept].abs().sum(-1) > 0).all())
    every = losses.goldfish(z, labels, k=math.inf)
    torch.testing.assert_close(every, F.cross_entropy(z.flatten(0, 1), labels.flatten()))


GENERATORS = {
    "kl": lambda t: t * math.log(t),
    "js": lambda t: t * math.log(t) - (t + 1) * math.log((t + 1) / 2),
    "pearson": lambda t: (t - 1) ** 2,
    "reverse-kl": lambda t: -math.log(t),
    "hellinger": lambda t: (math.sqrt(t) - 1) ** 2,
    "neyman": lambda t: (1 - t) ** 2 / t,
    "tv": lambda t: 0.5 * abs(t - 1),
}


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("v", [0.1, 0.9])
def test_unlearning_conjugates_are_suprema(name: str, v: float) -> None:
    u = losses.flat_activation(torch.tensor(v, dtype=torch.float64), name)
    slope = float(u)
    found = optimize.minimize_scalar(
        lambda s: GENERATORS[name](math.exp(s)) - slope * math.exp(s),
        bounds=(-12, 5),
        method="bounded",
        options={"xatol": 1e-10},
    )
    assert float(losses.flat_conjugate(u, name)) == pytest.approx(-found.fun, abs=1e-5)


@pytest.mark.parametrize("name", GENERATORS)
def test_unlearning_raises_the_template_and_lowers_the_answer(name: str) -> None:
    template, forget = torch.tensor([0.4, 0.6]).requires_grad_(), torch.tensor([0.3, 0.7]).requires_grad_()
    up, down = torch.autograd.grad(losses.flat(template, forget, divergence=name), (template, forget))
    assert bool((up < 0).all())
    assert bool((down > 0).all())


def test_risky_tokens_are_masked_or_pushed_away() -> None:
    z = logits(4, 5).requires_grad_()
    y, risky = torch.tensor([0, 1, 2, -100]), torch.tensor([False, True, False, True])
    (masked,) = torch.autograd.grad(losses.slung(z, y, risky), z)
    assert bool((masked[[1, 3]] == 0).all())
    torch.testing.assert_close(losses.slung(z, y, risky), F.cross_entropy(z[[0, 2]], y[[0, 2]]))
    (pushed,) = torch.autograd.grad(losses.slung(z, y, risky, mode="unlikelihood"), z)
    assert float(pushed[1, 1]) > 0 > float(pushed[0, 0])
    torch.testing.assert_close(losses.slung(z, y, torch.zeros(4).bool()), F.cross_entropy(z, y))
    certain = torch.tensor([[1e4, -1e4]]).requires_grad_()
    value = losses.slung(certain, torch.tensor([0]), torch.tensor([True]), mode="unlikelihood")
    (gradient,) = torch.autograd.grad(value, certain)
    assert math.isfinite(value.item())
    assert bool(gradient.isfinite().all())


def test_divergence_estimators_are_exact_in_expectation() -> None:
    z = logits(5).requires_grad_()
    log_p, log_q = F.log_softmax(z, 0), F.log_softmax(logits(5, seed=1), 0)
    p = log_p.exp().detach()
    divergence = (log_p.exp() * (log_p - log_q)).sum()
    found = losses.kl_estimators(log_p, log_q)
    torch.testing.assert_close((p * found.k1).sum(), divergence)
    torch.testing.assert_close((p * found.k3).sum(), divergence)
    assert float(found.k3.detach().min()) >= 0
    (expected,) = torch.autograd.grad(divergence, z, retain_graph=True)
    (k2,) = torch.autograd.grad((p * found.k2).sum(), z, retain_graph=True)
    torch.testing.assert_close(k2, expected)
    (k1,) = torch.autograd.grad((p * found.k1).sum(), z, retain_graph=True)
    assert not torch.allclose(k1, expected)  # with the draws fixed, k1's gradient is not the divergence's
    old = F.log_softmax(logits(5, seed=2), 0)
    weighed = losses.kl_estimators(log_p, log_q, log_old=old)
    torch.testing.assert_close((old.exp() * weighed.k3).sum(), divergence)


def test_log_variance_gradient_is_twice_that_of_the_divergence_and_vanishes_sample_by_sample() -> None:
    # q = N(m, 1), p̃ ∝ N(0, 1): KL = m²/2; quadrature over a fine grid with weights q
    m = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    x = torch.linspace(-9, 9, 4001, dtype=torch.float64)
    q = torch.exp(-0.5 * (x - m.detach()) ** 2)
    q = q / q.sum()
    ratio = -0.5 * (x - m) ** 2 + 0.5 * x**2 + 3.0  # an unknown normaliser
    variance = (q * ratio.square()).sum() - (q * ratio).sum() ** 2
    (gradient,) = torch.autograd.grad(variance, m)
    assert float(gradient) == pytest.approx(2 * 0.7, rel=1e-6)
    draws = 0.7 + torch.randn(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sampled = losses.log_variance(-0.5 * (draws - m) ** 2 + 0.5 * draws**2)
    assert float(sampled.detach()) == pytest.approx(0.49, rel=0.02)
    assert float(losses.log_variance(torch.full((5,), 2.5))) == 0


def test_path_log_ratio_of_the_optimal_control_is_constant() -> None:
    # dX = dW from 0 over one unit of time, target N(a, 1): the optimal control is the constant a, log Z = 0
    a, steps, batch, dt = 0.8, 50, 400, 1 / 50
    noise = dt**0.5 * torch.randn(steps, batch, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    control = torch.full((steps, batch, 1), a, dtype=torch.float64, requires_grad=True)
    end = (noise + a * dt).sum(0)[:, 0]
    terminal = stats.norm.logpdf(end) - stats.norm.logpdf(end, loc=a)
    ratio = losses.path_log_ratio(control, control.detach(), noise, torch.from_numpy(terminal), dt=dt)
    torch.testing.assert_close(ratio, torch.zeros(batch).double(), atol=1e-10, rtol=0)
    (gradient,) = torch.autograd.grad(losses.log_variance(ratio), control)
    assert float(gradient.abs().max()) < 1e-10


@pytest.mark.parametrize("drift", [0.0, 0.7])
def test_path_ratio_of_exact_time_reversal_is_constant(drift: float) -> None:
    """Brownian motion from N(0, 1): with v = ∇log p_t, log p_T is reached with a variance that falls with the step."""
    spreads = []
    for steps in (50, 800):
        generator = torch.Generator().manual_seed(0)
        dt = 1 / steps
        x = torch.randn(400, 1, generator=generator, dtype=torch.float64)
        first, parts = x, []
        for step in range(steps):
            noise = math.sqrt(dt) * torch.randn(400, 1, generator=generator, dtype=torch.float64)
            slope = -x / (1 + step * dt)
            parts.append((torch.zeros_like(x), slope, torch.full_like(x, drift), noise))
            x = x + drift * dt + noise
        u, v, w, noise = (torch.stack(part) for part in zip(*parts, strict=True))
        times = torch.arange(steps, dtype=torch.float64) * dt
        divergence = (-1 / (1 + times))[:, None].expand(steps, 400)
        ends = -first[:, 0].square() / 2 + x[:, 0].square() / 4 + 0.5 * math.log(2.0)
        ratio = losses.reversed_path_log_ratio(u, v, w, noise, divergence, ends, dt=dt)
        spreads.append(float(losses.log_variance(ratio)))
        assert abs(float(ratio.mean())) < 6 * math.sqrt(spreads[-1] / 400) + 2 * dt
    assert spreads[1] < spreads[0] / 8
    assert spreads[1] < 2e-3
