"""Batch sharpness follows λ + κ/𝔟 where the noise is known; rates and momenta follow from it in closed form."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
import torch

from families import BY_NAME
from measures.quadratics import quadratic
from theodolite.errors import ProblemError
from theodolite.measures.batch_size import batch_sharpness, scale_learning_rate, spiked_eigenvalue
from theodolite.operators import Hessian
from theodolite.problem import Problem
from theodolite.records import BatchSharpness


def record(sizes: list[int], sharpness: np.ndarray, **changes: object) -> BatchSharpness:
    values = {
        "sizes": np.array(sizes),
        "sharpness": sharpness,
        "converged": np.ones_like(sharpness, dtype=bool),
        "whole": 3.0,
        "whole_stderr": 0.1,
        "samples": 10_000,
        "size": 600,
    }
    return BatchSharpness(**(values | changes))


def test_the_golden_values_of_the_spiked_model() -> None:
    assert spiked_eigenvalue(3.0, variance=2.0, size=600, batch=400) == pytest.approx(4.0, rel=1e-12)
    assert spiked_eigenvalue(3.0, variance=2.0, size=600, batch=2000) == pytest.approx(3.2, rel=1e-12)
    assert spiked_eigenvalue(1e-9, variance=2.0, size=600, batch=400) == pytest.approx(3.4641, abs=1e-4)
    assert spiked_eigenvalue(1e-9, variance=2.0, size=600, batch=2000) == pytest.approx(1.5492, abs=1e-4)


def test_the_spiked_model_is_what_a_random_matrix_does() -> None:
    g, n, found = torch.Generator().manual_seed(0), 600, {}
    for batch in (400.0, 2000.0):
        tops = []
        for _ in range(6):
            noise = torch.randn(n, n, generator=g, dtype=torch.float64) * math.sqrt(2 / batch)
            noise = torch.triu(noise) + torch.triu(noise, 1).T
            noise[0, 0] += 3.0
            tops.append(float(torch.linalg.eigvalsh(noise)[-1]))
        found[batch] = np.mean(tops), np.std(tops, ddof=1) / math.sqrt(6)
    for batch, (mean, error) in found.items():
        exact = spiked_eigenvalue(3.0, variance=2.0, size=n, batch=batch)
        assert mean == pytest.approx(exact, abs=4 * error + 0.02)  # corrections of order 1/n


def test_the_law_is_recovered_within_its_errors() -> None:
    rng, deviations = np.random.default_rng(0), []
    sizes = [50, 100, 200, 400]
    for _ in range(200):
        inverse = (1 - np.array(sizes) / 10_000) / sizes
        found = record(sizes, (2.5 + 60.0 * inverse)[:, None] + 0.05 * rng.standard_normal((4, 12)))
        level, slope = found.law
        critical = found.critical_size
        deviations.append(
            [
                (level.value - 2.5) / level.stderr,
                (slope.value - 60) / slope.stderr,
                (critical.value - 24) / critical.stderr,
            ]
        )
    spread = np.std(deviations, axis=0)
    assert (np.abs(np.mean(deviations, axis=0)) < 4 * spread / math.sqrt(200)).all()
    assert ((spread > 0.75) & (spread < 1.2)).all()  # errors from 12 batches, enlarged where the line does not fit


def test_rates_are_two_over_the_predicted_sharpness() -> None:
    inverse = (1 - np.array([50, 100, 200]) / 10_000) / [50, 100, 200]
    found = record([50, 100, 200], np.repeat((2.5 + 60 * inverse)[:, None], 3, axis=1))
    assert found.effective_sizes == pytest.approx(1 / inverse)
    assert found.predicted(10_000).value == pytest.approx(2.5, rel=1e-9)
    assert found.predicted(25).value == pytest.approx(2.5 + 60 * (1 / 25 - 1e-4), rel=1e-9)
    assert found.max_learning_rate(25).value == pytest.approx(2 / found.predicted(25).value, rel=1e-12)
    assert "λ_B = 2.5" in repr(found)
    assert math.isnan(record([50, 100], np.ones((2, 3))).law[0].value)
    assert "NOT CONVERGED: 5 of 6" in repr(
        record([50, 100], np.ones((2, 3)), converged=np.array([[True] * 3, [False, True, True]]))
    )


def test_batches_are_drawn_without_replacement_and_the_whole_is_exact() -> None:
    """A mean of independent matrices: perturbation theory gives κ = Σ_j |E⟨v_j, (H_i − H) v₁⟩²|/(λ₁ − λ_j)."""
    g, n, count = torch.Generator().manual_seed(0), 60, 256
    base = torch.diag(torch.tensor([5.0] + [0.0] * (n - 1), dtype=torch.float64))
    noise = torch.randn(count, n, n, generator=g, dtype=torch.float64)
    hessians = base + (noise + noise.mT) / 2
    inputs = torch.arange(count)[:, None]
    model = quadratic([base], [torch.ones(n, dtype=torch.float64)]).model
    problem = Problem.from_loss(
        model,
        lambda model, index: 0.5 * torch.einsum("bij,i,j->b", hessians[index[:, 0]], model.theta, model.theta).mean(),
        list(inputs.split(64)),
    )
    mean = hessians.mean(0)
    values, vectors = torch.linalg.eigh(mean)
    rotated = vectors.T @ (hessians - mean) @ vectors[:, -1]
    spread = rotated.square().sum(0) / (count - 1)  # finite population: Var of a mean of B is spread/𝔟
    kappa = float((spread[:-1] / (values[-1] - values[:-1])).sum())
    found = batch_sharpness(problem, sizes=(16, 32, 96), batches=16, tol=1e-3)
    assert found.whole == pytest.approx(float(values[-1]), rel=1e-5)
    assert found.converged.all()
    level, slope = found.law
    assert abs(level.value - found.whole) < 4 * level.stderr
    assert abs(slope.value - kappa) < 4 * slope.stderr + 0.1 * kappa
    assert slope.value > 3 * slope.stderr
    assert found.seed == 0
    assert found.cost.products < 16 * 144 / 256 * 25 + 40


def test_each_batch_is_the_hessian_of_its_samples() -> None:
    problem = BY_NAME["mlp"].problem()
    found = batch_sharpness(problem, sizes=(4, 8, 12), batches=2, tol=1e-8, seed=5)
    part = problem.take(8, seed=5 + 1 + 1 * 2 + 1)
    assert found.sharpness[1, 1] == pytest.approx(float(torch.linalg.eigvalsh(Hessian(part).dense())[-1]), rel=1e-7)


def test_learning_rates_scale_exactly() -> None:
    assert scale_learning_rate(0.1, batch=64, to=256) == pytest.approx(0.4, rel=1e-15)
    assert scale_learning_rate(0.1, batch=64, to=256, rule="sqrt") == pytest.approx(0.2, rel=1e-15)
    assert scale_learning_rate(0.1, batch=64, to=16, rule="sqrt") == pytest.approx(0.05, rel=1e-15)
    assert scale_learning_rate(0.1, batch=64, to=256, cap=0.3) == 0.3
    with pytest.raises(ProblemError, match="positive batch sizes, found batch=0"):
        scale_learning_rate(0.1, batch=0, to=256)
    with pytest.raises(ProblemError, match=r"rule 'linear'.*found 'cubic'"):
        inspect.unwrap(scale_learning_rate)(0.1, batch=1, to=2, rule="cubic")


@pytest.mark.parametrize(
    "options", [{"sizes": (4, 8)}, {"sizes": (4, 8, 17)}, {"sizes": (0, 4, 8)}, {"sizes": (2, 4, 8), "batches": 1}]
)
def test_too_few_or_too_large_batches_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ProblemError, match=r"three or more batch sizes from 1 to 16 \(there are 17 samples\)"):
        batch_sharpness(BY_NAME["mlp"].problem(), **options)  # type: ignore[arg-type]


def test_a_size_is_one_to_all_samples() -> None:
    found = record([25, 50, 100, 200], np.random.default_rng(0).uniform(1, 2, (4, 3)))
    for size in (0, 0.5, found.samples + 1, math.nan):
        for ask in (found.predicted, found.max_learning_rate):
            with pytest.raises(
                ValueError, match=rf"Expected a batch of 1 to all {found.samples:,} samples, found size="
            ):
                ask(size)
    assert found.predicted(found.samples).value == pytest.approx(found.law[0].value)


def test_errors_of_the_law_have_two_degrees_less_than_sizes() -> None:
    found = record([25, 50, 100, 200], 1 + 1 / np.array([[25, 26, 27], [50, 51, 49], [100, 97, 99], [200, 210, 190]]))
    estimates = [*found.law, found.predicted(50), found.max_learning_rate(50), found.critical_size]
    assert [each.degrees for each in estimates] == [2] * 5


def test_coupled_samples_are_refused() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    problem = Problem(model, torch.nn.CrossEntropyLoss(), [(torch.randn(32, 4), torch.randint(3, (32,)))], mode="train")
    with pytest.raises(ProblemError, match=r"found them coupled.*mode='train'. Use mode='eval'"):
        batch_sharpness(problem, sizes=(4, 8, 16))
