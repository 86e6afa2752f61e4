"""Laws of calibration losses and of rejection."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from theodolite import losses


def drawn(n: int, scale: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that are ``scale`` times those that the labels were drawn from."""
    generator = torch.Generator().manual_seed(seed)
    truth = 1.5 * torch.randn(n, 3, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(torch.softmax(truth, 1), 1, generator=generator)[:, 0]
    return scale * truth, labels


def test_window_gap_has_two_forms() -> None:
    logits, y = drawn(50, 1.0)
    p, order = torch.softmax(logits, 1).flatten().sort()
    o = F.one_hot(y, 3).double().flatten()[order]
    mean = lambda v: F.avg_pool1d(v[None, None], 20, stride=1)[0, 0]  # noqa: E731
    torch.testing.assert_close(mean(p - o), mean(p * (1 - o)) - mean((1 - p) * o))
    one_bin = losses.h_calibration(torch.softmax(logits, 1), y, window=20, bins=1)
    torch.testing.assert_close(one_bin, mean(p - o).abs().mean())


def test_calibrated_error_falls_with_samples() -> None:
    few, many = drawn(100, 1.0), drawn(20_000, 1.0)
    value = [float(losses.h_calibration(torch.softmax(z, 1), y, window=len(y) // 4)) for z, y in (few, many)]
    assert value[1] < 0.2 * value[0]  # the deviation falls as the root of the window: 1/√200 of it and a bit


def test_fitted_temperature_recovers_the_true_one() -> None:
    logits, y = drawn(10_000, 2.5)
    log_t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([log_t], lr=0.1)
    for _ in range(40):
        optimizer.zero_grad()
        losses.h_calibration(torch.softmax(logits / log_t.exp(), 1), y).backward()
        optimizer.step()
    assert math.exp(float(log_t.detach())) == pytest.approx(2.5, rel=0.05)


def test_correctness_aware_loss_lowers_the_confidence_where_cross_entropy_raises_the_true_class() -> None:
    logits = torch.tensor([[1.0, 0.9, -1.0]]).double().requires_grad_()
    confidence = torch.softmax(logits, 1).amax(1)
    (down,) = torch.autograd.grad(losses.correctness_aware(confidence, torch.tensor([False])), logits)
    (up,) = torch.autograd.grad(F.cross_entropy(logits, torch.tensor([1])), logits)
    assert float(down[0, 0]) > 0  # a descent step lowers the wrong top logit
    assert float(up[0, 1]) < 0
    assert float(losses.correctness_aware(torch.tensor([0.8]), torch.tensor([True]))) == pytest.approx(0.04)


@pytest.mark.parametrize("beta", [2.0, 1.0])
@pytest.mark.parametrize("error", [0.01, 0.2, 0.7])
def test_rejection_minimiser_is_the_bayes_rule_at_half_alpha(beta: float, error: float) -> None:
    alpha, cost = 4.0, 0.2
    r = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [r], max_iter=300, tolerance_grad=1e-14, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )
    wrong, right = torch.tensor([False]), torch.tensor([True])

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        options = {"cost": cost, "alpha": alpha, "beta": beta}
        value = error * losses.reject_surrogate(r, wrong, **options) + (1 - error) * losses.reject_surrogate(
            r, right, **options
        )
        value.backward()
        return value

    optimizer.step(closure)
    expected = math.log(2 * beta * cost / (alpha * error)) / (alpha / 2 + beta)
    found = float(r.detach())
    assert found == pytest.approx(expected, abs=1e-6)
    if beta == alpha / 2:
        assert (found > 0) == (error < cost)
        assert cost * math.exp(-alpha * found) == pytest.approx(error, rel=1e-5)


def test_angular_hardness_of_an_orthogonal_feature_is_uniform() -> None:
    weights = torch.eye(5)[:4]
    hardness = losses.angular_hardness(
        torch.tensor([[0.0, 0, 0, 0, 1], [1, 0, 0, 0, 0]]), weights, torch.tensor([2, 0])
    )
    torch.testing.assert_close(hardness, torch.tensor([0.25, 0.0]), atol=1e-6, rtol=0)


def test_calibration_error_by_hand() -> None:
    p = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.35, 0.65]], dtype=torch.float64)
    y = torch.tensor([0, 1, 1, 1])
    # confidences .9 (right, wrong) and .6, .65 (right, right)
    wide = (abs(1.8 - 1) + abs(0.6 + 0.65 - 2)) / 4
    assert float(losses.expected_calibration_error(p, y, bins=2, equal_mass=True)) == pytest.approx(wide)
    single = abs(0.9 + 0.9 + 0.6 + 0.65 - 3) / 4
    assert float(losses.expected_calibration_error(p, y, bins=1)) == pytest.approx(single)
    tenth = (0.8 + 0.4 + 0.35) / 4
    assert float(losses.expected_calibration_error(p, y, bins=10)) == pytest.approx(tenth)
