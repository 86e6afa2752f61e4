"""Claims of the papers, reproduced on tiny problems."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from theodolite import losses

pytestmark = pytest.mark.slow

Step = Callable[[Tensor, Tensor, int], Tensor]


def digits(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(seed))
    x, y = torch.tensor(data.data, dtype=torch.float32)[order] / 16, torch.tensor(data.target)[order]
    return x[897:], y[897:], x[:897], y[:897]


def fitted(x: Tensor, y: Tensor, step_loss: Step, *, seed: int, steps: int = 500, outputs: int = 10) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(x.shape[1], 128), nn.ReLU(), nn.Linear(128, outputs))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(steps):
        optimizer.zero_grad()
        step_loss(model(x), y, step).backward()
        optimizer.step()
    return model


def spoiled(y: Tensor, share: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.where(
        torch.rand(len(y), generator=generator) < share, torch.randint(10, (len(y),), generator=generator), y
    )


def test_spherical_z_loss_costs_the_same_for_any_number_of_classes() -> None:
    generator = torch.Generator().manual_seed(0)
    h, spent = torch.randn(64, 32, generator=generator), []
    for classes in (1_000, 64_000):
        w = torch.randn(classes, 32, generator=generator)
        gram, total, target = w.T @ w, w.sum(0), torch.randint(classes, (64,), generator=generator)

        def summed(w: Tensor = w, gram: Tensor = gram, total: Tensor = total, y: Tensor = target) -> Tensor:
            return losses.z_loss_from_moments(h @ total, ((h @ gram) * h).sum(1), (h * w[y]).sum(1), len(w))

        dense = losses.z_loss_spherical(h @ w.T, target, reduction="none")
        torch.testing.assert_close(summed(), dense, atol=2e-3, rtol=1e-3)
        best = []
        for _ in range(50):
            start = time.perf_counter()
            summed()
            best.append(time.perf_counter() - start)
        spent.append(min(best))
    assert spent[1] < 3 * spent[0]  # 64 times as many classes


def test_squentropy_is_as_accurate_as_cross_entropy_on_digits() -> None:
    found = {"ce": 0.0, "squentropy": 0.0}
    for seed in range(3):
        x, y, test_x, test_y = digits(seed)
        for name, loss in (("ce", F.cross_entropy), ("squentropy", losses.squentropy)):
            model = fitted(x, y, lambda z, t, _, f=loss: f(z, t), seed=seed)
            found[name] += float((model(test_x).argmax(1) == test_y).double().mean()) / 3
    assert found["squentropy"] > found["ce"] - 0.005
    assert found["ce"] > 0.95


def test_margins_with_deferred_weights_raise_the_recall_of_rare_digits() -> None:
    recall = {"ce": 0.0, "ldam": 0.0}
    for seed in range(3):
        x, y, test_x, test_y = digits(seed)
        kept = torch.cat([torch.nonzero(y == k)[: max(2, int(80 * 40 ** (-k / 9)))][:, 0] for k in range(10)])
        counts = torch.bincount(y[kept]).float()
        weight = losses.drw_weights(counts, beta=0.99)

        def margin(z: Tensor, t: Tensor, step: int, c: Tensor = counts, w: Tensor = weight) -> Tensor:
            return losses.ldam(z, t, counts=c, scale=1.0, max_margin=4.0, weight=w if step >= 400 else None)

        plain = fitted(x[kept], y[kept], lambda z, t, _: F.cross_entropy(z, t), seed=seed)
        wide = fitted(x[kept], y[kept], margin, seed=seed)
        rare = test_y >= 7
        for name, model in (("ce", plain), ("ldam", wide)):
            recall[name] += float((model(test_x[rare]).argmax(1) == test_y[rare]).double().mean()) / 3
    assert recall["ldam"] > recall["ce"] + 0.05


def test_focusing_lowers_the_calibration_error_under_noisy_labels() -> None:
    error = {"ce": 0.0, "focal": 0.0, "dual": 0.0}
    makers: dict[str, Step] = {
        "ce": lambda z, t, _: F.cross_entropy(z, t),
        "focal": lambda z, t, _: losses.focal(z, t, gamma=3.0),
        "dual": lambda z, t, _: losses.dual_focal(z, t),
    }
    for seed in range(3):
        x, y, test_x, test_y = digits(seed)
        noisy, future = spoiled(y, 0.2, seed), spoiled(test_y, 0.2, 100 + seed)
        for name, step in makers.items():
            p = torch.softmax(fitted(x, noisy, step, seed=seed)(test_x).detach(), 1)
            error[name] += float(losses.expected_calibration_error(p, future)) / 3
    assert error["focal"] < 0.9 * error["ce"]
    assert error["dual"] < error["ce"]


def test_pass_at_n_loss_beats_cross_entropy_at_n_draws() -> None:
    """Overfitted likelihood is sure and wrong; the coverage loss keeps mass on alternatives that draws then find."""
    wins = {"ce": 0.0, "dco": 0.0}
    for seed in range(3):
        x, y, test_x, test_y = digits(seed)
        few_x, few_y = x[:60], spoiled(y[:60], 0.3, seed)
        makers: dict[str, Step] = {
            "ce": lambda z, t, _: F.cross_entropy(z, t),
            "dco": lambda z, t, _: losses.dco(z, t, samples=16),
        }
        for name, step in makers.items():
            logits = fitted(few_x, few_y, step, seed=seed)(test_x).detach()
            p = torch.softmax(logits, 1).gather(1, test_y[:, None])[:, 0]
            wins[name] += float((1 - (1 - p) ** 16).mean()) / 3
    assert wins["dco"] > wins["ce"] + 0.02


def test_a_rejector_learns_where_the_predictor_errs() -> None:
    # error probability η(x) = σ(4x): with β = α/2 the sign of r is the Bayes rule η < c
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.rand(4000, 1, generator=generator, dtype=torch.float64) - 1
    error = torch.sigmoid(4 * x[:, 0])
    correct = torch.rand(4000, generator=generator, dtype=torch.float64) >= error
    w = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([w], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = losses.reject_surrogate(w[0] + w[1] * x[:, 0], correct, cost=0.3)
        value.backward()
        return value

    optimizer.step(closure)
    accepted = (w[0] + w[1] * x[:, 0]).detach() > 0
    assert float((accepted == (error < 0.3)).double().mean()) > 0.9
