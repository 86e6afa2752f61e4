"""Laws of the losses for unequal counts and several labels."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from torch.nn import functional as F

from theodolite import losses

Y = torch.tensor([0, 1, 2, 3, 1, 0])
Z = 2 * torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
COUNTS = torch.tensor([625.0, 81.0, 16.0, 1.0], dtype=torch.float64)
LABELS = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 1, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]]).double()


def test_ldam_margins_scale_as_the_inverse_fourth_root() -> None:
    torch.testing.assert_close(losses.ldam_margins(COUNTS), torch.tensor([0.1, 1 / 6, 0.25, 0.5]).double())
    equal = torch.full((4,), 7.0)
    torch.testing.assert_close(losses.ldam_margins(equal), torch.full((4,), 0.5))
    plain = losses.ldam(Z, Y, counts=COUNTS, max_margin=0.0)
    torch.testing.assert_close(plain, F.cross_entropy(30 * Z, Y))
    smooth = losses.ldam(Z, Y, counts=COUNTS, max_margin=0.0, scale=1.0, label_smoothing=0.2)
    torch.testing.assert_close(smooth, F.cross_entropy(Z, Y, label_smoothing=0.2))


def test_deferred_weights_follow_the_effective_number() -> None:
    weights = losses.drw_weights(COUNTS, beta=0.9)
    assert float(weights.sum()) == pytest.approx(4.0, rel=1e-6)
    expected = 0.1 / (1 - 0.9**COUNTS)
    torch.testing.assert_close(weights, (expected * 4 / expected.sum()).float())
    torch.testing.assert_close(losses.drw_weights(COUNTS, beta=0.0), torch.ones(4))
    near = losses.drw_weights(COUNTS, beta=1 - 1e-9).double()
    torch.testing.assert_close(near * COUNTS / (near * COUNTS)[0], torch.ones(4).double(), atol=1e-5, rtol=0)


def test_logit_adjustment_minimiser_is_the_balanced_posterior() -> None:
    # two inputs, three classes: the joint P(x, y), its class-balanced posterior ∝ P(x | y)
    joint = torch.tensor([[0.60, 0.08, 0.01], [0.20, 0.07, 0.04]]).double()
    counts = joint.sum(0)
    z = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [z], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        each = [torch.full((2,), k) for k in range(3)]
        options = {"counts": counts, "gamma": 0.0, "tau": 1.0, "reduction": "none"}
        every = torch.stack([losses.vs_loss(z, label, **options) for label in each], 1)
        value = (joint * every).sum()
        value.backward()
        return value

    optimizer.step(closure)
    balanced = joint / counts
    torch.testing.assert_close(
        torch.softmax(z.detach(), 1), balanced / balanced.sum(1, keepdim=True), atol=1e-5, rtol=0
    )


def test_background_does_not_dilute_the_foreground() -> None:
    target = torch.tensor([0, 0, 2, 1])
    few, many = Z[:4].clone().requires_grad_(), torch.cat([Z[:4], Z[4:]]).requires_grad_()
    losses.density_normalised_edge(few, target).backward()
    losses.density_normalised_edge(many, torch.cat([target, torch.zeros(2, dtype=torch.long)])).backward()
    assert few.grad is not None
    assert many.grad is not None
    torch.testing.assert_close(few.grad[2:], many.grad[2:4])


def test_integrated_risk_reduces_to_weighted_cross_entropy() -> None:
    weights = 1 / COUNTS
    plain = losses.integrated_risk(Z[None], Y, counts=COUNTS, class_weights=weights, max_margin=0.0)
    torch.testing.assert_close(plain, (weights[Y] * F.cross_entropy(Z, Y, reduction="none")).mean())
    identity = losses.integrated_risk(
        Z[None],
        Y,
        counts=COUNTS,
        class_weights=weights,
        max_margin=0.0,
        utility=torch.eye(4).double(),
        utility_weight=1.0,
    )
    torch.testing.assert_close(identity, 2 * plain)


def test_decision_false_head_rate_and_repulsion() -> None:
    p = torch.softmax(Z, 1)
    assert torch.equal(losses.utility_decision(p, torch.eye(4)), p.argmax(1))
    utility = losses.tail_sensitive_utility(COUNTS, cost=-3.0)
    assert utility.tolist()[3] == [-3.0, -3.0, -3.0, 1.0]
    brute = [max(range(4), key=lambda a: float(sum(row[y] * utility[y, a] for y in range(4)))) for row in p]
    assert losses.utility_decision(p, utility).tolist() == brute
    predicted, target = torch.tensor([0, 3, 1, 2]), torch.tensor([3, 3, 2, 0])
    # heads {0}, {0, 1}, {0, 1, 2}: tail samples 3, 3, 2 of which 1, 2 and of (3, 3) one are taken for head
    expected = (1 / 3 + 2 / 3 + 1 / 2) / 3
    assert losses.false_head_rate(predicted, target, classes=4) == pytest.approx(expected)
    assert math.isnan(losses.false_head_rate(target[3:], target[3:], classes=4))
    heads = torch.tensor([[0.0, 0.0], [2.0, 2.0]]).double()
    assert float(losses.ensemble_repulsion(heads, epoch=0)) == pytest.approx(-0.5 * math.log(2.0))
    with pytest.raises(ValueError, match=r"at least two ensemble members\. Found 1"):
        losses.ensemble_repulsion(heads[:1], epoch=0)


def test_asymmetric_loss_reduces_to_binary_cross_entropy_and_drops_easy_negatives() -> None:
    logits = Z[:, :3]
    plain = losses.asymmetric(logits, LABELS, gamma_pos=0.0, gamma_neg=0.0, clip=0.0)
    torch.testing.assert_close(
        plain, F.binary_cross_entropy_with_logits(logits, LABELS, reduction="none").sum(1).mean()
    )
    easy = torch.full((1, 1), -3.0).double().requires_grad_()  # σ(−3) = 0.047 < 0.05
    value = losses.asymmetric(easy, torch.zeros(1, 1).double())
    (gradient,) = torch.autograd.grad(value, easy)
    assert value == 0
    assert gradient == 0


def test_detached_weights_keep_the_value_and_change_the_gradient() -> None:
    logits = Z[:, :3].clone().requires_grad_()
    held, moving = losses.asymmetric(logits, LABELS), losses.asymmetric(logits, LABELS, detach_weight=False)
    torch.testing.assert_close(held, moving)
    assert not torch.allclose(torch.autograd.grad(held, logits)[0], torch.autograd.grad(moving, logits)[0])
    single = losses.asymmetric_single_label(Z, Y, gamma_neg=0.0, label_smoothing=0.1)
    torch.testing.assert_close(single, F.cross_entropy(Z, Y, label_smoothing=0.1))


def test_sigmoid_focal_reduces_to_binary_cross_entropy() -> None:
    logits = Z[:, :3]
    plain = losses.sigmoid_focal(logits, LABELS, gamma=0.0, alpha=None)
    torch.testing.assert_close(plain, F.binary_cross_entropy_with_logits(logits, LABELS))
    two = torch.stack([torch.zeros(18).double(), logits.flatten()], 1)
    torch.testing.assert_close(
        losses.sigmoid_focal(logits, LABELS, alpha=None), losses.focal(two, LABELS.flatten().long())
    )


def test_pairwise_auc_loss_bounds_the_auc_and_vanishes_when_separated() -> None:
    scores = Z[:, :3]
    auc = sum(sk.roc_auc_score(LABELS[:, k], scores[:, k]) for k in range(3)) / 3
    assert float(losses.macro_auc_pairwise(scores, LABELS)) / math.log(2) >= 1 - auc
    exact = losses.macro_auc_pairwise(scores, LABELS, surrogate=lambda m: (m <= 0).double())
    assert float(exact) == pytest.approx(1 - auc, abs=1e-12)
    assert float(losses.macro_auc_pairwise(100 * (LABELS - 0.5), LABELS)) < 1e-12
    torch.testing.assert_close(
        losses.mann_whitney(scores[LABELS[:, 0] == 1, 0], scores[LABELS[:, 0] == 0, 0]),
        losses.macro_auc_pairwise(scores[:, :1], LABELS[:, :1]),
    )
    missing = torch.cat([LABELS, torch.ones(6, 1).double()], 1)
    torch.testing.assert_close(losses.macro_auc_pairwise(Z, missing), losses.macro_auc_pairwise(scores, LABELS))


def test_univariate_auc_losses_differ_by_two_at_equal_counts() -> None:
    scores, labels = Z[:, :1], LABELS[:, :1]  # three of each
    twice = losses.macro_auc_univariate(scores, labels)
    torch.testing.assert_close(twice, 2 * losses.macro_auc_univariate(scores, labels, reweighted=False))


METRICS = {
    "accuracy": (losses.accuracy_score, sk.accuracy_score),
    "f1": (losses.f_score, sk.f1_score),
    "balanced": (losses.balanced_accuracy, sk.balanced_accuracy_score),
    "matthews": (losses.matthews, sk.matthews_corrcoef),
    "kappa": (losses.cohen_kappa, sk.cohen_kappa_score),
}


@pytest.mark.parametrize("name", METRICS)
@settings(deadline=None)
@given(data=st.data())
def test_hard_decisions_give_the_exact_metric(name: str, data: st.DataObject) -> None:
    ours, theirs = METRICS[name]
    bits = st.lists(st.integers(0, 1), min_size=8, max_size=8)
    tail = [0, 1, 0, 1], [0, 1, 1, 0]  # both classes on both sides, where the reference is defined
    predicted, true = data.draw(bits) + tail[0], data.draw(bits) + tail[1]
    value = losses.any_loss(torch.tensor(predicted).double(), torch.tensor(true).double(), metric=ours)
    assert 1 - float(value) == pytest.approx(theirs(true, predicted), abs=1e-12)


def test_any_loss_gradient_chain_and_missing_positives() -> None:
    p = torch.tensor([0.3, 0.6, 0.55], dtype=torch.float64, requires_grad=True)
    y = torch.tensor([0.0, 1.0, 1.0]).double()
    losses.any_loss(p, y, metric=losses.accuracy_score).backward()
    a = torch.sigmoid(73 * (p.detach() - 0.5))
    assert p.grad is not None
    torch.testing.assert_close(p.grad, -(2 * y - 1) * 73 * a * (1 - a) / 3)
    p.grad = None
    losses.any_loss(p, torch.zeros(3).double()).backward()
    assert bool(p.grad is not None and p.grad.isfinite().all())
