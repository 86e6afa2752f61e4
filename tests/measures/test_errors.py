"""Errors against the truth: repeated surveys of fresh data, chunks of unequal size, and the bound of the algorithm."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from theodolite.measures import gradients, spectrum
from theodolite.problem import Problem
from theodolite.records import Estimate

SIZES = (100, 100, 100, 100, 20, 1)


class Point(nn.Module):
    """One parameter, so that the loss is a mean of squares."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros((), dtype=torch.float64))


def squares(samples: Tensor, sizes: tuple[int, ...]) -> Problem:
    return Problem.from_loss(
        Point(), lambda model, batch: (batch - model.weight).square().mean(), list(samples.split(sizes))
    )


def regression(g: torch.Generator, sizes: tuple[int, ...]) -> Problem:
    model = nn.Linear(4, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -1.0, 0.5, 2.0]]))
    inputs = torch.randn(sum(sizes), 4, generator=g, dtype=torch.float64) * torch.tensor([2.0, 1.0, 0.7, 0.4])
    targets = torch.zeros(sum(sizes), 1, dtype=torch.float64)
    return Problem(model, nn.MSELoss(), list(zip(inputs.split(sizes), targets.split(sizes), strict=True)))


def loss_and_norm(problem: Problem) -> list[Estimate]:
    record = gradients(problem)
    return [record.loss_estimate, record.norm_estimate]


def eigenvalue(problem: Problem) -> list[Estimate]:
    found = spectrum(problem, k=1, tol=1e-9)
    return [Estimate(found.max, float(found.data_stderr[0]))]


@pytest.mark.parametrize(("quantities", "repeats"), [(loss_and_norm, 250), (eigenvalue, 60)])
def test_the_error_is_the_spread_over_fresh_data(quantities: Callable[[Problem], list[Estimate]], repeats: int) -> None:
    g = torch.Generator().manual_seed(0)
    for found in zip(*(quantities(regression(g, SIZES)) for _ in range(repeats)), strict=True):
        values, squared = np.array([each.value for each in found]), np.array([each.stderr**2 for each in found])
        spread = math.sqrt(np.var(squared) / repeats + np.var(values) ** 2 * 2 / repeats)
        assert abs(squared.mean() - np.var(values)) < 4 * spread
        assert spread < 0.3 * np.var(values)


def test_a_small_last_chunk_does_not_swell_the_error() -> None:
    g = torch.Generator().manual_seed(0)
    found = [gradients(squares(torch.randn(201, generator=g, dtype=torch.float64), (200, 1))) for _ in range(100)]
    true = 2 / 201  # variance of a mean of squares of 201 standard normal samples
    squared = np.array([record.loss_stderr**2 for record in found])
    assert abs(squared.mean() - true) < 4 * squared.std() / math.sqrt(100)


def test_an_interval_from_two_chunks_covers_what_it_says() -> None:
    repeats, sizes, g = 200, (64, 64), torch.Generator().manual_seed(1)
    covered = 0
    for _ in range(repeats):
        record = gradients(squares(torch.randn(sum(sizes), generator=g, dtype=torch.float64), sizes))
        lower, upper = record.loss_estimate.interval(0.95)
        covered += lower <= 1 <= upper
        assert record.context["chunks"] == len(sizes)
    assert abs(covered / repeats - 0.95) < 4 * math.sqrt(0.95 * 0.05 / repeats)


@pytest.mark.filterwarnings("ignore::theodolite.errors.NotConvergedWarning")
def test_the_bound_of_small_eigenvalues_holds_beside_a_large_one() -> None:
    entries = torch.cat([torch.tensor([1000.0]), torch.linspace(-0.02, 0.5, 59)]).double()

    class Bowl(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(60, dtype=torch.float64))

    for seed in range(4):
        problem = Problem.from_loss(Bowl(), lambda model, _: (0.5 * entries * model.w**2).sum(), [torch.zeros(1)])
        found = spectrum(problem, k=1, which="smallest", tol=1e-2, seed=seed)
        assert found.eigenvectors is not None
        value, vector = found.eigenvalues[0], found.eigenvectors[0]
        gap = np.linalg.norm(entries.numpy() * vector - value * vector)
        assert found.radius == pytest.approx(1000.0, rel=1e-3)
        assert found.error[0] == pytest.approx(gap, rel=1e-6)
        assert np.abs(entries.numpy() - value).min() <= found.error[0]
