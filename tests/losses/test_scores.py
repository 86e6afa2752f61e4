"""Scores equal those of scikit-learn; calibrators keep what they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as sk
from torch import Tensor
from torch.nn import functional as F

from theodolite import losses


def drawn(seed: int = 0, n: int = 60) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = (torch.randn(n, generator=generator, dtype=torch.float64) * 4).round() / 4  # with ties
    return scores, torch.rand(n, generator=generator) < torch.sigmoid(scores)


@pytest.mark.parametrize("seed", range(3))
def test_ranking_scores_equal_the_reference_library(seed: int) -> None:
    scores, labels = drawn(seed)
    assert losses.roc_auc(scores, labels) == pytest.approx(sk.roc_auc_score(labels, scores), rel=1e-12)
    assert losses.average_precision(scores, labels) == pytest.approx(
        sk.average_precision_score(labels, scores), rel=1e-12
    )


def test_ranking_scores_without_one_kind() -> None:
    scores, labels = drawn()
    assert math.isnan(losses.roc_auc(scores, torch.ones_like(labels)))
    assert losses.average_precision(scores, torch.zeros_like(labels)) == 0


def test_confusion_gives_macro_and_micro_scores() -> None:
    generator = torch.Generator().manual_seed(0)
    predicted, target = (torch.randint(4, (50,), generator=generator) for _ in range(2))
    counts = losses.confusion_counts(predicted, target, classes=4)
    for ours, theirs in ((losses.precision, sk.precision_score), (losses.recall, sk.recall_score)):
        assert float(ours(*counts).mean()) == pytest.approx(theirs(target, predicted, average="macro"), rel=1e-12)
    pooled = [part.sum() for part in counts]
    assert float(losses.f_score(*pooled)) == pytest.approx(sk.f1_score(target, predicted, average="micro"), rel=1e-12)
    macro = sk.fbeta_score(target, predicted, beta=2.0, average="macro")
    assert float(losses.f_score(*counts, beta=2.0).mean()) == pytest.approx(macro, rel=1e-12)
    binary = [part[1] for part in losses.confusion_counts(predicted % 2, target % 2, classes=2)]
    for ours, theirs in (
        (losses.matthews, sk.matthews_corrcoef),
        (losses.cohen_kappa, sk.cohen_kappa_score),
        (losses.balanced_accuracy, sk.balanced_accuracy_score),
        (losses.accuracy_score, sk.accuracy_score),
    ):
        assert float(ours(*binary)) == pytest.approx(theirs(target % 2, predicted % 2), rel=1e-12)


def test_scores_of_probabilities() -> None:
    generator = torch.Generator().manual_seed(0)
    p = torch.softmax(torch.randn(30, 3, generator=generator, dtype=torch.float64), 1)
    y = torch.randint(3, (30,), generator=generator)
    assert losses.log_score(p, y) == pytest.approx(sk.log_loss(y, p, labels=[0, 1, 2]), rel=1e-12)
    assert losses.brier_score(p, y) == pytest.approx(float((p - F.one_hot(y, 3)).square().sum(1).mean()), rel=1e-12)
    half = torch.stack([1 - p[:, 0], p[:, 0]], 1)
    assert losses.brier_score(half, (y == 0).long()) == pytest.approx(
        2 * sk.brier_score_loss(y == 0, p[:, 0]), rel=1e-12
    )
    assert losses.perplexity(p[torch.arange(30), y].log()) == pytest.approx(math.exp(losses.log_score(p, y)), rel=1e-12)
    assert losses.perplexity(torch.full((7,), -math.log(50.0))) == pytest.approx(50.0, rel=1e-5)


def test_scores_of_regression() -> None:
    x, _ = drawn()
    y = x + drawn(1)[0]
    assert losses.r_squared(x, y) == pytest.approx(sk.r2_score(y, x), rel=1e-12)
    adjusted = 1 - (1 - sk.r2_score(y, x)) * 59 / (59 - 4)
    assert losses.r_squared(x, y, predictors=4) == pytest.approx(adjusted, rel=1e-12)
    assert losses.pearson(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1], rel=1e-12)
    assert losses.spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, rel=1e-12)
    assert math.isnan(losses.pearson(x, torch.ones_like(y)))


def test_rejecting_the_least_sure_leaves_fewer_errors_for_an_informative_score() -> None:
    scores, labels = drawn(n=2000)
    coverage, error = losses.coverage_curve(scores, labels)
    assert coverage[-1] == 1
    assert float(error[-1]) == pytest.approx(1 - float(labels.double().mean()), rel=1e-12)
    assert float(error[200]) < 0.5 * float(error[-1])
    perfect = losses.coverage_curve(labels.double(), labels)[1]
    assert float(perfect[: int(labels.sum())].max()) == 0


def test_equal_mass_bins_hold_equally_many() -> None:
    generator = torch.Generator().manual_seed(0)
    p = torch.softmax(3 * torch.randn(300, 3, generator=generator, dtype=torch.float64), 1)
    y = torch.randint(3, (300,), generator=generator)
    confidence, predicted = p.max(1)
    order = confidence.argsort()
    gaps = (confidence - (predicted == y).double())[order].reshape(15, 20).mean(1).abs()
    assert float(losses.expected_calibration_error(p, y, equal_mass=True)) == pytest.approx(
        float(gaps.mean()), rel=1e-12
    )


@pytest.mark.parametrize("made", [losses.TemperatureScaling(), losses.VectorScaling(5), losses.MonotoneScaling()])
def test_calibrators_keep_the_order_of_the_classes_as_made(made: torch.nn.Module) -> None:
    logits = 4 * torch.randn(100, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(made(logits).argsort(1), logits.argsort(1))


@pytest.mark.parametrize("kind", ["temperature", "vector", "monotone"])
def test_calibrators_undo_overconfidence(kind: str) -> None:
    """Labels are drawn from softmax(z/2.5): the fitted calibrator finds the factor, or a curve of that slope."""
    generator = torch.Generator().manual_seed(0)
    z = 4 * torch.randn(2000, 5, generator=generator, dtype=torch.float64)
    y = torch.multinomial(torch.softmax(z / 2.5, 1), 1, generator=generator)[:, 0]
    made = {
        "temperature": losses.TemperatureScaling,
        "vector": lambda: losses.VectorScaling(5),
        "monotone": losses.MonotoneScaling,
    }[kind]().double()
    optimizer = torch.optim.LBFGS(made.parameters(), max_iter=30, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = (
            losses.h_calibration(torch.softmax(made(z), 1), y) if kind == "temperature" else F.cross_entropy(made(z), y)
        )
        value.backward()
        return value

    optimizer.step(closure)
    with torch.no_grad():
        before = float(losses.expected_calibration_error(torch.softmax(z, 1), y))
        after = float(losses.expected_calibration_error(torch.softmax(made(z), 1), y))
    assert before > 0.1
    assert after < 0.04
    if kind == "temperature":
        assert float(made.log_temperature.detach().exp()) == pytest.approx(2.5, rel=0.05)
