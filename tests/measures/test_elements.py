"""Moments and histograms of the entries of per-sample gradients are those of the dense matrix of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from families import BY_NAME, FAMILIES, Family
from measures.test_gradients_gram import per_sample
from records.published_jackknife import published
from theodolite.errors import OperatorError, ProblemError
from theodolite.measures import elements, gradients
from theodolite.operators.diagonal import ggn_diagonal
from theodolite.problem import Problem
from theodolite.records import Log, differences, read
from theodolite.records.overshoot import overshoot

all_families = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


def moving(rows: np.ndarray) -> np.ndarray:
    square, rounding = np.square(rows).mean(axis=0), 16 * np.finfo(np.float64).eps
    return (rows.var(axis=0) > rounding * square) & (square > rounding**2 * square.mean())


@all_families
def test_moments_are_those_of_the_dense_rows(family: Family) -> None:
    _, rows = per_sample(family)
    problem = family.problem()
    found = elements(problem, update=torch.ones(problem.n), start=torch.zeros(problem.n))
    live, mean, spread = moving(rows), rows.mean(axis=0), rows.var(axis=0)
    places = [*problem.layout.slices.values(), slice(0, problem.n)]
    for index, where in enumerate(places):
        keep = live[where]
        if keep.any():
            signal = (mean[where][keep] ** 2 / spread[where][keep]).mean()
            assert found.gsnr[index] == pytest.approx(signal, rel=1e-6)
            assert found.evidence[index] == pytest.approx(1 - (len(rows) - 1) * signal, rel=1e-6)
        else:
            assert np.isnan(found.gsnr[index])
        if index < len(found.sizes):
            assert found.gradient_norms[index] == pytest.approx(np.linalg.norm(mean[where]), rel=1e-9, abs=1e-14)
            assert found.still[index] == (~keep).sum()
    np.testing.assert_allclose(np.square(found.update_norms), found.sizes)
    np.testing.assert_allclose(found.distances, found.parameter_norms)
    assert np.square(found.distances).sum() == pytest.approx(float(_flat(problem) @ _flat(problem)))


@all_families
def test_histograms_count_every_entry(family: Family) -> None:
    _, rows = per_sample(family)
    problem = family.problem()
    found = elements(problem)
    for index, where in enumerate(problem.layout.slices.values()):
        part = rows[:, where].ravel()
        np.testing.assert_array_equal(found.counts[index].sum(), part.size)
        expected = np.bincount(np.searchsorted(found.edges, part), minlength=found.counts.shape[1])
        # An entry may lie within rounding of an edge.
        assert np.abs(expected - found.counts[index]).sum() <= 2 + 1e-3 * part.size
    bins = [np.searchsorted(found.joint_edges, values) for values in (rows, _flat(problem).numpy())]
    joint = np.zeros_like(found.joint)
    np.add.at(joint, (bins[0].ravel(), np.broadcast_to(bins[1], rows.shape).ravel()), 1)
    assert np.abs(joint - found.joint).sum() <= 2 + 1e-3 * rows.size
    assert found.histogram.sum() == rows.size


def _flat(problem: Problem) -> torch.Tensor:
    return problem.layout.flatten(problem.point().leaves).detach()


def test_errors_leave_groups_of_samples_out() -> None:
    family = BY_NAME["mlp"]
    _, rows = per_sample(family)
    problem = family.problem()
    h = ggn_diagonal(problem) + 1.0
    found = elements(problem, curvature=h)
    groups = np.arange(len(rows)) % 8

    def statistics(part: np.ndarray) -> tuple[float, float, float]:
        mean, spread = part.mean(axis=0), part.var(axis=0)
        signal = (mean**2 / spread)[moving(part)].mean()
        return signal, 1 - (len(part) - 1) * signal, float((np.square(part).mean(axis=0) / h.numpy()).sum())

    without = np.array([statistics(rows[groups != group]) for group in range(8)])
    weights = np.bincount(groups).astype(float)
    for index, estimate in enumerate((found.mean_gsnr, found.early_stopping, found.takeuchi_diagonal)):
        assert estimate.value == pytest.approx(statistics(rows)[index], rel=1e-6)
        assert estimate.stderr == pytest.approx(published(without[:, index], estimate.value, weights), rel=1e-5)
        assert estimate.degrees == 7
    tight = elements(family.problem(memory=1))
    assert np.isnan(tight.mean_gsnr.stderr)
    assert tight.mean_gsnr.value == pytest.approx(found.mean_gsnr.value)
    assert "memory cap" in tight.notes[0]


def test_evidence_against_training_turns_positive_at_the_noise_floor() -> None:
    """Of pure noise Var(ḡ_j) = Var_j/B, so that the evidence is zero on average; with a signal it is negative."""
    torch.manual_seed(0)
    model = nn.Linear(40, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    inputs, targets = torch.randn(400, 40, dtype=torch.float64), torch.randn(400, 1, dtype=torch.float64)
    noise = elements(Problem(model, nn.MSELoss(), [(inputs, targets)])).early_stopping
    assert abs(noise.value) < 3 * np.sqrt(2 / 40)  # of a mean of 40 squares of normals
    signal = elements(Problem(model, nn.MSELoss(), [(inputs, inputs[:, :1])])).early_stopping
    assert signal.value < -3


def test_epsilon_keeps_what_has_no_variance() -> None:
    inputs = torch.ones(6, 2, dtype=torch.float64)
    problem = Problem(nn.Linear(2, 1).double(), nn.L1Loss(), [(inputs, torch.full((6, 1), 9.0, dtype=torch.float64))])
    still = elements(problem)
    assert still.still.tolist() == [2, 1]
    assert np.isnan(still.mean_gsnr.value)
    assert elements(problem, epsilon=0.5).mean_gsnr.value == pytest.approx(1 / 0.5)
    assert still.share_below(0.5) == {"weight": 0.0, "bias": 0.0}
    assert still.share_below(2.0) == {"weight": 1.0, "bias": 1.0}


def test_a_gradient_that_is_not_a_number_is_a_reading() -> None:
    """√ has no slope at 0, where a finite loss may lie."""

    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.good = nn.Parameter(torch.ones(2, dtype=torch.float64))
            self.bad = nn.Parameter(torch.zeros(1, dtype=torch.float64))

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return (inputs @ self.good + (0 * self.bad).square().sqrt())[:, None]

    inputs = torch.randn(9, 2, dtype=torch.float64)
    problem = Problem(Root(), nn.MSELoss(), [(inputs, inputs[:, :1])])
    found = elements(problem)
    assert np.isfinite(found.gsnr).tolist() == [True, False, False]
    assert np.isfinite(found.evidence).tolist() == [True, False, False]
    assert np.isfinite(found.gradient_norms).tolist() == [True, False]
    assert found.still.tolist() == [0, 0]


def test_what_makes_no_sense_is_refused() -> None:
    problem = BY_NAME["mlp"].problem()
    with pytest.raises(ProblemError, match=r"found shape \(2,\)"):
        elements(problem, update=torch.ones(2))
    with pytest.raises(ProblemError, match="at least 2 samples for variances, found 1"):
        elements(problem.take(1))
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with pytest.raises(OperatorError, match="BatchNorm on batch statistics"):
        elements(Problem(model, nn.MSELoss(), [(torch.randn(4, 2), torch.randn(4, 2))], mode="train"))


def test_a_log_keeps_it(tmp_path) -> None:  # type: ignore[no-untyped-def]
    found = elements(BY_NAME["mlp"].problem(), step=2)
    with Log(tmp_path / "run") as log:
        log.append(found)
    assert not differences(read(tmp_path / "run").records[0], found, ignore={"context"})


# ----------------------------------------------------------------------------------------------------- overshoot


def regression(noise: float = 0.3) -> Problem:
    torch.manual_seed(0)
    inputs = torch.randn(60, 3, dtype=torch.float64)
    targets = inputs.sum(1, keepdim=True) + noise * torch.randn(60, 1, dtype=torch.float64)
    return Problem(nn.Linear(3, 1, bias=False).double(), nn.MSELoss(), [(inputs, targets)])


@pytest.mark.parametrize("scale", [0.25, 1.0, 1.5, 2.0])
def test_overshoot_of_a_quadratic_is_exact(scale: float) -> None:
    """A step of ``scale`` times the way to the minimum along it has α = scale − 1, however the four readings are weighted."""
    problem = regression()
    inputs, _ = problem.batches.first()
    g = problem.gradient()
    d = -scale * float(g @ g) / float(2 * (inputs @ g).square().mean()) * g
    before = gradients(problem, update=d)
    with torch.no_grad():
        problem.model.weight += d[None]
    found = overshoot(before, gradients(problem, update=d))
    assert found.value == pytest.approx(scale - 1, abs=1e-9)


def test_overshoot_with_samples_of_its_own_lies_within_its_error() -> None:
    """On a part of the data α is off by what the part is off; the error covers it."""
    problem = regression(noise=2.0)
    record = gradients(problem, gram=True)
    rng = np.random.default_rng(0)
    far = []
    for _ in range(60):
        x = rng.standard_normal((60, 3))
        y = x.sum(axis=1) + 2.0 * rng.standard_normal(60)
        d = 1.3 * np.ones(3)  # from 0; the mean loss over all x is ‖θ − 1‖² + 4, with its minimum along d at 1/1.3
        ends = [(x @ theta - y, theta) for theta in (np.zeros(3), d)]
        before, after = (
            record.replace(sample_losses=residual**2, update_dots=2 * residual * (x @ d)) for residual, _ in ends
        )
        found = overshoot(before, after)
        far.append((found.value - 0.3) / found.stderr)
    assert np.std(far) == pytest.approx(1.0, abs=0.35)
    assert abs(np.mean(far)) < 4 / np.sqrt(60) + 0.2  # a ratio has a bias of a part of its error


def test_overshoot_needs_the_same_samples_and_slopes() -> None:
    problem = BY_NAME["mlp"].problem()
    d = torch.ones(problem.n, dtype=torch.float64)
    whole = gradients(problem, update=d)
    with pytest.raises(ValueError, match=r"gradients\(problem, update=d\)"):
        overshoot(whole, gradients(problem, gram=True))
    with pytest.raises(ValueError, match="same samples at both ends"):
        overshoot(whole, whole.replace(indices=whole.indices[::-1]))
