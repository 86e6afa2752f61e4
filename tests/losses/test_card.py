"""The card finds by test what is known of the losses by proof."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from theodolite import losses
from theodolite.reports.loss_cards import COLUMNS


@pytest.fixture(scope="module")
def cards() -> dict[str, losses.Card]:
    made = {
        "ce": F.cross_entropy,
        "mae": losses.mae,
        "nce": losses.nce,
        "focal": losses.FocalLoss(gamma=2.0),
        "squentropy": losses.squentropy,
        "z": losses.z_loss_spherical,
        "sparsemax": losses.sparsemax_loss,
        "hinge": losses.crammer_singer,
        "exp": losses.CompSumLoss(tau=0.0),
    }
    return {name: losses.card(loss, points=60) for name, loss in made.items()}


def test_convexity_is_found(cards: dict[str, losses.Card]) -> None:
    assert {name for name, found in cards.items() if found.convex} == {"ce", "squentropy", "sparsemax", "hinge", "exp"}


def test_gradient_bounds_are_found(cards: dict[str, losses.Card]) -> None:
    assert cards["ce"].gradient_bound == pytest.approx(math.sqrt(2), rel=1e-6)
    assert cards["hinge"].gradient_bound == pytest.approx(math.sqrt(2), rel=1e-6)
    assert cards["mae"].gradient_bound < math.sqrt(2) / 2 + 1e-9  # 2p(1 − p)√2 at most, ½√2
    assert math.isinf(cards["squentropy"].gradient_bound)
    assert cards["exp"].gradient_bound > 1e12  # exponential up to its cap
    assert cards["ce"].curvature_bound <= 0.5 + 1e-12  # diag p − ppᵀ


def test_invariances_are_found(cards: dict[str, losses.Card]) -> None:
    assert {n for n, c in cards.items() if not c.shift_invariant} == {"squentropy"}
    assert {n for n, c in cards.items() if c.scale_invariant} == {"z"}
    assert all(c.permutation_invariant for c in cards.values())


def test_growth_with_the_margin_is_found(cards: dict[str, losses.Card]) -> None:
    grown = {name: found.at_minus_infinity for name, found in cards.items()}
    assert grown == {
        "ce": "linear",
        "mae": "bounded",
        "nce": "bounded",
        "focal": "linear",
        "squentropy": "quadratic",
        "z": "bounded",
        "sparsemax": "linear",
        "hinge": "linear",
        "exp": "exponential",
    }
    rising = {name: found.at_plus_infinity for name, found in cards.items() if found.at_plus_infinity != "bounded"}
    assert rising == {"squentropy": "quadratic"}  # which is 0 where the other logits are


def test_robust_losses_forget_a_flipped_label(cards: dict[str, losses.Card]) -> None:
    assert cards["mae"].flip_influence < 1e-3
    assert cards["ce"].flip_influence > 1.5
    assert {n for n, c in cards.items() if c.symmetry_spread < 1e-6} == {"mae", "nce"}


def test_properness_is_found(cards: dict[str, losses.Card]) -> None:
    assert {n for n, c in cards.items() if c.proper} == {"ce"}
    assert cards["exp"].posterior_error > 1e-2  # its minimiser is proportional to √q
    assert all(cards[n].top_class_kept for n in ("ce", "mae", "focal", "squentropy", "sparsemax", "exp"))


def test_exponential_minimiser_is_the_root_of_the_posterior() -> None:
    q = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    z = (0.5 * q.log()).requires_grad_()
    value = (q * losses.comp_sum(z.expand(3, -1), torch.arange(3), tau=0.0, reduction="none")).sum()
    (gradient,) = torch.autograd.grad(value, z)
    assert float(gradient.abs().max()) < 1e-12


def test_profile_is_that_of_cross_entropy(cards: dict[str, losses.Card]) -> None:
    found = cards["ce"]
    t = torch.tensor(found.margins, dtype=torch.float64)
    p = torch.sigmoid(t - math.log(3))
    torch.testing.assert_close(torch.tensor(found.values, dtype=torch.float64), -p.log())
    torch.testing.assert_close(torch.tensor(found.gradients, dtype=torch.float64), p - 1)
    torch.testing.assert_close(torch.tensor(found.curvatures, dtype=torch.float64), p * (1 - p))


def test_a_limit_that_is_neared_slowly_is_one() -> None:
    """Taylor's softmax nears its limits as the inverse margin, where t_y / Σt is that of the ratio of the logits alone."""
    found = losses.card(losses.taylor_softmax_ce, points=20)
    assert (found.at_minus_infinity, found.at_plus_infinity) == ("bounded", "bounded")


def test_card_and_picture_show_one_profile() -> None:
    """Also of losses that a shift of all logits changes."""
    for loss in (losses.squentropy, losses.taylor_softmax_ce, losses.aux_log_z2):
        found, (shown,) = losses.card(loss, points=20), losses.compare(loss, classes=4, reach=8.0, steps=81)
        for mine, drawn in (
            (found.values, shown.values),
            (found.gradients, shown.slopes),
            (found.curvatures, shown.curvatures),
        ):
            assert mine == pytest.approx(drawn, abs=1e-9)
        assert (found.at_minus_infinity, found.at_plus_infinity) == (shown.at_minus_infinity, shown.at_plus_infinity)


def test_cards_are_plain_and_stand_side_by_side(cards: dict[str, losses.Card]) -> None:
    again = losses.card(F.cross_entropy, points=60)
    assert dataclasses.asdict(again) == dataclasses.asdict(cards["ce"])
    assert json.loads(json.dumps(again.as_dict()))["proper"] is True
    table = losses.card_table(list(cards.values())).splitlines()
    assert len(table) == 2 + len(cards)
    assert len({line.count("|") for line in table}) == 1
    assert cards["focal"].name == "FocalLoss(gamma=2.0)"


def test_cost_of_a_class_is_counted(cards: dict[str, losses.Card]) -> None:
    assert cards["ce"].class_cost == pytest.approx(3.0, abs=0.1)  # log-probabilities, their gradient twice
    assert cards["ce"].class_power == pytest.approx(1.0, abs=0.02)
    assert cards["mae"].class_cost < 1.1 * cards["ce"].class_cost  # of p_y alone: no more passes over the classes
    assert cards["squentropy"].class_cost > 2 * cards["ce"].class_cost
    weighted = losses.card(losses.FocalLoss(weight=torch.ones(4)), points=20)
    assert math.isnan(weighted.class_cost)  # made for four classes
    adjusted = losses.card(losses.VSLoss(counts=torch.tensor([8, 4, 2, 1]), gamma=0.0), points=20)
    assert adjusted.convex
    assert not adjusted.permutation_invariant

    def pairwise(logits: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
        gaps = logits[:, :, None] - logits[:, None]
        values = gaps.square().sum((1, 2)) + F.cross_entropy(logits, target, reduction="none")
        return values if reduction == "none" else values.mean()

    assert losses.card(pairwise, points=20).class_power == pytest.approx(2.0, abs=0.05)


LOSSES_OF_REPORTS = {
    "log": lambda theta, w, y: -(w * torch.log(theta[:, y])).sum(),
    "brier": lambda theta, w, y: (w * (theta - torch.eye(3)[y]).square().sum(1)).sum(),
    "log of mean": lambda theta, w, y: -torch.log((w @ theta)[y]),
}


@pytest.mark.parametrize("name", LOSSES_OF_REPORTS)
@pytest.mark.parametrize("mean", [[0.2, 0.3, 0.5], [1 / 3, 1 / 3, 1 / 3], [0.05, 0.05, 0.9]])
def test_labels_do_not_tell_two_truths_with_one_mean_apart(name: str, mean: list[float]) -> None:
    theta = torch.tensor(mean, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    atoms = torch.rand(5, 4, 3, generator=generator, dtype=torch.float64) + 0.05
    atoms = atoms / atoms.sum(2, keepdim=True)
    atoms[0] = theta  # the point report at the mean
    weights = torch.full((5, 4), 0.25, dtype=torch.float64)
    found = losses.check_second_order(LOSSES_OF_REPORTS[name], atoms, weights, theta)
    torch.testing.assert_close(found.certain, found.spread, atol=1e-14, rtol=1e-14)
    assert found.best == 0
    assert found.epistemic == pytest.approx(0.0, abs=1e-12)  # certain, though the truth may be spread over corners


def test_mutual_information_of_corners_is_the_entropy_of_their_mean() -> None:
    mean = torch.tensor([0.2, 0.8], dtype=torch.float64)
    found = losses.mutual_information(torch.eye(2, dtype=torch.float64), mean)
    assert found == pytest.approx(-(0.2 * math.log(0.2) + 0.8 * math.log(0.8)), rel=1e-12)


def test_a_card_needs_no_module() -> None:
    def doubled(logits: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
        return 2 * F.cross_entropy(logits, target, reduction=reduction)

    assert losses.card(doubled, points=20).gradient_bound == pytest.approx(2 * math.sqrt(2), rel=1e-6)


def test_cards_and_profiles_print_their_verdicts_and_no_arrays(cards: dict[str, losses.Card]) -> None:
    lines = str(cards["focal"]).splitlines()
    assert lines[0] == "FocalLoss(gamma=2.0), 4 classes"
    assert len(lines) == 13
    told = {line[2:].split("  ")[0]: line.split("  ")[-1].strip() for line in lines[1:]}
    assert (told["convex"], told["margin → −∞"], told["proper"]) == ("no", "linear", "no")
    assert max(map(len, lines)) < 60
    (profile,) = losses.compare("cross_entropy", steps=41)
    assert repr(profile).startswith("cross_entropy along the margin z_y − z_k: convex, least at inf, slope ≤ 1")


def test_losses_are_known_by_name(cards: dict[str, losses.Card]) -> None:
    assert losses.card("cross_entropy", points=60) == cards["ce"]
    assert losses.compare("dpo", steps=5) == losses.compare(losses.dpo, steps=5)
    with pytest.raises(ValueError, match=r"Expected the name of a loss\. Found 'gec'; near it: gce"):
        losses.card("gec")


def test_tables_share_the_names_of_their_rows() -> None:
    head = losses.card_table([]).splitlines()[0].strip("| ").split(" | ")
    assert set(COLUMNS.values()) <= set(head)
