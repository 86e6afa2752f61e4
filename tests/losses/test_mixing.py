"""Laws of contrast with negatives from elsewhere, and of logarithms of bounded losses."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from theodolite import losses


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_without_negative_pairs_the_denominator_is_plain() -> None:
    z, w = rows(4, 3), rows(3, 3, seed=1)
    y = torch.full((4,), 2)
    cosines = F.normalize(z) @ F.normalize(w).T
    torch.testing.assert_close(losses.unified_negatives(z, w, y, scale=5.0), F.cross_entropy(5 * cosines, y))


def test_negative_pairs_inside_the_whiskers_enter_every_denominator() -> None:
    z, w, y = rows(6, 3), rows(2, 3, seed=1), torch.tensor([0, 1, 0, 1, 0, 1])
    u = F.normalize(z)
    pairs = torch.stack([u[i] @ u[j] for i in range(6) for j in range(i) if y[i] != y[j]])
    low, high = torch.quantile(pairs, torch.tensor([0.25, 0.75], dtype=torch.float64))
    kept = pairs[(pairs >= low - 1.5 * (high - low)) & (pairs <= high + 1.5 * (high - low))]
    logits = torch.cat([u @ F.normalize(w).T, kept.expand(6, -1)], 1)
    torch.testing.assert_close(losses.unified_negatives(z, w, y, scale=5.0), F.cross_entropy(5 * logits, y))


def test_an_outlying_pair_is_left_out() -> None:
    """Twenty negatives near 0 and one twin with another label: the twin would dominate the denominator."""
    basis = torch.eye(22, dtype=torch.float64) + 0.01 * rows(22, 22)
    z = torch.cat([basis[:21], basis[:1]])
    y = torch.tensor([0] + [1] * 20 + [1])
    w = rows(2, 22, seed=2)
    twin = losses.unified_negatives(z, w, y, scale=20.0)
    assert float(twin) < float(
        torch.logsumexp(torch.tensor([20.0]), 0)
    )  # e^{20·1} in it would give at least 20 − s·cos
    cosines = F.normalize(z) @ F.normalize(w).T
    assert 0 < float(twin - F.cross_entropy(20 * cosines, y)) < 6


def test_mixed_contrast_at_its_ends_is_info_nce() -> None:
    mixed, views, partner = rows(5, 3), rows(5, 3, seed=1), torch.tensor([2, 0, 1, 4, 3])
    own = losses.info_nce(mixed, views, temperature=0.2, symmetric=False)
    ones = torch.ones(5, dtype=torch.float64)
    torch.testing.assert_close(losses.mixup_contrastive(mixed, views, partner, ones, temperature=0.2), own)
    other = losses.info_nce(mixed, views[partner], temperature=0.2, symmetric=False)
    torch.testing.assert_close(losses.mixup_contrastive(mixed, views, partner, 0 * ones, temperature=0.2), other)
    half = losses.mixup_contrastive(mixed, views, partner, 0.5 * ones, temperature=0.2)
    torch.testing.assert_close(half, (own + other) / 2)


def test_logarithms_amplify_bounded_losses() -> None:
    base = torch.linspace(0, 0.99, 50, dtype=torch.float64).requires_grad_()
    amplified = losses.log_amplified(base, reduction="none")
    assert bool((amplified >= base).all())
    (slope,) = torch.autograd.grad(amplified.sum(), base)
    torch.testing.assert_close(slope, 1 / (1 - base.detach()))
    error = torch.linspace(0, 0.99, 50, dtype=torch.float64)
    squared = losses.log_square(error, torch.zeros_like(error), eps=0.0, reduction="none")
    torch.testing.assert_close(squared, losses.log_amplified(error.square(), reduction="none"))
    assert bool((squared >= error.square()).all())


def test_logarithms_stay_finite_beyond_their_range() -> None:
    error = torch.tensor([1.0, 2.0, -3.0], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(losses.log_square(error, torch.zeros(3).double()), error)
    assert bool(gradient.isfinite().all())
    assert bool(losses.log_amplified(torch.ones(2)).isfinite())
