"""Spectrum, density and trace equal the dense Hessian's, and say when they do not."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from torch import nn

from families import BY_NAME, FAMILIES, Family, dense_oracle
from records.published_jackknife import published
from theodolite.errors import NonFiniteError, NotConvergedWarning, OperatorError, ProblemError
from theodolite.measures import density, spectrum, trace
from theodolite.measures.subject import OPERATORS, operator_of
from theodolite.measures.verification import resolved
from theodolite.operators import Fisher, Hessian
from theodolite.problem import Problem

FEW_ERRORS = (("mlp", "hessian"), ("mlp-weighted", "hessian"), ("mlp-sum", "ggn"), ("transformer", "covariance"))
FEW = (
    "mlp",
    "transformer",
    "from-loss",
)  # the others are slow laws: what differs between families is held at the operators
all_families = pytest.mark.parametrize(
    "family",
    [pytest.param(found, id=found.name, marks=() if found.name in FEW else pytest.mark.slow) for found in FAMILIES],
)


@all_families
def test_spectrum_equals_dense_eigenvalues(family: Family) -> None:
    dense = torch.linalg.eigvalsh(dense_oracle(family)[2]).flip(0).numpy()
    found = spectrum(family.problem(), k=3, which="both", tol=1e-9)
    expected = np.concatenate([dense[:3], dense[-3:]])
    np.testing.assert_allclose(found.eigenvalues, expected, atol=1e-8 * np.abs(dense).max())
    assert found.converged.all()
    assert (found.residuals <= 1e-9).all()


@all_families
def test_residuals_are_those_of_the_returned_vectors(family: Family) -> None:
    H = dense_oracle(family)[2].numpy()
    found = spectrum(family.problem(), k=2, tol=1e-4)
    vectors = found.eigenvectors
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-12)
    scale = np.maximum(np.abs(found.eigenvalues), 1e-3 * np.abs(np.linalg.eigvalsh(H)).max())
    true = np.linalg.norm(vectors @ H - found.eigenvalues[:, None] * vectors, axis=1) / scale
    np.testing.assert_allclose(found.residuals, true, rtol=1e-2, atol=1e-9)


def test_a_run_that_is_cut_off_says_so() -> None:
    with pytest.warns(
        NotConvergedWarning, match="3 of 3 eigenpairs did not reach a residual of 1e-09 after 4 products of Lanczos"
    ):
        found = spectrum(BY_NAME["convnet"].problem(), k=3, tol=1e-9, max_products=4)
    assert not found.converged.any()
    assert "NOT" in repr(found).upper()


def test_more_pairs_than_parameters_are_refused() -> None:
    with pytest.raises(OperatorError, match=r"between 1 and 79 eigenpairs.*found 80 \(k=40, which='both'\)"):
        spectrum(BY_NAME["mlp"].problem(), k=40, which="both")


def test_eigenvectors_beyond_the_cap_are_dropped_with_a_note() -> None:
    found = spectrum(BY_NAME["mlp"].problem(), k=2, keep_vectors_below=100)
    assert found.eigenvectors is None
    assert any("eigenvectors dropped" in note for note in found.notes)


@pytest.mark.parametrize(
    ("name", "operator"),
    [
        pytest.param(name, operator, marks=() if (name, operator) in FEW_ERRORS else pytest.mark.slow)
        for name in ("mlp", "mlp-weighted", "mlp-sum", "transformer")
        for operator in ("hessian", "ggn", "covariance")
    ],
)
def test_data_error_is_the_jackknife_with_fixed_eigenvectors(name: str, operator: str) -> None:
    family = BY_NAME[name]
    model, batches = family.model_and_data()
    found = spectrum(family.problem_of(model, batches), k=2, tol=1e-10, operator=operator)
    quotients = []
    for leave in range(len(batches)):
        rest = family.problem_of(model, [batch for i, batch in enumerate(batches) if i != leave])
        H = OPERATORS[operator](rest).dense().numpy()
        value = np.einsum("kn,nm,km->k", found.eigenvectors, H, found.eigenvectors)
        # A criterion that sums is compared on the scale of the whole data, by its share of the weight.
        if not rest.objective.averages():
            share = float(rest.totals()[1].sum()) / float(family.problem_of(model, batches).totals()[1].sum())
            value = value / share if operator != "covariance" else value / share**2
        quotients.append(value)
    weights = family.problem_of(model, batches).totals()[1].numpy()
    expected = published(quotients, found.eigenvalues, weights)
    assert found.context["chunks"] == len(batches)
    np.testing.assert_allclose(found.data_stderr, expected, rtol=1e-7)


def test_data_error_is_unknown_with_one_chunk() -> None:
    model, batches = BY_NAME["mlp"].model_and_data()
    found = spectrum(BY_NAME["mlp"].problem_of(model, batches[:1]), k=1)
    assert np.isnan(found.data_stderr).all()


@pytest.mark.parametrize("name", ["mlp", "convnet", "transformer"])
def test_density_has_the_moments_of_the_dense_spectrum(name: str) -> None:
    family = BY_NAME[name]
    eigenvalues = torch.linalg.eigvalsh(dense_oracle(family)[2]).numpy()
    found = density(family.problem(), probes=60, steps=12)
    for power in (1, 2):
        samples = found.size * (found.weights * np.nan_to_num(found.nodes) ** power).sum(1)
        stderr = samples.std(ddof=1) / np.sqrt(len(samples))
        assert abs(samples.mean() - (eigenvalues**power).sum()) < 3.5 * stderr
    assert np.nanmax(found.nodes) <= eigenvalues.max() * (1 + 1e-9)


@pytest.mark.parametrize("method", ["hutchinson", "hutch++"])
def test_trace_is_within_its_error(method: str) -> None:
    family = BY_NAME["convnet"]
    H = dense_oracle(family)[2]
    found = trace(family.problem(), probes=60, method=method)
    assert abs(found.value - float(H.trace())) < 3.5 * found.stderr
    assert found.stderr > 0


def test_layer_traces_add_up_and_are_within_their_errors() -> None:
    family = BY_NAME["convnet"]
    H = dense_oracle(family)[2]
    problem = family.problem()
    found = trace(problem, probes=80)
    assert found.layer_values.sum() == pytest.approx(found.value)
    for layer, where in problem.layout.layer_slices.items():
        index = found.layers.index(layer)
        exact = float(H[where, where].trace())
        assert abs(found.layer_values[index] - exact) < 4 * found.layer_stderrs[index] + 1e-12


@pytest.mark.parametrize("engine", ["retained", "vmap", "fresh", "difference"])
def test_the_same_seed_gives_the_same_record(engine: str) -> None:
    family = BY_NAME["transformer"]
    first, second = (spectrum(family.problem(engine=engine), k=2, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first.eigenvalues, second.eigenvalues)
    np.testing.assert_array_equal(first.eigenvectors, second.eigenvectors)


def test_the_timed_choice_of_engine_changes_no_more_than_rounding() -> None:
    family = BY_NAME["transformer"]
    found = [
        spectrum(family.problem(engine=engine), k=2, seed=3).eigenvalues for engine in ("auto", "retained", "vmap")
    ]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-12)
    np.testing.assert_allclose(found[0], found[2], rtol=1e-12)


def test_a_loss_that_is_not_finite_has_no_spectrum() -> None:
    x = torch.randn(4, 3)
    x[2, 1] = float("nan")
    problem = Problem(torch.nn.Linear(3, 2), torch.nn.CrossEntropyLoss(), [(x, torch.zeros(4, dtype=torch.int64))])
    with pytest.raises(NonFiniteError, match=r"Expected a finite loss at .*, found nan"):
        spectrum(problem, k=1)


def test_cost_counts_products_and_passes() -> None:
    found = spectrum(BY_NAME["mlp"].problem(), k=2, which="largest")
    assert found.cost.products >= 10
    assert found.cost.gradients == pytest.approx(1.0)
    assert found.cost.seconds > 0
    assert "certificate" in found.context


def test_copies_of_repeated_eigenvalues_are_found() -> None:
    """The Hessian of a linear layer's squared error is I ⊗ XᵀX: every eigenvalue comes once for each output."""
    inputs, targets = torch.randn(200, 30, dtype=torch.float64), torch.randn(200, 3, dtype=torch.float64)
    problem = Problem(torch.nn.Linear(30, 3, bias=False).double(), torch.nn.MSELoss(), [(inputs, targets)])
    exact = torch.linalg.eigvalsh(2 / (200 * 3) * inputs.T @ inputs).flip(0).repeat_interleave(3).numpy()
    found = spectrum(problem, k=5)
    np.testing.assert_allclose(found.eigenvalues, exact[:5], rtol=1e-3)
    assert "eigenvalues repeat" in found.notes[0]
    assert spectrum(problem, k=5, complete=False).eigenvalues[1] < exact[1] * 0.99


def test_a_run_that_was_cut_off_marks_each_pair_by_itself() -> None:
    """From each end inwards to the first pair that is not good, and apart from what is not."""
    values, tight = np.array([9.0, 5.0, 1.0, 1e-8, -2e-8]), 1e-5 * np.ones(5)
    good = np.array([True, True, True, False, False])
    found = resolved(values, tight, good, which="both", radius=9.0)
    assert found.tolist() == [True, True, True, False, False]
    hidden = resolved(values, tight, np.array([True, False, True, True, True]), which="both", radius=9.0)
    assert hidden.tolist() == [True, False, False, True, True]
    near = np.array([9.0, 8.995, 1.0])
    wide = np.array([1e-4, 1e-2, 1e-5])
    crossing = resolved(near, wide, wide <= 1e-3, which="largest", radius=9.0)
    assert crossing.tolist() == [False, False, False]
    assert resolved(values, tight, np.ones(5, dtype=bool), which="smallest", radius=9.0).all()


def test_the_upper_end_is_known_though_the_lower_was_cut_off() -> None:
    """A null space that no number of products resolves takes nothing from λ₁."""
    torch.manual_seed(0)
    inputs = torch.randn(40, 12, dtype=torch.float64) * torch.logspace(0, -6, 12, dtype=torch.float64)
    problem = Problem(nn.Linear(12, 2).double(), nn.CrossEntropyLoss(), [(inputs, (inputs[:, 0] > 0).long())])
    with pytest.warns(NotConvergedWarning):
        found = spectrum(problem, k=5, which="both", tol=1e-8, max_products=12)
    exact = torch.linalg.eigvalsh(Hessian(problem).dense()).flip(0)
    assert found.converged[0]
    assert found.max == pytest.approx(float(exact[0]), rel=1e-6)
    for value, residual, converged in zip(found.eigenvalues, found.error, found.converged, strict=True):
        if converged:
            assert float((exact - value).abs().min()) <= residual + 1e-14
    assert "one chunk: no error from the data; cut the data into batches" in found.notes


def test_an_operator_in_the_place_of_a_problem_is_told_where_to_go() -> None:
    problem = BY_NAME["mlp"].problem()
    unchecked = inspect.unwrap(spectrum)
    with pytest.raises(ProblemError, match=r"found the operator .*operator='ggn'.*fisher_spectrum.*linalg\.lanczos"):
        unchecked(Fisher(problem))
    with pytest.raises(ProblemError, match=r"found 'fisher'\. A Fisher is 'ggn' for .*fisher_spectrum\(problem"):
        operator_of(problem, "fisher")
