"""Sharpness over widths: constant under μP, not under the neural tangent parametrisation."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from theodolite.errors import ProblemError
from theodolite.measures.stability import stability
from theodolite.measures.transfer import Make, transfer
from theodolite.problem import Problem
from theodolite.records import Transfer

INPUTS, SAMPLES = 8, 48


class Network(nn.Module):
    """h¹ = W⁰x/√D, h² = W¹φ(h¹)/√N, f = W²φ(h²)/(γ√N), all weights standard normal: γ is the one switch."""

    def __init__(self, width: int, *, gamma: float, seed: int) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        sizes = (INPUTS, width, width, 1)
        self.weights = nn.ParameterList(torch.randn(b, a, generator=g, dtype=torch.float64) for a, b in pairwise(sizes))
        self.scale = gamma

    def forward(self, x: Tensor) -> Tensor:
        for index, weight in enumerate(self.weights):
            x = (x if index == 0 else torch.tanh(x)) @ weight.T / math.sqrt(weight.shape[1])
        return x / self.scale


def maker(parametrisation: str, *, seed: int = 0) -> Make:
    g = torch.Generator().manual_seed(17)
    inputs = torch.randn(SAMPLES, INPUTS, generator=g, dtype=torch.float64)
    targets = torch.tanh(inputs @ torch.randn(INPUTS, 1, generator=g, dtype=torch.float64))
    batches = [(inputs, targets)]

    def make(width: int, rate: float) -> tuple[Problem, Optimizer]:
        gamma = math.sqrt(width) if parametrisation == "mup" else 1.0
        model = Network(width, gamma=gamma, seed=seed)
        return Problem(model, nn.MSELoss(), batches), SGD(model.parameters(), lr=rate * gamma**2)

    return make


def by_hand(losses: list[list[float]], rates: list[float]) -> Transfer:
    values = np.array(losses)[:, :, None]
    return Transfer(
        axis="width",
        sizes=np.array([8, 16, 32]),
        learning_rates=np.array(rates),
        steps=np.array([10]),
        losses=values,
        sharpnesses=values,
        sharpness_stderrs=values,
        ratios=np.array([[1.0, 2.0], [1.0, 4.0], [1.0, 6.0]])[:, :, None],
        converged=True,
    )


def test_consistency_and_gap_by_hand() -> None:
    found = by_hand([[0.1, 0.5], [0.5, 0.1], [0.2, math.nan]], [0.1, 0.8])
    assert found.consistency[:, 0] == pytest.approx([0.0, 2 / 4])
    assert found.best_learning_rates.tolist() == [0.1, 0.8, 0.1]
    assert found.gap == pytest.approx(3.0)
    assert math.isnan(by_hand([[0.1, 0.5], [math.nan, math.inf], [0.2, 0.1]], [0.1, 0.8]).gap)
    assert repr(found).startswith("Transfer(width 8, 16, 32): C = 0 to 0.5 at the end")


def test_readings_are_those_of_the_runs() -> None:
    found = transfer(maker("ntp"), sizes=(4, 6), learning_rates=(0.1, 0.3), steps=(0, 2), tol=1e-8)
    problem, optimizer = maker("ntp")(6, 0.3)
    for _ in range(2):
        optimizer.zero_grad()
        x, y = problem.batches.first()
        nn.functional.mse_loss(problem.model(x), y).backward()
        optimizer.step()
    exact = stability(problem, optimizer, tol=1e-8)
    assert found.losses[1, 1, 1] == pytest.approx(exact.loss, rel=1e-10)
    assert found.sharpnesses[1, 1, 1] == pytest.approx(exact.sharpness, rel=1e-6)
    assert found.ratios[1, 1, 1] == pytest.approx(exact.ratio, rel=1e-6)
    assert found.ratios[0, 0, 0] == pytest.approx(0.05 * found.sharpnesses[0, 0, 0], rel=1e-10)
    assert found.converged


def test_a_run_that_diverges_is_a_reading() -> None:
    found = transfer(maker("ntp"), sizes=(4,), learning_rates=(1e3,), steps=(0, 80))
    assert not np.isfinite(found.losses[0, 0, 1])
    assert np.isnan(found.sharpnesses[0, 0, 1])
    assert math.isnan(found.gap)
    assert np.isnan(found.consistency).all()


@pytest.mark.parametrize("options", [{"sizes": ()}, {"steps": (3, 1)}, {"steps": (-1, 1)}, {"learning_rates": ()}])
def test_what_makes_no_sense_is_refused(options: dict[str, tuple[int, ...]]) -> None:
    usual = {"sizes": (4,), "learning_rates": (0.1,), "steps": (0,)}
    with pytest.raises(ProblemError, match="Expected sizes, learning rates, and ascending steps"):
        transfer(maker("ntp"), **(usual | options))  # type: ignore[arg-type]


@pytest.mark.slow
def test_sharpness_is_consistent_across_widths_under_mup_and_not_under_ntp() -> None:
    widths, steps = (32, 64, 128, 256), (0, 50, 100)
    found = {
        each: transfer(maker(each), sizes=widths, learning_rates=(0.5,), steps=steps, tol=1e-3)
        for each in ("mup", "ntp")
    }
    consistency = {each: record.consistency[0, 1:] for each, record in found.items()}
    assert (consistency["mup"] < 0.06).all(), consistency
    assert (consistency["ntp"] > 2 * consistency["mup"]).all(), consistency
