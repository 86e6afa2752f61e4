"""Gram matrices of captured gradients give the NTK and the exact spectra of GGN and Fisher, from first derivatives alone."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from families import BY_NAME, FAMILIES, features, labels, merged
from theodolite.errors import OperatorError
from theodolite.operators import GGN, GradientCovariance, Jacobian
from theodolite.operators.diagonal import ggn_diagonal
from theodolite.operators.low_rank import fisher_spectrum, ggn_spectrum
from theodolite.operators.ntk import NTK
from theodolite.problem import Problem
from theodolite.records import Spectrum

EXACT = 1e-10
all_families = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
# The others differ from these in what neither captures nor Gram matrices see.
criterion_families = pytest.mark.parametrize(
    "family",
    [BY_NAME[name] for name in ("mlp-weighted", "convnet", "transformer", "lstm", "frozen")],
    ids=lambda family: family.name,
)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@cache
def dense_ggn(name: str) -> Tensor:
    return GGN(BY_NAME[name].problem()).dense()


def assert_spectrum_of(found: Spectrum, dense: Tensor) -> None:
    """All eigenvalues, and what a Gram matrix says besides, equal those of the dense matrix."""
    values = torch.linalg.eigvalsh(dense).flip(0).numpy()
    count = len(found.eigenvalues)
    scale = values[0]
    assert np.abs(found.eigenvalues - values[:count]).max() < EXACT * scale
    assert np.abs(values[count:]).max(initial=0.0) < EXACT * scale
    assert found.trace == pytest.approx(float(dense.trace()), rel=EXACT)
    assert found.frobenius == pytest.approx(float(dense.norm()), rel=EXACT)
    assert found.layer_traces.sum() == pytest.approx(found.trace, rel=EXACT)


# ------------------------------------------------------------------------------------------------------------------ kernels


@criterion_families
def test_ntk_is_the_jacobian_times_its_transpose(family: Any) -> None:
    problem = family.problem()
    J = Jacobian(problem).dense()
    kernel = NTK(problem)
    assert relative(kernel.matrix, J @ J.T) < EXACT
    v = torch.randn(len(J), dtype=torch.float64)
    assert relative(kernel @ v, J @ (J.T @ v)) < EXACT


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_squared_error_has_the_eigenvalues_of_the_ntk(reduction: str) -> None:
    """GGN = (2/m) JᵀJ and NTK = J Jᵀ."""
    model, batches = BY_NAME["mlp-squared"].model_and_data()
    problem = Problem(model, nn.MSELoss(reduction=reduction), batches)
    kernel = NTK(problem).matrix
    factor = 2 / len(kernel) if reduction == "mean" else 2
    values = torch.linalg.eigvalsh(kernel).flip(0) * factor
    expected = torch.linalg.eigvalsh(GGN(problem).dense()).flip(0)
    few = min(len(values), len(expected))
    assert float((values[:few] - expected[:few]).abs().max() / expected[0]) < 1e-9


# ------------------------------------------------------------------------------------------------------------------ spectra


@criterion_families
def test_ggn_spectrum_is_that_of_the_dense_ggn(family: Any) -> None:
    problem, dense = family.problem(), dense_ggn(family.name)
    found = ggn_spectrum(problem)
    assert_spectrum_of(found, dense)
    for trace, where in zip(found.layer_traces, problem.layout.layer_slices.values(), strict=True):
        assert trace == pytest.approx(float(dense[where, where].trace()), rel=EXACT, abs=EXACT * found.trace)


@all_families
def test_empirical_spectrum_is_that_of_the_dense_gradient_covariance(family: Any) -> None:
    problem = family.problem()
    assert_spectrum_of(fisher_spectrum(problem), GradientCovariance(problem).dense())


@pytest.mark.parametrize("name", ["mlp", "transformer"])
def test_sampled_spectrum_has_the_trace_of_the_sampled_diagonal(name: str) -> None:
    problem = BY_NAME[name].problem()
    found = fisher_spectrum(problem, kind="mc", draws=3, seed=5)
    assert found.trace == pytest.approx(float(ggn_diagonal(problem, kind="mc", draws=3, seed=5).sum()), rel=EXACT)
    assert found.eigenvalues.sum() == pytest.approx(found.trace, rel=EXACT)
    assert found.operator == "fisher"
    assert found.seed == 5
    # A drawn matrix is not the Fisher: its errors are over draws, and none is claimed of 0.
    assert min(found.trace_stderr, found.frobenius_stderr, found.draw_stderr[0]) > 0
    assert np.isnan(found.layer_trace_stderrs).all()
    assert found.trace_estimate.degrees == 2
    assert "(draws)" in str(found)
    once = fisher_spectrum(problem, kind="mc", draws=1, k=2)
    assert np.isnan([once.trace_stderr, once.frobenius_stderr, *once.draw_stderr]).all()
    assert "± ? (a single draw)" in str(once)
    assert "take draws=8 or more" in " ".join(once.notes)


def test_a_drawn_spectrum_of_a_sure_model_is_known_to_its_error() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 4)).double()
    with torch.no_grad():
        model[2].bias.copy_(torch.tensor([12.0, 1.0, 0.5, 0.0]))
    problem = Problem(model, nn.CrossEntropyLoss(), [(torch.randn(24, 3).double(), torch.zeros(24).long())])
    exact = ggn_spectrum(problem, k=1)
    found = [fisher_spectrum(problem, kind="mc", k=1, seed=seed) for seed in range(12)]
    values = np.array([each.max for each in found])
    errors = np.array([each.draw_stderr[0] for each in found])
    assert values == pytest.approx(np.full(12, exact.max), rel=0.5)
    assert 0.4 < np.sqrt((errors**2).mean()) / values.std(ddof=1) < 2.5
    off = [(each.trace - exact.trace) / each.trace_stderr for each in found]
    assert np.abs(off).max() < 8
    assert np.abs(off).mean() < 2.5


@pytest.mark.parametrize("alike", [True, False])
def test_terms_of_a_sample_set_the_scale_of_the_empirical_kind(alike: bool) -> None:
    """T copies of a term leave the empirical kind as it is; T unrelated terms make it T times smaller than the exact one."""
    torch.manual_seed(0)
    inputs, terms = torch.randn(400, 3, 1).double(), 5
    wide = inputs.expand(-1, -1, terms) if alike else torch.randn(400, 3, terms).double()
    model = nn.Conv1d(3, 2, 1).double()
    with torch.no_grad():
        model.weight.zero_(), model.bias.zero_()
    one, many = torch.randint(2, (400, 1)), torch.randint(2, (400, terms))
    labels = one.expand(-1, terms) if alike else many
    problem = Problem(model, nn.CrossEntropyLoss(), [(wide, labels)])
    empirical, exact = fisher_spectrum(problem), ggn_spectrum(problem)
    assert empirical.trace * (1 if alike else terms) == pytest.approx(exact.trace, rel=1e-8 if alike else 0.1)
    assert "a sample has 5 terms" in " ".join(empirical.notes)
    assert "a sample has 5 terms" in " ".join(exact.notes)


def test_one_eigenvector_of_one_eigenvalue() -> None:
    problem = BY_NAME["mlp"].problem()
    found = fisher_spectrum(problem, k=1, vectors=True)
    vector = torch.from_numpy(np.array(found.eigenvectors))[0]
    product = GradientCovariance(problem) @ vector
    assert relative(product, vector * float(found.eigenvalues[0])) < 1e-8


@pytest.mark.parametrize("name", ["mlp-weighted", "convnet", pytest.param("transformer", marks=pytest.mark.slow)])
def test_the_largest_come_with_eigenvectors(name: str) -> None:
    problem, dense = BY_NAME[name].problem(), dense_ggn(name)
    found = ggn_spectrum(problem, k=5, vectors=True)
    V = torch.from_numpy(np.array(found.eigenvectors)).T
    values = torch.from_numpy(np.array(found.eigenvalues))
    assert relative(V.T @ V, torch.eye(5, dtype=torch.float64)) < 1e-8
    assert float((dense @ V - V * values).norm(dim=0).max() / values[0]) < 1e-9
    assert np.abs(found.eigenvalues - ggn_spectrum(problem).eigenvalues[:5]).max() < EXACT * found.max
    assert found.all_converged


@pytest.mark.parametrize("name", ["convnet", pytest.param("transformer", marks=pytest.mark.slow)])
def test_cuts_into_batches_do_not_change_it(name: str) -> None:
    family = BY_NAME[name]
    model, batches = family.model_and_data()
    reference = fisher_spectrum(family.problem_of(model, merged(batches)), k=6).eigenvalues
    for problem in (family.problem_of(model, batches), family.problem_of(model, batches, microbatch=5)):
        assert np.abs(fisher_spectrum(problem, k=6).eigenvalues - reference).max() < EXACT * reference[0]


def test_errors_from_the_data_are_those_of_leaving_samples_out() -> None:
    """The trace's error equals the jackknife of the traces themselves; the eigenvalue's that of vᵀFv."""
    model, batches = BY_NAME["mlp"].model_and_data()
    inputs, targets = batches[0]
    problem = Problem(model, nn.CrossEntropyLoss(), [(inputs, targets)])
    for kind, operator in (("exact", GGN), ("empirical", GradientCovariance)):
        found = fisher_spectrum(problem, kind=kind, vectors=True)
        v = torch.from_numpy(np.array(found.eigenvectors[0]))
        traces, forms = [], []
        for left in range(len(inputs)):
            kept = torch.arange(len(inputs)) != left
            dense = operator(Problem(model, nn.CrossEntropyLoss(), [(inputs[kept], targets[kept])])).dense()
            traces.append(float(dense.trace()))
            forms.append(float(v @ dense @ v))
        n = len(inputs)
        for error, values in ((found.trace_data_stderr, traces), (found.data_stderr[0], forms)):
            assert error == pytest.approx(((n - 1) / n * np.square(values - np.mean(values)).sum()) ** 0.5, rel=1e-8)
        assert found.data_degrees == n - 1


def test_large_gram_matrices_have_errors_for_the_first_eigenvalues(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = BY_NAME["mlp"].problem()
    whole = ggn_spectrum(problem)
    monkeypatch.setattr("theodolite.operators.low_rank.FULL", 20)
    monkeypatch.setattr("theodolite.operators.low_rank.FIRST", 3)
    found = ggn_spectrum(problem)
    assert np.abs(found.eigenvalues - whole.eigenvalues).max() < EXACT * whole.max
    assert np.allclose(found.data_stderr[:3], whole.data_stderr[:3], rtol=1e-6)
    assert np.isnan(found.data_stderr[3:]).all()
    assert not np.isnan(ggn_spectrum(problem, vectors=True).data_stderr).any()


# -------------------------------------------------------------------------------------------- models that are hard to follow


class Attentive(nn.Module):
    """A causal attention block on tokens, with an embedding too large to be held densely for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.qkv, self.head = nn.Embedding(150, 4), nn.Linear(4, 12), nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = self.qkv(self.table(tokens))[:, None].chunk(3, -1)
        return self.head(F.scaled_dot_product_attention(q, k, v, is_causal=True)[:, 0].mean(1))


class Names(TorchDispatchMode):
    """Records which kernels run."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found.add(func.name())
        return func(*args, **(kwargs or {}))


def test_works_with_flash_attention_and_large_tables() -> None:
    batches = list(zip(labels((6, 5), 150, 8), labels((6, 5), 3, seed=7), strict=True))
    problem = Problem(Attentive().double(), nn.CrossEntropyLoss(), batches)
    with Names() as kernels:
        found = fisher_spectrum(problem)
    assert any("flash_attention" in name for name in kernels.found)
    assert_spectrum_of(found, GradientCovariance(problem).dense())
    assert_spectrum_of(ggn_spectrum(problem), GGN(problem).dense())


class Switching(nn.Module):
    """Applies its weight as it is to one batch and transposed or by rows to others."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(5, 5, bias=False), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.first.weight
        if len(x) == 7:
            h = F.linear(x, weight)
        elif len(x) == 3:
            h = x @ weight
        else:
            h = torch.cat([F.linear(x, weight[:2]), F.linear(x, weight[2:])], 1)
        return self.head(torch.tanh(h))


def test_batches_may_read_a_weight_in_different_ways() -> None:
    batches = list(zip(features((7, 3, 4), 5), labels((7, 3, 4), 3), strict=True))
    problem = Problem(Switching().double(), nn.CrossEntropyLoss(), batches)
    assert_spectrum_of(ggn_spectrum(problem), GGN(problem).dense())
    assert_spectrum_of(fisher_spectrum(problem), GradientCovariance(problem).dense())
    J = Jacobian(problem).dense()
    assert relative(NTK(problem).matrix, J @ J.T) < EXACT


def test_batches_without_valid_targets_have_no_rows() -> None:
    model, batches = BY_NAME["mlp"].model_and_data()
    ignored = [(batches[0][0], torch.full((7,), -100)), *batches[1:2], (batches[2][0], torch.full((3,), -100))]
    problem, alone = (Problem(model, nn.CrossEntropyLoss(), data) for data in (ignored, batches[1:2]))
    for kind in ("exact", "empirical"):
        found = fisher_spectrum(problem, kind=kind)
        assert_spectrum_of(found, (GGN if kind == "exact" else GradientCovariance)(problem).dense())
    found, expected = ggn_spectrum(problem), ggn_spectrum(alone)
    assert found.data_degrees == 6
    assert np.allclose(found.data_stderr, expected.data_stderr, rtol=1e-6, atol=1e-9 * found.max)


def test_refusals_show_the_scene() -> None:
    family = BY_NAME["mlp"]
    with pytest.raises(OperatorError, match="at least 1 eigenvalue, or None for all, found 0"):
        fisher_spectrum(family.problem(), k=0)
    with pytest.raises(OperatorError, match=r"to fit 1 KiB, found .* after 7 rows"):
        ggn_spectrum(family.problem(memory=1024))
    with pytest.raises(OperatorError, match="the model's outputs"):
        NTK(BY_NAME["from-loss"].problem())
    with pytest.raises(OperatorError, match="couple the samples"):
        fisher_spectrum(BY_NAME["convnet"].problem(mode="train"))


def test_who_needs_the_outputs_is_named() -> None:
    problem = BY_NAME["from-loss"].problem()
    with pytest.raises(OperatorError, match=r"The NTK needs the model's outputs.*Problem.from_loss"):
        NTK(problem)
    with pytest.raises(OperatorError, match=r"kind='exact', as KFAC, .* need the model's outputs.*Problem.from_loss"):
        ggn_diagonal(problem)
