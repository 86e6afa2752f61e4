"""What one Krylov run says beside its eigenpairs, on problems with dense or closed-form answers."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from families import BY_NAME, dense_oracle
from records.published_jackknife import published
from theodolite.errors import DataError, OperatorError, ProblemError
from theodolite.measures import density, spectrum, trace
from theodolite.measures.samples import Precision, enough
from theodolite.measures.subject import OPERATORS
from theodolite.problem import Problem
from theodolite.records import Cost


def regression(*, samples: int, chunk: int, seed: int = 0, width: int = 6) -> Problem:
    """Squared error of a linear model with inputs of variances 4, 1, 1/4, …: H = 2 XᵀX/N, of mean 2·diag(variances)."""
    g = torch.Generator().manual_seed(seed)
    scales = torch.tensor([2.0 / 2**j for j in range(width)], dtype=torch.float64)
    inputs = torch.randn(samples, width, generator=g, dtype=torch.float64) * scales
    model = nn.Linear(width, 1, bias=False).double()
    targets = torch.zeros(samples, 1, dtype=torch.float64)
    return Problem(model, nn.MSELoss(), list(zip(inputs.split(chunk), targets.split(chunk), strict=True)))


@pytest.mark.parametrize(("name", "operator"), [("mlp", "hessian"), ("mlp-weighted", "ggn"), ("mlp-sum", "covariance")])
def test_a_run_through_the_whole_space_is_exact(name: str, operator: str) -> None:
    family = BY_NAME[name]
    problem = family.problem()
    dense = OPERATORS[operator](problem).dense().double()
    exact = torch.linalg.eigvalsh(dense).numpy()
    found = spectrum(problem, k=2, which="both", tol=1e-9, probes=4, steps=problem.n, operator=operator)
    scale = np.abs(exact).max()
    assert found.trace == pytest.approx(exact.sum(), abs=1e-7 * scale)
    assert found.frobenius == pytest.approx(np.linalg.norm(exact), rel=1e-8)
    for layer, where in problem.layout.layer_slices.items():
        assert found.by_layer[layer].value == pytest.approx(float(dense[where, where].trace()), abs=1e-7 * scale)
    assert found.density.moment(2).value == pytest.approx((exact**2).mean(), rel=0.2)


@pytest.mark.parametrize("name", ["convnet", "transformer", "lstm"])
def test_part_of_the_space_is_within_its_errors(name: str) -> None:
    dense = dense_oracle(BY_NAME[name])[2]
    exact = torch.linalg.eigvalsh(dense).numpy()
    problem = BY_NAME[name].problem()
    found = spectrum(problem, k=2, probes=8, steps=14)
    assert found.probes == 8
    assert abs(found.trace - exact.sum()) < 4 * found.trace_stderr
    assert abs(found.frobenius - np.linalg.norm(exact)) < 4 * found.frobenius_stderr
    for layer, where in problem.layout.layer_slices.items():
        estimate = found.by_layer[layer]
        assert abs(estimate.value - float(dense[where, where].trace())) < 4.5 * estimate.stderr + 1e-12
    log_det = found.log_det(0.1 * exact.max())
    assert abs(log_det.value - np.log(np.maximum(exact, 0) + 0.1 * exact.max()).sum()) < 4 * log_det.stderr
    assert found.layer_traces.sum() == pytest.approx(found.trace)


def test_the_run_is_the_same_with_and_without_probes() -> None:
    problem = BY_NAME["transformer"].problem()
    alone, whole = spectrum(problem, k=3, tol=1e-8), spectrum(problem, k=3, tol=1e-8, probes=3, steps=5)
    np.testing.assert_allclose(alone.eigenvalues, whole.eigenvalues, rtol=1e-9)
    assert whole.cost.products <= alone.cost.products + 3
    np.testing.assert_allclose(alone.data_stderr, whole.data_stderr, rtol=1e-5)


def test_a_warm_start_leaves_the_density_out() -> None:
    problem = regression(samples=64, chunk=16)
    first = spectrum(problem, k=2, probes=3, steps=4)
    start = torch.from_numpy(first.eigenvectors.copy())  # type: ignore[union-attr]
    warm = spectrum(problem, k=2, probes=3, steps=4, start=start)
    assert np.isfinite(warm.trace)
    with pytest.raises(ValueError, match="not known"):
        _ = warm.density
    with pytest.raises(ValueError, match="without start="):
        warm.Kh()
    assert first.Kh().value >= 0


def test_repeated_eigenvalues_are_found_beside_the_trace() -> None:
    inputs, targets = torch.randn(200, 30, dtype=torch.float64), torch.randn(200, 3, dtype=torch.float64)
    problem = Problem(nn.Linear(30, 3, bias=False).double(), nn.MSELoss(), [(inputs, targets)])
    gram = 2 / (200 * 3) * inputs.T @ inputs
    found = spectrum(problem, k=5, probes=6, steps=20)
    exact = torch.linalg.eigvalsh(gram).flip(0).repeat_interleave(3).numpy()
    np.testing.assert_allclose(found.eigenvalues, exact[:5], rtol=1e-3)
    assert abs(found.trace - exact.sum()) <= 4 * found.trace_stderr + 1e-9


@pytest.mark.parametrize("name", ["mlp", "mlp-weighted"])
def test_the_data_error_of_the_trace_is_its_jackknife(name: str) -> None:
    family = BY_NAME[name]
    model, batches = family.model_and_data()
    problem = family.problem_of(model, batches)
    found = spectrum(problem, k=1, tol=1e-6, probes=2, steps=problem.n)
    without = [
        float(OPERATORS["hessian"](family.problem_of(model, batches[:i] + batches[i + 1 :])).dense().trace())
        for i in range(len(batches))
    ]
    expected = published(without, found.trace, problem.totals()[1].numpy())
    assert found.trace_data_stderr == pytest.approx(float(expected), rel=1e-6)


class Bowl(nn.Module):
    """A diagonal Hessian, of which a single random sign vector gives the exact trace."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(5, dtype=torch.float64))

    def forward(self, curvatures: Tensor) -> Tensor:
        return (0.5 * curvatures * self.w**2).sum(dim=1)


def test_the_data_error_of_hutchinsons_trace() -> None:
    g = torch.Generator().manual_seed(0)
    batches = [torch.rand(size, 5, generator=g, dtype=torch.float64) for size in (8, 8, 8, 3)]
    problem = Problem.from_loss(Bowl(), lambda model, batch: model(batch).mean(), batches)
    found = trace(problem, probes=2)
    without = [float(torch.cat(batches[:i] + batches[i + 1 :]).sum(1).mean()) for i in range(4)]
    expected = published(without, float(torch.cat(batches).sum(1).mean()), np.array([8.0, 8.0, 8.0, 3.0]))
    assert found.data_stderr == pytest.approx(float(expected), rel=1e-9)
    assert found.data_estimate.degrees == 3
    assert np.isnan(trace(problem, probes=6, method="hutch++").data_stderr)


@pytest.mark.parametrize("which", ["largest", "smallest"])
def test_halves_judge_each_others_eigenvectors(which: str) -> None:
    problem = BY_NAME["transformer"].problem()
    found = spectrum(problem, k=1, which=which, halves=True, seed=4)
    A, B = (OPERATORS["hessian"](half).dense().double() for half in problem.split_halves(seed=4))
    place = -1 if which == "largest" else 0
    a, b = (torch.linalg.eigh(H).eigenvectors[:, place] for H in (A, B))
    assert found.split_half == pytest.approx(float(a @ B @ a + b @ A @ b) / 2, rel=1e-3)
    inside = found.extreme.value - found.eigenvalues[0]
    assert inside < 0 if which == "largest" else inside > 0


def test_one_sample_cannot_be_halved() -> None:
    with pytest.raises(DataError, match="two samples or more"):
        spectrum(regression(samples=1, chunk=1), k=1, halves=True)


def test_samples_grow_until_the_data_error_is_small() -> None:
    problem = regression(samples=2048, chunk=256)
    rough, fine = (spectrum(problem, k=1, samples="auto", data_tol=tol) for tol in (0.6, 0.12))
    assert rough.context["samples"] < fine.context["samples"] < 2048
    for found, tol in ((rough, 0.6), (fine, 0.12)):
        assert found.data_stderr[0] / found.max <= tol
        assert f"error from the data {found.sharpness.stderr / found.sharpness.value:.2g}, at most the {tol:g}" in repr(
            found
        )
        assert "without the bias of a sample" in repr(found)
        assert abs(found.max - 8.0) < 4 * found.data_stderr[0]
    both = trace(problem, samples="auto", data_tol=0.15)
    assert both.context["samples"] < 2048
    assert both.data_stderr / both.value <= 0.18
    assert f"relative error from the data {both.data_stderr / both.value:.2g}" in both.notes[-1]
    sketched = trace(problem, samples="auto", data_tol=0.15, method="hutch++")
    assert sketched.context["samples"] == both.context["samples"]
    assert "at most the 0.15 asked for" in sketched.notes[-1]


def test_the_end_of_the_data_is_said() -> None:
    found = spectrum(regression(samples=128, chunk=32), k=1, samples="auto", data_tol=1e-6)
    assert "128 of 128 samples" in found.notes[-1]
    assert "NOT the 1e-06 asked for: there are no more samples" in found.notes[-1]


def test_a_number_of_samples_is_taken() -> None:
    problem = regression(samples=128, chunk=32)
    assert spectrum(problem, k=1, samples=40).context["samples"] == 40
    assert trace(problem, probes=2, samples=40).context["samples"] == 40
    for samples in ("many", 12.5, True):
        with pytest.raises(ProblemError, match=f"whole number, 'auto' or None for all, found {samples!r}"):
            inspect.unwrap(enough)(problem, samples, lambda part: Precision(0.0, Cost()), tol=0.1, seed=0)
    with pytest.raises(ProblemError, match="positive relative error, found 0"):
        spectrum(problem, samples="auto", data_tol=0.0)
    more = spectrum(problem, k=1, samples=1000)
    assert more.notes == ("samples=1,000 was asked for: all 128 that there are were taken",)
    assert more.context["samples"] == 128


def test_a_density_of_one_probe_knows_its_error() -> None:
    exact = torch.linalg.eigvalsh(dense_oracle(BY_NAME["transformer"])[2]).numpy()
    found = density(BY_NAME["transformer"].problem(), probes=1, steps=30)
    assert 0 < found.trace.stderr < np.inf
    assert abs(found.trace.value - exact.sum()) < 4 * found.trace.stderr


@pytest.mark.parametrize("method", ["hutch++", "xtrace", "xnystrace"])
def test_methods_of_the_trace_are_within_their_errors(method: str) -> None:
    problem = BY_NAME["mlp"].problem()
    exact = float(OPERATORS["ggn"](problem).dense().trace())
    found = trace(problem, probes=24, method=method, operator="ggn")
    assert found.method == method
    assert found.cost.products <= 24
    assert abs(found.value - exact) <= 4 * found.stderr + 1e-9 * exact


def test_known_pairs_leave_the_error_of_the_rest() -> None:
    problem = BY_NAME["convnet"].problem()
    dense = OPERATORS["hessian"](problem).dense()
    known = spectrum(problem, k=6, which="both", tol=1e-6)
    plain, deflated = trace(problem, probes=24), trace(problem, probes=24, spectrum=known)
    assert deflated.stderr < plain.stderr / 2
    assert abs(deflated.value - float(dense.trace())) < 4 * deflated.stderr
    for layer, where in problem.layout.layer_slices.items():
        estimate = deflated.by_layer[layer]
        assert abs(estimate.value - float(dense[where, where].trace())) < 4.5 * estimate.stderr + 1e-12
    shape = density(problem, probes=3, steps=10, spectrum=known)
    assert shape.deflated == 12
    np.testing.assert_allclose(shape.nodes[0, :12], known.eigenvalues, rtol=1e-9)
    assert abs(shape.trace.value - float(dense.trace())) < 5 * shape.trace.stderr
    with pytest.raises(ProblemError, match=r"Expected a spectrum with method='hutchinson'.*method='xtrace'"):
        trace(problem, method="xtrace", spectrum=known)
    with pytest.raises(OperatorError, match=r"spectrum of the ggn of this problem's .* found that of the hessian"):
        trace(problem, operator="ggn", spectrum=known)
