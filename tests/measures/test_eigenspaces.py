"""Alignment of gradient and update with the top eigenspace, and the eigenspace followed over checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from families import BY_NAME, dense_oracle
from records.published_jackknife import published
from theodolite.errors import OperatorError
from theodolite.measures import alignment, density, next_update, outliers, spectrum, trace, track
from theodolite.problem import Problem
from theodolite.records import Record

NAMES = ("mlp", "mlp-weighted", "transformer")


@pytest.mark.parametrize("name", NAMES)
def test_shares_are_those_of_dense_eigenvectors(name: str) -> None:
    _, gradient, H = dense_oracle(BY_NAME[name])
    problem = BY_NAME[name].problem()
    found = alignment(problem, spectrum=spectrum(problem, k=4, tol=1e-10))
    vectors = torch.linalg.eigh(H).eigenvectors.flip(1)[:, :4]
    expected = (vectors.T @ gradient).square() / gradient.square().sum()
    np.testing.assert_allclose(found.gradient_shares, expected.numpy(), atol=1e-7)
    assert found.gradient.value == pytest.approx(float(expected.sum()), abs=1e-7)
    assert found.gradient_norm == pytest.approx(float(gradient.norm()))
    assert math.isnan(found.update.value)
    assert found.chance == 4 / problem.n


@pytest.mark.parametrize("name", NAMES)
def test_their_error_is_the_jackknife_with_fixed_eigenvectors(name: str) -> None:
    family = BY_NAME[name]
    model, batches = family.model_and_data()
    problem = family.problem_of(model, batches)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=0.1)
    found_spectrum = spectrum(problem, k=3)
    found = alignment(problem, optimizer, spectrum=found_spectrum)
    shares: dict[str, list[np.ndarray]] = {"gradient": [], "update": []}
    for leave in range(len(batches)):
        rest = family.problem_of(model, [batch for index, batch in enumerate(batches) if index != leave])
        for kind, vector in (("gradient", rest.gradient()), ("update", next_update(rest, optimizer))):
            each = np.square(found_spectrum.eigenvectors @ vector.numpy()) / float(vector.square().sum())
            shares[kind].append(np.append(each, each.sum()))
    weights = problem.totals()[1].numpy()
    for kind, stderrs, stderr, values in (
        ("gradient", found.gradient_stderrs, found.gradient_stderr, found.gradient_shares),
        ("update", found.update_stderrs, found.update_stderr, found.update_shares),
    ):
        expected = published(shares[kind], np.append(values, values.sum()), weights)
        np.testing.assert_allclose(np.append(stderrs, stderr), expected, rtol=1e-5)


def test_plain_gradient_descent_is_aligned_as_its_gradient() -> None:
    model, batches = BY_NAME["mlp"].model_and_data()
    problem = BY_NAME["mlp"].problem_of(model, batches)
    found = alignment(problem, torch.optim.SGD(model.parameters(), lr=0.3), k=3)
    np.testing.assert_allclose(found.update_shares, found.gradient_shares, rtol=1e-9)
    assert found.update_norm == pytest.approx(0.3 * found.gradient_norm)
    assert found.cosine == pytest.approx(1)
    assert found.update.stderr == pytest.approx(found.gradient.stderr)
    adam = alignment(problem, torch.optim.Adam(model.parameters(), lr=0.3), k=3)
    assert adam.cosine < 0.99
    assert "of ‖u‖² (Adam) in the top 3" in repr(adam)


def test_the_spectrum_must_be_of_the_same_problem() -> None:
    with pytest.raises(OperatorError, match="found one of"):
        alignment(BY_NAME["mlp"].problem(), spectrum=spectrum(BY_NAME["transformer"].problem(), k=2))


def small() -> Problem:
    """A classifier on two batches."""
    torch.manual_seed(3)
    inputs, targets = torch.randn(24, 3, dtype=torch.float64), torch.randint(2, (24,))
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    return Problem(model, nn.CrossEntropyLoss(), [(inputs[:8], targets[:8]), (inputs[8:], targets[8:])])


@pytest.mark.parametrize("which", [trace, density, alignment, outliers])
def test_a_spectrum_of_other_weights_data_or_shapes_is_refused(which: Callable[..., Record]) -> None:
    problem = small()
    known = spectrum(problem, k=4, tol=1e-8)
    assert which(problem, spectrum=known).size == problem.n
    other = known.replace(parameters=(("0.weight", (3, problem.n // 3)), *known.parameters[1:]))
    with pytest.raises(OperatorError, match=r"parameters, found one of others.*'0.weight'"):
        which(problem, spectrum=other)
    with pytest.raises(OperatorError, match=r"at this point, found an eigenvector of λ = .* Measure it here"):
        which(problem.take(8, seed=0), spectrum=known)
    with torch.no_grad():
        problem.model[0].weight.mul_(1.1)
    with pytest.raises(OperatorError, match=r"at this point, found an eigenvector of λ = .* with vᵀHv = "):
        which(problem, spectrum=known)


@pytest.mark.parametrize("which", [alignment, outliers])
def test_the_context_is_that_of_this_problem(which: Callable[..., Record]) -> None:
    problem = small()
    known = spectrum(problem, k=4, tol=1e-8)
    found = which(problem.replace(microbatch=4), spectrum=known)
    assert known.data_degrees == 1
    assert found.data_degrees == 5
    assert found.context["microbatch"] == 4


def drifting() -> tuple[nn.Module, Problem]:
    """A quadratic whose top eigenvectors are turned at will: H = RᵀDR for inputs √D·R."""
    model = nn.Linear(8, 1, bias=False).double()
    rows = torch.diag(torch.tensor([6.0, 5.0, 4.0, 0.5, 0.4, 0.3, 0.2, 0.1], dtype=torch.float64).sqrt())
    return model, Problem(model, nn.MSELoss(), [(rows, torch.zeros(8, 1, dtype=torch.float64))])


def test_an_eigenspace_that_stays_is_found_at_once() -> None:
    _, problem = drifting()
    first = track(problem, k=3, tol=1e-8, step=1)
    again = track(problem, first, k=3, tol=1e-8, step=2)
    assert math.isnan(first.overlap)
    assert first.came_from.tolist() == [-1, -1, -1]
    assert again.overlap == pytest.approx(1)
    assert again.earlier_step == 1
    np.testing.assert_allclose(again.overlaps, np.eye(3), atol=1e-6)
    np.testing.assert_allclose(again.earlier, first.eigenvalues)
    assert again.came_from.tolist() == [0, 1, 2]


def test_a_turned_eigenspace_is_measured_by_its_angle() -> None:
    angle = 0.4
    rows = torch.diag(torch.tensor([6.0, 5.0, 4.0, 0.5, 0.4, 0.3, 0.2, 0.1], dtype=torch.float64).sqrt())
    turn = torch.eye(8, dtype=torch.float64)
    turn[2, 2] = turn[4, 4] = math.cos(angle)
    turn[2, 4], turn[4, 2] = math.sin(angle), -math.sin(angle)
    model, problem = drifting()
    turned = Problem(model, nn.MSELoss(), [(rows @ turn, torch.zeros(8, 1, dtype=torch.float64))])
    first = track(problem, k=3, tol=1e-9)
    found = track(turned, first, k=3, tol=1e-9)
    np.testing.assert_allclose(found.angles, [0, 0, angle], atol=1e-6)
    assert found.overlap == pytest.approx((2 + math.cos(angle) ** 2) / 3)
    spectra = spectrum(problem, k=3, tol=1e-9), spectrum(turned, k=3, tol=1e-9)
    assert spectra[0].overlap(spectra[1]) == pytest.approx(found.overlap)
    assert track(turned, spectra[0], k=3, tol=1e-9).overlap == pytest.approx(found.overlap)


def test_following_costs_fewer_products_than_starting_anew() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(200, 30, dtype=torch.float64) * torch.linspace(2, 0.1, 30)
    targets = (inputs[:, :4] + 0.1 * torch.randn(200, 4, dtype=torch.float64)).argmax(1)
    model = nn.Sequential(nn.Linear(30, 12), nn.Tanh(), nn.Linear(12, 4)).double()
    problem = Problem(model, nn.CrossEntropyLoss(), [(inputs, targets)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    known, warm, cold = None, 0.0, 0.0
    for step in range(6):
        for _ in range(3 if step else 50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
        anew = track(problem, None, k=3, tol=1e-3, complete=False, step=step)
        known = track(problem, known, k=3, tol=1e-3, complete=False, step=step)
        np.testing.assert_allclose(known.eigenvalues, anew.eigenvalues, rtol=1e-3)
        if step:
            warm, cold = warm + known.cost.products, cold + anew.cost.products
            assert known.overlap > 0.9
    assert warm < 0.85 * cold


def test_an_earlier_record_must_fit() -> None:
    problem = BY_NAME["mlp"].problem()
    first = spectrum(problem, k=2, keep_vectors_below=0)
    with pytest.raises(OperatorError, match="found one that dropped them"):
        track(problem, first, k=2)
    with pytest.raises(
        OperatorError, match="earlier record of the ggn of the same 79 parameters, found the hessian of 79"
    ):
        track(problem, track(problem, k=2), k=2, operator="ggn")
