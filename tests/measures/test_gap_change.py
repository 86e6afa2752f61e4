"""Changes of the gap to the test loss are those that all possible runs of SGD on per-sample quadratics have."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from families import FAMILIES, Family
from measures.test_gradients_gram import per_sample
from theodolite.errors import ProblemError
from theodolite.measures import gap_change
from theodolite.problem import Problem
from theodolite.records import GapChange, Log, differences, read

SIZE, SAMPLES = 3, 4


class Point(nn.Module):
    """Parameters alone."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([0.7, -0.4, 0.9], dtype=torch.float64))


def quadratics() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ℓ_i = ½(θ − c_i)ᵀA_i(θ − c_i)."""
    rng = np.random.default_rng(0)
    halves = rng.standard_normal((SAMPLES, SIZE, SIZE))
    return halves @ halves.transpose(0, 2, 1), rng.standard_normal((SAMPLES, SIZE)), np.array([0.7, -0.4, 0.9])


def problem_of(A: np.ndarray, c: np.ndarray) -> Problem:
    def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        far = model.theta - batch[1]
        return 0.5 * torch.einsum("bi,bij,bj->b", far, batch[0], far).mean()

    return Problem.from_loss(Point(), loss, [(torch.from_numpy(A), torch.from_numpy(c))])


def exact() -> tuple[float, float, float]:
    """tr Σ, ½⟨𝒢, ∇tr Σ⟩ and tr(HΣ) of the quadratics, Σ with N − 1."""
    A, c, theta = quadratics()
    g = np.einsum("iab,ib->ia", A, theta - c)
    G, H = g.mean(axis=0), A.mean(axis=0)
    S = np.cov(g.T)
    slope = (np.einsum("a,iab,ib->", G, A, g) - SAMPLES * G @ H @ G) / (SAMPLES - 1)
    return float(np.trace(S)), float(slope), float(np.trace(H @ S))


def test_combinations_have_the_exact_means() -> None:
    """Signs are independent, so that every ε_iε_j averages to nothing."""
    A, c, _ = quadratics()
    found = gap_change(problem_of(A, c), probes=300)
    for estimate, value in zip(
        (found.covariance_trace, found.noise_slope, found.noise_curvature), exact(), strict=True
    ):
        assert abs(estimate.value - value) < 4 * estimate.stderr
        assert estimate.stderr < 0.2 * abs(value) or value < 0.2


@pytest.mark.parametrize(
    "family", [f for f in FAMILIES if f.name in ("mlp", "mlp-weighted", "transformer")], ids=lambda f: f.name
)
def test_one_combination_equals_the_oracle(family: Family) -> None:
    """Of a network: z from dense rows, and the slope of ‖z‖² along the gradient by differences."""
    _, rows = per_sample(family)
    problem = family.problem()
    found = gap_change(problem, probes=2, seed=1)
    count = len(rows)
    signs = np.random.default_rng(1).choice([-1.0, 1.0], size=(2, count))
    z = (signs - signs.mean(axis=1, keepdims=True)) @ rows / np.sqrt(count - 1)
    np.testing.assert_allclose(found.squares, np.square(z).sum(axis=1), rtol=1e-9)
    assert found.gradient_square == pytest.approx(float(problem.gradient().square().sum()), rel=1e-9)
    size = 1e-4
    ends = [gap_change(_moved(family, sign * size), probes=2, seed=1).squares for sign in (1, -1)]
    np.testing.assert_allclose(found.slopes, (ends[0] - ends[1]) / (4 * size), rtol=1e-5, atol=1e-7)


def _moved(family: Family, size: float) -> Problem:
    model, batches = family.model_and_data()
    problem = family.problem_of(model, batches)
    parts = problem.layout.unflatten(problem.gradient())
    named = dict(model.named_parameters())
    with torch.no_grad():
        for name, part in zip(problem.layout.names, parts, strict=True):
            named[name] += size * part
    return family.problem_of(model, batches)


def run(start: np.ndarray, batches: tuple[tuple[int, ...], ...], rate: float) -> float:
    """Mean loss after a step on each batch."""
    A, c, _ = quadratics()
    theta = start.copy()
    for batch in batches:
        picked = list(batch)
        theta -= rate * np.einsum("iab,ib->ia", A[picked], theta - c[picked]).mean(axis=0)
    far = theta - c
    return float(0.5 * np.einsum("ia,iab,ib->", far, A, far) / SAMPLES)


@pytest.mark.parametrize(("batch", "steps"), [(1, 2), (2, 2), (1, 3)])
def test_the_second_order_is_that_of_all_runs(batch: int, steps: int) -> None:
    """Batches are drawn independently from the samples, whose own Σ has N in its denominator."""
    _, _, start = quadratics()
    trace, slope, curvature = (value * (SAMPLES - 1) / SAMPLES for value in exact())
    record = GapChange(
        squares=np.array([trace]), slopes=np.array([slope]), curvatures=np.array([curvature]),
        gradient_square=1.0, samples=SAMPLES, size=SIZE,
    )  # fmt: skip
    rate = 1e-4
    draws = list(itertools.product(range(SAMPLES), repeat=batch * steps))
    fresh = [tuple(zip(*[iter(draw)] * batch, strict=True)) for draw in draws]
    with_fresh = np.mean([run(start, each, rate) for each in fresh])
    same = np.mean([run(start, (each,) * steps, rate) for each in itertools.product(range(SAMPLES), repeat=batch)])
    whole = np.mean([run(start, (draw,) * steps, rate) for draw in draws])
    assert with_fresh - same == pytest.approx(record.fresh_batches(rate, batch=batch, steps=steps).value, rel=0.03)
    assert with_fresh - whole == pytest.approx(record.whole_batch(rate, batch=batch, steps=steps).value, rel=0.03)
    gaps = [_one_step(start, each, rate) for each in itertools.product(range(SAMPLES), repeat=batch)]
    assert np.mean(gaps) == pytest.approx(record.gap_rate(rate, batch=batch).value, rel=0.03)


def _one_step(start: np.ndarray, batch: tuple[int, ...], rate: float) -> float:
    """Change of the test loss less that of the batch's own loss."""
    A, c, _ = quadratics()
    picked = list(batch)
    after = start - rate * np.einsum("iab,ib->ia", A[picked], start - c[picked]).mean(axis=0)

    def losses(theta: np.ndarray) -> np.ndarray:
        return 0.5 * np.einsum("ia,iab,ib->i", theta - c, A, theta - c)

    change = losses(after) - losses(start)
    return float(change.mean() - change[picked].mean())


def test_too_little_is_refused_and_a_log_keeps_it(tmp_path) -> None:  # type: ignore[no-untyped-def]
    A, c, _ = quadratics()
    with pytest.raises(ProblemError, match="found 1 and 4"):
        gap_change(problem_of(A, c), probes=1)
    found = gap_change(problem_of(A, c), step=1)
    with Log(tmp_path / "run") as log:
        log.append(found)
    assert not differences(read(tmp_path / "run").records[0], found, ignore={"context"})
