"""Coherence and stability of SGD against dense transfer operators, golden values and simulated products."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import eigsh
from torch import nn

from families import BY_NAME
from theodolite.errors import OperatorError, ProblemError
from theodolite.measures import gradients, spectrum
from theodolite.measures.coherence import coherence
from theodolite.operators import GGN
from theodolite.problem import Problem
from theodolite.records import Coherence


def of_factors(factors: list[np.ndarray]) -> Coherence:
    rows = np.concatenate(factors)
    return Coherence(gram=rows @ rows.T, rows=np.array([len(each) for each in factors]), loss=0.0, size=rows.shape[1])


def dense_radius(factors: list[np.ndarray], rate: float, batch: float) -> float:
    """Spectral radius of the d²×d² transfer matrix, on the span of all rows."""
    basis = np.linalg.svd(np.concatenate(factors), full_matrices=False)
    span = basis[2][basis[1] > 1e-9 * basis[1][0]]
    hessians = [(each @ span.T).T @ (each @ span.T) for each in factors]
    n, m = len(factors), len(span)
    J = np.eye(m) - rate * sum(hessians) / n
    T = np.kron(J, J) + (rate / n) ** 2 * (n / batch - 1) * sum(np.kron(H, H) for H in hessians)
    return float(np.abs(np.linalg.eigvals(T)).max())


def test_the_golden_value_flips_at_four_over_the_rate() -> None:
    rate = 0.3
    for h, unstable in ((3.99 / rate, False), (4.01 / rate, True)):
        found = of_factors([math.sqrt(h) * np.eye(4)[i : i + 1] for i in range(4)])
        assert found.coherence == pytest.approx(1.0, rel=1e-12)
        assert found.sharpness == pytest.approx(h / 4, rel=1e-12)
        assert (found.bound(2) < rate) is unstable
        assert (found.radius(rate, batch=2) > 1) is unstable
        assert found.bound(4) == pytest.approx(8 / h, rel=1e-12)
        assert found.max_learning_rate(batch=2) == pytest.approx(4 / h, rel=1e-3)


def test_identical_samples_have_the_largest_coherence() -> None:
    row = np.random.default_rng(0).standard_normal((1, 5))
    found = of_factors([row] * 7)
    assert found.coherence == pytest.approx(7.0, rel=1e-9)
    assert found.radius(1.9 / found.sharpness, batch=7) == pytest.approx(0.9**2, rel=1e-9)


@pytest.mark.parametrize("seed", range(8))
def test_the_radius_is_that_of_the_dense_operator_and_the_bound_suffices(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, d = int(rng.integers(2, 7)), int(rng.integers(2, 6))
    factors = [rng.standard_normal((int(rng.integers(1, 3)), d)) for _ in range(n)]
    found = of_factors(factors)
    hessians = [each.T @ each for each in factors]
    exact = np.sqrt([[np.trace(a @ b) for b in hessians] for a in hessians])
    assert found.interactions == pytest.approx(exact, rel=1e-9)
    assert found.sample_sharpness == pytest.approx([np.linalg.eigvalsh(H)[-1] for H in hessians], rel=1e-9)
    assert found.sharpness == pytest.approx(np.linalg.eigvalsh(sum(hessians) / n)[-1], rel=1e-9)
    for batch in (1, 1.5, n):
        for rate in (0.3 / found.sharpness, 1.2 / found.sharpness, 3 / found.sharpness):
            assert found.radius(rate, batch=batch) == pytest.approx(dense_radius(factors, rate, batch), rel=1e-8)
        assert found.radius(1.001 * found.bound(batch), batch=batch) > 1
        assert found.radius(0.999 * found.max_learning_rate(batch=batch), batch=batch) <= 1


def test_random_products_grow_as_the_radius_says() -> None:
    rng = np.random.default_rng(3)
    factors = [rng.standard_normal((1, 2)) for _ in range(4)]
    hessians = np.stack([each.T @ each for each in factors])
    found, rate, batch, runs, steps = of_factors(factors), 0.25, 2, 200_000, 12
    state = np.tile(np.eye(2)[0], (runs, 1))
    sizes = []
    for _ in range(steps):
        taken = rng.random((runs, 4)) < batch / 4
        state = state - rate / batch * np.einsum("ri,ijk,rk->rj", taken.astype(float), hessians, state)
        sizes.append(float(np.square(state).sum(axis=1).mean()))
    growth = (sizes[-1] / sizes[5]) ** (1 / (steps - 6))
    assert growth == pytest.approx(found.radius(rate, batch=batch), rel=0.03)


@pytest.mark.parametrize(
    "name",
    [
        "mlp-weighted",
        "transformer",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("mlp", "mlp-squared", "mlp-sum")),
    ],
)
def test_the_mean_of_the_samples_is_the_ggn(name: str) -> None:
    problem = BY_NAME[name].problem()
    found = coherence(problem)
    exact = torch.linalg.eigvalsh(GGN(problem).dense()).flip(0).numpy()
    own = np.linalg.eigvalsh(found.gram)[::-1] / found.samples
    shared = min(len(exact), len(own))
    assert found.samples == problem.samples
    assert own[:shared] == pytest.approx(exact[:shared], abs=1e-9 * exact[0])
    assert found.loss == pytest.approx(problem.loss(), rel=1e-12)
    assert 1 - 1e-9 <= found.coherence <= found.samples + 1e-9
    assert found.seed is None


def test_the_ggn_of_a_squared_error_has_the_spectrum_of_the_ntk_over_n() -> None:
    """L = ½ mean (f − y)²: eig(GGN) = eig(Θ/N) with Θ = JJᵀ; the mean of squares doubles both."""
    model, batches = BY_NAME["mlp-squared"].model_and_data()
    outputs = nn.Sequential(model, nn.Linear(3, 1).double())
    inputs = torch.cat([batch[0] for batch in batches])
    problem = Problem(outputs, nn.MSELoss(), [(inputs, torch.zeros(len(inputs), 1, dtype=torch.float64))])
    rows = []
    for x in inputs:
        parts = torch.autograd.grad(outputs(x[None])[0, 0], list(outputs.parameters()))
        rows.append(torch.cat([part.reshape(-1) for part in parts]))
    theta = torch.stack(rows) @ torch.stack(rows).T
    kernel = torch.linalg.eigvalsh(theta / len(inputs)).flip(0).numpy()
    exact = torch.linalg.eigvalsh(GGN(problem).dense()).flip(0).numpy()[: len(inputs)]
    assert exact / 2 == pytest.approx(kernel, abs=1e-9 * kernel[0])
    assert np.linalg.eigvalsh(coherence(problem).gram)[::-1] / (2 * len(inputs)) == pytest.approx(
        kernel, abs=1e-9 * kernel[0]
    )


def test_a_sample_of_the_data_is_drawn_where_there_is_more() -> None:
    problem = BY_NAME["mlp"].problem()
    found = coherence(problem, samples=6, seed=2)
    assert found.samples == 6
    assert found.seed == 2
    assert found.sharpness == pytest.approx(
        float(torch.linalg.eigvalsh(GGN(problem.take(6, seed=2)).dense())[-1]), rel=1e-9
    )
    for ask in (
        lambda: found.bound(2),
        lambda: found.radius(0.1, batch=2),
        lambda: found.max_learning_rate(batch=2),
    ):
        with pytest.raises(
            ValueError, match=rf"found 6 of {problem.samples}. Measure it with samples={problem.samples}"
        ):
            ask()
    whole = coherence(problem, samples=problem.samples)
    assert whole.radius(0.1, batch=problem.samples) < whole.radius(0.1, batch=1)
    with pytest.raises(OperatorError, match=r"memory cap of 2 vectors of 79 parameters, found 4 after"):
        coherence(BY_NAME["mlp"].problem(memory=2 * 79 * 8 + 1))


def test_coupled_samples_and_unknown_outputs_are_refused() -> None:
    with pytest.raises(ProblemError, match="BatchNorm"):
        coherence(BY_NAME["convnet"].problem(mode="train"))
    with pytest.raises(OperatorError, match="Problem\\(model, criterion, batches\\)"):
        coherence(BY_NAME["from-loss"].problem())


@pytest.mark.parametrize("batch", [0, -1, 4.5, math.nan])
def test_a_batch_beyond_the_data_is_refused(batch: float) -> None:
    found = of_factors([np.eye(4)[i : i + 1] for i in range(4)])
    for ask in (found.bound, lambda batch: found.radius(0.1, batch=batch)):
        with pytest.raises(ValueError, match=r"at most all 4 samples, found batch="):
            ask(batch)


def test_directions_that_hardly_curve_are_no_part_of_the_span() -> None:
    factors = [np.diag([1.0, 0.8, 1e-4])[i : i + 1] for i in range(3)]
    found = of_factors(factors)
    assert found.radius(0.5, batch=3) == pytest.approx((1 - 0.5 * 0.64 / 3) ** 2, rel=1e-9)


def test_growth_that_does_not_converge_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    found = of_factors([rng.standard_normal((1, 12)) for _ in range(12)])
    monkeypatch.setattr("theodolite.records.coherence.eigsh", partial(eigsh, maxiter=1, ncv=2))
    with pytest.raises(
        OperatorError, match=r"learning_rate=0.01, batch=2 from matrices of 12 × 12, found no convergence"
    ):
        found.radius(0.01, batch=2)


def test_a_record_without_rows_has_nothing_to_say() -> None:
    empty = Coherence(gram=np.zeros((0, 0)), rows=np.zeros(0, dtype=np.int64), loss=0.0, size=3)
    assert math.isnan(empty.coherence)
    assert empty.sharpness == 0
    assert empty.interactions.shape == (0, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sure_predictions_are_not_taken_for_a_criterion_that_curves_downwards(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Linear(6, 3, dtype=dtype)
    with torch.no_grad():
        model.weight.copy_(torch.cat([8 * torch.eye(3), torch.zeros(3, 3)], dim=1))
    targets = torch.arange(24) % 3
    inputs = torch.nn.functional.one_hot(targets, 6).to(dtype) * 3 + 0.1 * torch.randn(24, 6, dtype=dtype)
    found = coherence(Problem(model, nn.CrossEntropyLoss(), [(inputs, targets)]))
    assert 0 <= found.sharpness < 1e-3


@pytest.mark.parametrize("name", ["mlp", "mlp-squared"])
def test_the_error_of_the_sharpness_is_the_jackknife_over_samples(name: str) -> None:
    problem = BY_NAME[name].problem()
    found = coherence(problem)
    exact = spectrum(problem.replace(microbatch=1), operator="ggn", k=1, tol=1e-9)
    assert found.sharpness_estimate.value == pytest.approx(exact.max, rel=1e-9)
    assert found.sharpness_estimate.stderr == pytest.approx(float(exact.data_stderr[0]), rel=1e-6)
    assert found.sharpness_estimate.degrees == found.samples - 1
    assert found.loss_stderr == pytest.approx(gradients(problem).loss_stderr, rel=1e-9)
    assert "(of these samples)" in repr(found)
