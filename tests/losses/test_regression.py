"""Laws of regression, series and distillation losses."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from torch import Tensor
from torch.nn import functional as F

from theodolite import losses


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_mean_predictor_has_relative_error_one() -> None:
    y = drawn(9)
    mean = y.mean().expand(9)
    for power in (1, 2):
        assert float(losses.relative_error(mean, y, power=power)) == pytest.approx(1.0, rel=1e-12)
    x = drawn(9, seed=1)
    assert float(losses.relative_error(x, y)) == pytest.approx(1 - sk.r2_score(y, x), rel=1e-12)


def test_scores_equal_the_reference_library() -> None:
    x, y = drawn(9, seed=1).abs(), drawn(9).abs() + 0.1
    assert float(losses.percentage_error(x, y)) == pytest.approx(sk.mean_absolute_percentage_error(y, x), rel=1e-12)
    assert float(losses.squared_log_error(x, y)) == pytest.approx(sk.mean_squared_log_error(y, x), rel=1e-12)
    assert float(losses.root_mean_square(x, y)) == pytest.approx(sk.root_mean_squared_error(y, x), rel=1e-12)
    assert float(losses.quantile(x, y, q=0.3)) == pytest.approx(sk.mean_pinball_loss(y, x, alpha=0.3), rel=1e-12)
    root = losses.root_mean_square(x, y)
    torch.testing.assert_close(losses.root_mean_square(x, y, normalizer="range"), root / (y.max() - y.min()))
    torch.testing.assert_close(losses.root_mean_square(x, y, normalizer="mean"), root / y.mean())
    torch.testing.assert_close(losses.root_mean_square(x, y, normalizer="prediction"), root / x.square().mean().sqrt())
    torch.testing.assert_close(losses.mean_bias(x, y), x.mean() - y.mean())


def test_a_perfect_prediction_has_zero_gradient_not_nan() -> None:
    x = drawn(4).requires_grad_()
    (gradient,) = torch.autograd.grad(losses.root_mean_square(x, x.detach()), x)
    assert bool((gradient == 0).all())


def test_the_quantile_minimises_the_pinball_loss() -> None:
    y = drawn(201)
    grid = torch.linspace(-2, 2, 4001, dtype=torch.float64)
    values = torch.stack([losses.quantile(g.expand(201), y, q=0.8) for g in grid])
    assert float(grid[values.argmin()]) == pytest.approx(float(torch.quantile(y, 0.8)), abs=2e-3)


@settings(deadline=None)
@given(st.floats(-1e6, 1e6))
def test_log_cosh_asymptotes(error: float) -> None:
    value = float(losses.log_cosh(torch.tensor(error, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)))
    if abs(error) < 20:
        assert value == pytest.approx(math.log(math.cosh(error)), abs=1e-12)
    else:
        assert value == pytest.approx(abs(error) - math.log(2), rel=1e-12)


def test_log_cosh_is_a_parabola_where_the_prediction_is_exact() -> None:
    error = torch.tensor([0.0, 1.5, -40.0], dtype=torch.float64, requires_grad=True)
    values = losses.log_cosh(error, torch.zeros_like(error), reduction="sum")
    (slope,) = torch.autograd.grad(values, error, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), error)
    torch.testing.assert_close(slope.detach(), torch.tanh(error.detach()))
    torch.testing.assert_close(bend, 1 / torch.cosh(error.detach()) ** 2)


def test_squares_keep_their_curvature_where_the_error_vanishes() -> None:
    y = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    H = torch.autograd.functional.hessian(lambda x: losses.relative_error(x, y), y.clone())
    torch.testing.assert_close(H, torch.eye(3, dtype=torch.float64))  # 2/Σ(y − ȳ)² = 1
    numbers = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)

    def moment(z: Tensor) -> Tensor:
        return losses.number_token(z[None], torch.tensor([1]), values=numbers, kind="moment")

    H = torch.autograd.functional.hessian(moment, torch.zeros(3, dtype=torch.float64))  # mean 1, the label
    slope = torch.tensor([-1 / 3, 0, 1 / 3], dtype=torch.float64)
    torch.testing.assert_close(H, 2 * torch.outer(slope, slope))


def test_directional_score_sees_only_signs() -> None:
    r = drawn(7)
    torch.testing.assert_close(losses.directional(3 * r, r, sharpness=None), -r.abs().mean())
    torch.testing.assert_close(losses.directional(r.sign() * 1e-9, r, sharpness=None), -r.abs().mean())
    torch.testing.assert_close(losses.directional(r, r, sharpness=1e6), -r.abs().mean(), atol=1e-4, rtol=0)
    x = r.clone().requires_grad_()
    assert bool((torch.autograd.grad(losses.directional(x, r, sharpness=None), x)[0] == 0).all())


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.5])
def test_density_map_is_an_involution_of_the_stated_shape(alpha: float) -> None:
    d = torch.linspace(0.0, 1.0, 51, dtype=torch.float64)
    once = losses.involution(d, alpha)
    torch.testing.assert_close(losses.involution(once, alpha), d, atol=1e-9, rtol=0)
    bend = once.diff().diff()
    assert {0.5: bool((bend > 0).all()), 1.0: bool((bend.abs() < 1e-12).all()), 2.5: bool((bend < 0).all())}[alpha]


def test_imbalanced_regression_loss_and_its_weights() -> None:
    x, y = drawn(30, seed=1), drawn(30)
    w = losses.mdi_weights(torch.cat([y, torch.tensor([8.0], dtype=torch.float64)]))
    assert float(w.sum()) == pytest.approx(1.0, rel=1e-12)
    assert int(w.argmax()) == 30  # the rare value
    uniform = torch.full((30,), 1 / 30, dtype=torch.float64)
    pearson = torch.corrcoef(torch.stack([x, y]))[0, 1]
    torch.testing.assert_close(losses.cisir(x, y, uniform, lam=2.0), F.mse_loss(x, y) + 2 * (1 - pearson))
    part = losses.cisir(x, y, w[:30], lam=1.0) - losses.cisir(x, y, w[:30], lam=0.0)
    moved = 3 * x + 5
    torch.testing.assert_close(losses.cisir(moved, y, w[:30], lam=1.0) - losses.cisir(moved, y, w[:30], lam=0.0), part)


def test_stratified_batches_hold_every_stratum_once() -> None:
    y = drawn(100)
    y[17] = 50.0
    batches = losses.stratified_batches(y, size=10, seed=0)
    assert batches.shape == (10, 10)
    assert torch.equal(batches.flatten().sort().values, torch.arange(100))
    strata = y.argsort().argsort() // 10
    assert bool((strata[batches].sort(1).values == torch.arange(10)).all())
    assert losses.stratified_batches(y[:97], size=10, seed=0).unique().numel() == 90


def test_regression_by_classes_splits_into_two_heads() -> None:
    y = drawn(12)
    edges = losses.equal_frequency_edges(y, bins=4)
    bins = torch.bucketize(y, edges)
    assert bins.bincount().tolist() == [3, 3, 3, 3]
    x, z = drawn(12, seed=1), drawn(12, 4, seed=2)
    found = losses.regression_by_classes(x, z, y, edges=edges, lam=0.3)
    torch.testing.assert_close(found, F.mse_loss(x, y) + 0.3 * F.cross_entropy(z, bins))


def test_distillation_gradient_and_reduction_to_torch() -> None:
    s, t = drawn(5, 4).requires_grad_(), drawn(5, 4, seed=1).requires_grad_()
    value = losses.kd(s, t, temperature=3.0)
    log_s, log_t = F.log_softmax(s / 3, 1), F.log_softmax(t / 3, 1)
    torch.testing.assert_close(value, 9 * F.kl_div(log_s, log_t, log_target=True, reduction="batchmean"))
    student, teacher = torch.autograd.grad(value, (s, t), allow_unused=True)
    torch.testing.assert_close(student, 3 * (log_s.exp() - log_t.exp()).detach() / 5)
    assert teacher is None


def test_own_past_as_teacher() -> None:
    z = drawn(5, 4).requires_grad_()
    past = drawn(5, 4, seed=1)
    (gradient,) = torch.autograd.grad(losses.trajectory(z, past), z)
    expected = 0.3 * 5 * (torch.softmax(z / 5, 1) - torch.softmax(past / 5, 1)).detach() / 5
    torch.testing.assert_close(gradient, expected)
    same = losses.trajectory(z, z.detach())
    (still,) = torch.autograd.grad(same, z)
    assert float(same.detach()) == pytest.approx(0.0, abs=1e-15)
    assert float(still.abs().max()) < 1e-15


def test_logit_history_recalls_by_sample_and_epoch() -> None:
    history = losses.LogitHistory(10, 2, delay=2)
    index = torch.tensor([7, 3])
    for epoch in range(6):
        if epoch >= 2:
            recalled = history.recall(index, epoch=epoch)
            assert recalled.tolist() == [[epoch - 2, 7.0], [epoch - 2, 3.0]]
        history.record(torch.tensor([[epoch, 7.0], [epoch, 3.0]]), index, epoch=epoch)
    with pytest.raises(ValueError, match="2 epochs before epoch 1"):
        history.recall(index, epoch=1)


def test_norm_and_direction_vanishes_along_a_long_class_mean() -> None:
    t, centre = drawn(4, 3), drawn(4, 3, seed=1)
    direction = F.normalize(centre, dim=1)
    long = direction * (t.norm(dim=1, keepdim=True) + 1)
    assert float(losses.norm_and_direction(long, t, centre)) == pytest.approx(0.0, abs=1e-12)
    short = 0.25 * direction * t.norm(dim=1, keepdim=True)
    assert float(losses.norm_and_direction(short, t, centre)) == pytest.approx(0.75, abs=1e-12)


def test_rationale_invariance_vanishes_for_equal_features_and_a_warm_bank() -> None:
    w, y = drawn(3, 4), torch.tensor([0, 2, 0, 1])
    per_class = drawn(3, 4, seed=1)
    features = per_class[y]
    bank = losses.updated_bank(torch.zeros(3, 3, 4, dtype=torch.float64), features, w, y, momentum=1.0)
    assert float(losses.ridg(features, w, y, bank)) == pytest.approx(0.0, abs=1e-24)
    moved = features + torch.tensor([1.0, 0, 0, 0])
    expected = 3 * w[:, 0].square().sum() / 3  # every class present, mean over its samples, over C
    torch.testing.assert_close(losses.ridg(moved, w, y, bank), expected)


def test_collapse_losses_are_least_at_the_simplex() -> None:
    simplex = torch.eye(4, dtype=torch.float64)
    assert float(losses.class_separation(simplex + 3.0)) == pytest.approx(-math.acos(-1 / 3), rel=1e-9)
    for seed in range(5):
        assert float(losses.class_separation(drawn(4, 5, seed=seed))) > -math.acos(-1 / 3)
    y = torch.tensor([0, 1, 0, 1])
    assert float(losses.class_compactness(simplex[y], y)) == pytest.approx(0.0, abs=1e-15)
    h = drawn(4, 2)
    expected = (h[0] - h[2]).square().sum() / 8 + (h[1] - h[3]).square().sum() / 8
    torch.testing.assert_close(losses.class_compactness(h, y), expected)
