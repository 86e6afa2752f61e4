"""The survey's catalogue is complete, and what it says of ranges, gradients and minimisers is measured."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from theodolite import losses

ROWS = {row.name: row for row in losses.catalogue()}
SURVEYED = """
mean absolute error, mean squared error, root mean squared error, mean bias error, relative absolute error, relative squared error,
mean absolute percentage error, mean squared log error, Huber, smooth L1, log-cosh, quantile, Charbonnier, Poisson,
Gaussian likelihood, R², adjusted R², Pearson, Spearman, binary cross-entropy, cross-entropy, focal, hinge, squared hinge,
multi-class hinge, KL divergence, accuracy, balanced accuracy, precision, recall, F score, Matthews correlation, Cohen's κ, ROC-AUC,
average precision, log-loss, Brier, expected calibration error, Dice, Tversky, Jaccard, IoU, GIoU, DIoU, CIoU, total variation,
structural similarity, PSNR, pairwise contrastive, triplet, InfoNCE, circle, CTC, perplexity,
BLEU, ROUGE
"""


def test_every_entry_of_the_survey_has_a_function() -> None:
    wanted = {name.strip() for name in SURVEYED.replace("\n", " ").split(",")}
    assert wanted <= set(ROWS)
    assert len(ROWS) == len(losses.catalogue())
    for row in ROWS.values():
        assert callable(getattr(losses, row.function)), row.name


ELEMENTWISE = {
    "mean absolute error": F.l1_loss,
    "Huber": F.huber_loss,
    "smooth L1": F.smooth_l1_loss,
    "log-cosh": losses.log_cosh,
    "Charbonnier": losses.charbonnier,
    "mean squared error": F.mse_loss,
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_gradient_bounds_of_errors_are_those_measured(name: str) -> None:
    error = torch.logspace(-3, 4, 200, dtype=torch.float64).requires_grad_()
    values = ELEMENTWISE[name](error, torch.zeros_like(error), reduction="sum")
    (slopes,) = torch.autograd.grad(values, error)
    said = ROWS[name].gradient
    if said == "∞":
        assert float(slopes.max()) > 1e3
    else:
        assert float(slopes.max()) <= {"δ": 1.0}.get(said, 1.0) + 1e-12
        assert float(slopes.max()) > 0.99


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mean absolute error", 2.0),  # median of 1, 2, 9
        ("mean squared error", 4.0),
        ("mean squared log error", (2 * 3 * 10) ** (1 / 3) - 1),
        ("mean absolute percentage error", 1.0),
    ],
)
def test_minimisers_over_a_skewed_sample(name: str, expected: float) -> None:
    y = torch.tensor([1.0, 2.0, 9.0], dtype=torch.float64)
    grid = torch.linspace(0.5, 10, 9501, dtype=torch.float64)
    function = getattr(losses, ROWS[name].function)
    totals = torch.stack([function(grid, v.expand_as(grid), reduction="none") for v in y]).sum(0)
    assert float(grid[totals.argmin()]) == pytest.approx(expected, abs=2e-3)


def test_cross_entropy_gradient_reaches_its_bound() -> None:
    z = torch.tensor([[-50.0, 50.0]], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(F.cross_entropy(z, torch.tensor([0])), z)
    assert float(gradient.norm()) == pytest.approx(math.sqrt(2))


def test_boxes_stay_in_their_ranges() -> None:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(2, 500, 2, 2, generator=generator, dtype=torch.float64) * 10
    a, b = (torch.cat([c.amin(1), c.amax(1) + 0.01], 1) for c in corners)
    tops = {"iou": 1.0, "giou": 2.0, "diou": 2.0, "ciou": 3.0}
    for kind, top in tops.items():
        values: Tensor = losses.box_overlap(a, b, kind=kind, reduction="none")
        assert float(values.min()) >= 0
        assert 0.9 < float(values.max()) <= top
