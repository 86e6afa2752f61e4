"""Laws of ranking losses."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import ndcg_score
from torch import Tensor

from theodolite import losses


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


S = drawn(3, 6)
Y = torch.tensor([[3, 2, 0, 1, 0, 0], [0, 0, 1, 2, 2, 1], [1, 0, 0, 0, 0, 3]], dtype=torch.float64)


@pytest.mark.parametrize("k", [None, 3])
@pytest.mark.parametrize("transposed", [False, True])
def test_small_temperature_is_the_exact_metric_with_one_gain(k: int | None, transposed: bool) -> None:
    expected = ndcg_score(2**Y - 1, S, k=k)  # exponential gains in numerator and ideal alike
    found = -float(losses.neural_ndcg(S, Y, tau=1e-3, k=k, transposed=transposed))
    assert found == pytest.approx(expected, rel=1e-6)


def test_a_perfect_order_reaches_one_only_with_equal_gains() -> None:
    assert float(losses.neural_ndcg(1e3 * Y + torch.linspace(0, 1, 6), Y, tau=1e-2)) == pytest.approx(-1.0, abs=1e-6)


def test_soft_sort_rows_and_scaled_columns_sum_to_one() -> None:
    valid = torch.ones(3, 6, dtype=torch.bool)
    p = losses.soft_sort(S, valid)
    torch.testing.assert_close(p.sum(2), torch.ones(3, 6).double())
    scaled = losses.sinkhorn_scaled(p, valid, 50)
    torch.testing.assert_close(scaled.sum(1), torch.ones(3, 6).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(scaled.sum(2), torch.ones(3, 6).double(), atol=1e-6, rtol=0)


def test_ranking_ignores_order_and_padding() -> None:
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    whole = losses.neural_ndcg(S, Y)
    torch.testing.assert_close(losses.neural_ndcg(S[:, order], Y[:, order]), whole)
    padded = torch.tensor([False] * 6 + [True] * 2).expand(3, 8)
    longer = torch.cat([S, torch.full((3, 2), 50.0).double()], 1), torch.cat([Y, torch.full((3, 2), 4.0).double()], 1)
    torch.testing.assert_close(losses.neural_ndcg(*longer, padded=padded), whole)
    empty = torch.cat([S, S[:1]]), torch.cat([Y, torch.zeros(1, 6).double()])
    torch.testing.assert_close(losses.neural_ndcg(*empty), whole)


def test_tied_scores_have_a_finite_gradient() -> None:
    s = torch.zeros(2, 4, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([[1.0, 0, 0, 0], [0, 2, 0, 0]], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(losses.neural_ndcg(s, y), s)
    assert bool(gradient.isfinite().all())


def test_noise_is_seeded() -> None:
    one, two = (losses.neural_ndcg(S, Y, noise=0.1, seed=seed) for seed in (0, 0))
    assert one == two
    assert float(losses.neural_ndcg(S, Y, noise=0.1, seed=1)) != float(one)


def test_draws_of_the_noise_are_averaged() -> None:
    few, many = (
        torch.stack([losses.neural_ndcg(S, Y, noise=0.5, draws=draws, seed=seed) for seed in range(60)])
        for draws in (1, 16)
    )
    assert 16 / 3 < float(few.var() / many.var()) < 16 * 3  # an F ratio of 59 and 59 degrees is within a factor of 2
    assert float(few.mean() - many.mean()) == pytest.approx(0, abs=4 * float(few.std()) / 60**0.5)
    with pytest.raises(ValueError, match="at least 1 draw of the noise, found draws=0"):
        losses.neural_ndcg(S, Y, noise=0.5, draws=0)


def test_mixtures_should_be_less_confident() -> None:
    raw, mixed = torch.tensor([[5.0, 0], [1, 0]]), torch.tensor([[1.0, 0], [1, 0]])
    both = torch.tensor([True, True])
    assert float(losses.rank_mixup_margin(mixed, raw, both)) == pytest.approx((0 + 2) / 2)
    assert float(losses.rank_mixup_margin(mixed, raw, torch.tensor([True, False]))) == 0


def test_proportional_confidence_costs_nothing_and_over_and_under_count_alike() -> None:
    relevance = torch.tensor([[1.0, 0.9, 0.6]], dtype=torch.float64)
    assert float(losses.rank_mixup_ndcg(relevance, relevance)) == pytest.approx(0.0, abs=1e-12)
    over, under = (float(losses.rank_mixup_ndcg(f * relevance, relevance)) for f in (1.25, 0.8))
    assert over == pytest.approx(under, rel=1e-12)
