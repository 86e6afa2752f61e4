"""Laws of mask, image, box and topology losses."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.sparse.csgraph import minimum_spanning_tree
from sklearn import metrics as sk
from torch import Tensor

from theodolite import losses


def masks(seed: int = 0, *shape: int) -> Tensor:
    return torch.rand(*(shape or (3, 2, 10)), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_dice_of_hard_masks_is_f1() -> None:
    p, y = masks(0).round(), masks(1).round()
    expected = [1 - sk.f1_score(y[i, c], p[i, c]) for i in range(3) for c in range(2)]
    assert float(losses.dice(p, y, smooth=0.0)) == pytest.approx(sum(expected) / 6, rel=1e-12)
    pooled = [1 - sk.f1_score(y[:, c].flatten(), p[:, c].flatten()) for c in range(2)]
    assert float(losses.dice(p, y, smooth=0.0, over="batch")) == pytest.approx(sum(pooled) / 2, rel=1e-12)


def test_dice_gradient_by_hand() -> None:
    p, y = masks(0, 1, 1, 8).requires_grad_(), masks(1, 1, 1, 8).round()
    (gradient,) = torch.autograd.grad(losses.dice(p, y, smooth=0.5), p)
    union = float((p.sum() + y.sum()).detach()) + 0.5
    inside = float((p * y).sum().detach()) + 0.25
    torch.testing.assert_close(gradient, -2 * (y * union - inside) / union**2)


def test_dice_on_an_empty_class() -> None:
    nothing = torch.zeros(1, 1, 5, dtype=torch.float64, requires_grad=True)
    value = losses.dice(nothing, torch.zeros(1, 1, 5).double(), smooth=0.0)
    assert value.item() == 0  # absent and not predicted is right
    assert bool(torch.autograd.grad(value, nothing)[0].isfinite().all())
    some = torch.full((1, 1, 5), 0.1, dtype=torch.float64)
    assert float(losses.dice(some, torch.zeros(1, 1, 5).double(), smooth=0.0)) == 1  # any prediction is all wrong
    assert 0 < float(losses.dice(some, torch.zeros(1, 1, 5).double(), smooth=1.0)) < 1  # what smoothing is for


def test_tversky_contains_dice_and_jaccard() -> None:
    p, y = masks(0), masks(1).round()
    torch.testing.assert_close(losses.tversky(p, y, smooth=0.5), losses.dice(p, y, smooth=1.0))
    hits = (p * y).sum(-1)
    jaccard = 1 - (hits / (p.sum(-1) + y.sum(-1) - hits)).mean()
    torch.testing.assert_close(losses.tversky(p, y, alpha=1.0, beta=1.0, smooth=0.0), jaccard)


def test_self_adjusting_dice_spares_sure_items() -> None:
    p, y = masks(0), masks(1).round()
    plain = 1 - ((2 * p * y + 1) / (p + y + 1)).mean()
    torch.testing.assert_close(losses.self_adjusting_dice(p, y, alpha=0.0), plain)
    sure = torch.ones(1, 1, 1, dtype=torch.float64)
    assert float(losses.self_adjusting_dice(sure, sure)) == pytest.approx(0.5)  # numerator γ, denominator 1 + γ


def test_population_and_sample_dice_disagree() -> None:
    y = torch.zeros(2, 1, 100, dtype=torch.float64)
    y[0, 0, :90], y[1, 0, :1] = 1, 1
    p = torch.zeros_like(y)
    p[0, 0, :90], p[1, 0, 1:3] = 1, 1  # the large object right, the small one missed
    bias = float(losses.simpson_bias(p, y))
    assert bias == pytest.approx(2 * 90 / (92 + 91) - 0.5, rel=1e-12)
    assert bias > 0.2


def test_dice_gradient_stays_bounded_where_a_mask_is_missed() -> None:
    sizes = []
    for share in (0.5, 0.05, 0.005):
        p = torch.full((1, 1, 50), share, dtype=torch.float64, requires_grad=True)
        (dice,) = torch.autograd.grad(losses.dice(p, torch.ones(1, 1, 50).double(), smooth=0.0), p)
        (surprise,) = torch.autograd.grad(-p.log().mean(), p)
        sizes.append((float(dice.abs().max()), float(surprise.abs().max())))
    assert all(size <= 2 / 50 for size, _ in sizes)  # −2/S + 2Σp/S², S = Σp + Σy
    assert sizes[2][1] == pytest.approx(100 * sizes[0][1])


@pytest.mark.parametrize("kind", ["sizes", "overlap"])
def test_jaccard_metric_of_soft_labels(kind: str) -> None:
    p, y = masks(0), masks(1)
    assert float(losses.jaccard_metric(y, y, kind=kind)) == pytest.approx(0.0, abs=1e-12)
    assert float(losses.jaccard_metric(p, y, kind=kind)) > 0.05
    torch.testing.assert_close(losses.jaccard_metric(p, y, kind=kind), losses.jaccard_metric(y, p, kind=kind))
    soft = 1 - ((y * y).sum(-1) / (2 * y.sum(-1) - (y * y).sum(-1))).mean()
    assert float(soft) > 0.1  # the usual soft Jaccard is not least at the label
    hard = p.round()
    overlap = (hard * y.round()).sum((0, 2)), (hard + y.round() - hard * y.round()).sum((0, 2))
    expected = 1 - (overlap[0] / overlap[1]).mean()
    torch.testing.assert_close(losses.jaccard_metric(hard, y.round(), kind=kind, smooth=0.0), expected)


def test_jaccard_metric_obeys_the_triangle_inequality() -> None:
    a, b, c = (masks(seed, 10_000, 1, 4) ** 2 for seed in (0, 1, 2))

    def distance(x: Tensor, y: Tensor) -> Tensor:
        return torch.func.vmap(lambda u, v: losses.jaccard_metric(u[None], v[None], smooth=0.0))(x, y)

    assert bool((distance(a, c) <= distance(a, b) + distance(b, c) + 1e-12).all())


def test_jaccard_ignores_absent_classes() -> None:
    y = masks(1).round()
    y[:, 1] = 0
    p = masks(0)
    torch.testing.assert_close(losses.jaccard_metric(p, y), losses.jaccard_metric(p[:, :1], y[:, :1]))
    assert float(losses.jaccard_metric(p, torch.zeros_like(p))) == 0


def test_projection_sees_a_gap_in_a_vessel() -> None:
    label = torch.zeros(1, 1, 4, 9, dtype=torch.float64)
    label[0, 0, 2] = 1
    gap = label.clone()
    gap[0, 0, 2, 4] = 0
    without = losses.projected_tversky(gap, label, lam=0.0)
    term = losses.projected_tversky(gap, label) - without
    assert float(term) == pytest.approx((1 - 9 / (9 + 0.7)) ** 0.75, rel=1e-9)  # 8 of 9 columns, smoothing 1
    leaf = masks(0, 1, 1, 4, 9).requires_grad_()
    (gradient,) = torch.autograd.grad(
        losses.projected_tversky(leaf, label) - losses.projected_tversky(leaf, label, lam=0.0), leaf
    )
    top = leaf.detach() == leaf.detach().amax(2, keepdim=True)
    assert bool((gradient[~top].abs() < 1e-15).all())
    assert bool((gradient[top] != 0).all())


def test_structural_similarity() -> None:
    x, y = masks(0, 2, 3, 48, 48), masks(1, 2, 3, 48, 48)
    assert float(losses.ms_ssim(x, x)) == pytest.approx(0.0, abs=1e-12)
    torch.testing.assert_close(losses.ms_ssim(x, y), losses.ms_ssim(y, x))
    blurred = 0.7 * x + 0.3 * x.roll(1, -1)
    assert 0 < float(losses.ms_ssim(x, blurred)) < float(losses.ms_ssim(x, y))
    small = x[:, :, :12, :12]  # one scale: luminance times structure
    shifted = float(losses.ms_ssim(small, small + 0.2, reduction="none")[0])
    assert 0 < shifted < 0.2
    with pytest.raises(ValueError, match=r"Found \(8, 8\)"):
        losses.ms_ssim(x[:, :, :8, :8], x[:, :, :8, :8])


def test_constant_offset_changes_luminance_alone() -> None:
    flat = torch.full((1, 1, 11, 11), 0.5, dtype=torch.float64)
    luminance = (2 * 0.5 * 0.7 + 1e-4) / (0.25 + 0.49 + 1e-4)
    assert float(losses.ms_ssim(flat, flat + 0.2)) == pytest.approx(1 - luminance, rel=1e-6)


def test_total_variation_and_psnr() -> None:
    ramp = torch.arange(4.0).expand(1, 1, 3, 4)
    assert float(losses.total_variation(ramp)) == 1
    assert float(losses.psnr(ramp, ramp + 0.1)) == pytest.approx(20, rel=1e-5)


def test_boxes_shifted_by_half() -> None:
    a = torch.tensor([[0.0, 0, 1, 1]], dtype=torch.float64)
    b = torch.tensor([[0.5, 0, 1.5, 1]], dtype=torch.float64)
    expected = {"iou": 2 / 3, "giou": 2 / 3, "diou": 2 / 3 + 0.25 / 3.25, "ciou": 2 / 3 + 0.25 / 3.25}
    for kind, value in expected.items():
        assert float(losses.box_overlap(a, b, kind=kind)) == pytest.approx(value, rel=1e-12)
    far = b + 10
    leaf = a.clone().requires_grad_()
    moves = {k: torch.autograd.grad(losses.box_overlap(leaf, far, kind=k), leaf)[0].abs().sum() for k in expected}
    assert float(moves["iou"]) == 0
    assert min(float(moves[k]) for k in ("giou", "diou", "ciou")) > 0


def test_complete_box_loss_weighs_the_aspect_ratio() -> None:
    a = torch.tensor([[0.0, 0, 2, 1]], dtype=torch.float64)
    b = torch.tensor([[0.0, 0, 1, 2]], dtype=torch.float64)
    v = 4 / math.pi**2 * (math.atan(0.5) - math.atan(2)) ** 2
    gap = 1 - 1 / 3
    expected = gap + 0.5 / 8 + v * v / (gap + v)
    assert float(losses.box_overlap(a, b, kind="ciou")) == pytest.approx(expected, rel=1e-12)


def test_topology_is_blind_to_motion_and_scale() -> None:
    x = masks(0, 12, 3)
    turn, _ = torch.linalg.qr(masks(5, 3, 3))
    assert float(losses.topological_autoencoder(x, 7 * x @ turn + 2)) == pytest.approx(0.0, abs=1e-12)
    assert float(losses.topological_autoencoder(x, masks(1, 12, 2))) > 1e-3


def test_spanning_tree_equals_the_reference() -> None:
    distance = torch.cdist(masks(0, 15, 3), masks(0, 15, 3))
    edges = {frozenset(edge) for edge in losses.spanning_tree(distance).tolist()}
    reference = minimum_spanning_tree(distance.numpy()).tocoo()
    assert edges == {frozenset(edge) for edge in zip(reference.row.tolist(), reference.col.tolist(), strict=True)}
