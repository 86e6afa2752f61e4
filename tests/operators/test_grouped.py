"""Weighted operators of classes and domains add up to the whole, and each is that of its own samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from families import BY_NAME, FAMILIES, SIZES, Family, merged
from operators.plain import gradient_and_hessian, relative
from theodolite.errors import DataError, OperatorError
from theodolite.operators import GGN, Fisher, GradientCovariance, Grouped, Hessian, Jacobian, problems_by_group
from theodolite.problem import Problem

EXACT = 1e-10
DOMAINS = ["web", "code", "web", "books"] * 4 + ["code"]
CLASSES = pytest.mark.parametrize("name", ["mlp", "mlp-weighted", "convnet", "lstm", "frozen"])
all_families = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


@CLASSES
@pytest.mark.parametrize("operator", [Hessian, GGN, Fisher])
def test_classes_add_up_to_the_whole(name: str, operator: Any) -> None:
    problem = BY_NAME[name].problem()
    grouped = Grouped(problem, operator=operator)
    whole = operator(problem).dense()
    assert relative(grouped.dense(), whole) < EXACT
    parts = grouped.products(torch.eye(problem.n, dtype=torch.float64))
    weights = torch.tensor(list(grouped.weights.values()), dtype=torch.float64)
    assert relative(torch.einsum("g,gnm->nm", weights, parts), whole) < EXACT
    assert float(weights.sum()) == pytest.approx(1.0, rel=1e-12)
    loss = sum(grouped.weights[label] * grouped.losses[label] for label in grouped.weights)
    assert loss == pytest.approx(problem.loss(), rel=1e-12)
    assert sum(grouped.samples.values()) == problem.samples


@all_families
def test_domains_add_up_to_the_whole(family: Family) -> None:
    """Also where samples weigh by class or by valid tokens, and for criteria that sum."""
    problem = family.problem()
    grouped = Grouped(problem, by=DOMAINS)
    assert list(grouped.problems) == ["books", "code", "web"]
    V = torch.randn(problem.n, 3, dtype=torch.float64)
    assert relative(grouped @ V, Hessian(problem) @ V) < EXACT


def test_a_class_has_the_hessian_of_its_own_samples() -> None:
    model, batches = BY_NAME["mlp"].model_and_data()
    (x, y), *_ = merged(batches)
    grouped = Grouped(BY_NAME["mlp"].problem_of(model, batches))
    for label in (0, 1, 2):
        mine = y == label
        _, expected = gradient_and_hessian(model, lambda mine=mine: F.cross_entropy(model(x[mine]), y[mine]))
        assert relative(grouped.operators[label].dense(), expected) < EXACT
        assert grouped.samples[label] == int(mine.sum())
        assert grouped.weights[label] == pytest.approx(float(mine.double().mean()))


def test_labels_may_be_given_in_any_form() -> None:
    model, batches = BY_NAME["mlp"].model_and_data()
    problem = BY_NAME["mlp"].problem_of(model, batches)
    targets = torch.cat([batch[1] for batch in batches])
    reference = {label: part.loss() for label, part in problems_by_group(problem).items()}
    for by in (targets, targets.numpy(), targets.tolist(), tuple(targets), lambda batch: batch[1]):
        assert {label: part.loss() for label, part in problems_by_group(problem, by=by).items()} == reference
    words = problems_by_group(problem, by=lambda batch: ["even" if y % 2 == 0 else "odd" for y in batch[1].tolist()])
    assert list(words) == ["even", "odd"]
    assert words["odd"].loss() == pytest.approx(reference[1])


def test_groups_of_a_loader_are_those_of_a_list() -> None:
    model, batches = BY_NAME["mlp"].model_and_data()
    (x, y), *_ = merged(batches)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=7)
    found = Grouped(BY_NAME["mlp"].problem_of(model, loader))
    assert relative(found.dense(), Hessian(BY_NAME["mlp"].problem_of(model, batches)).dense()) < EXACT


def test_one_product_over_the_data_serves_all_groups() -> None:
    grouped = Grouped(BY_NAME["mlp"].problem())
    grouped @ torch.ones(79, dtype=torch.float64)
    samples = sum(part.gradients * part.problem.samples for part in grouped.operators.values())
    assert samples == sum(SIZES)  # each sample's graph was built once
    assert [part.products for part in grouped.operators.values()] == [1, 1, 1]


def test_the_certificate_is_made_once_for_all_groups() -> None:
    problem = BY_NAME["mlp"].problem()
    Grouped(problem) @ torch.ones(79, dtype=torch.float64)
    assert list(problem.certificates) == [problem.layout.names]


def test_a_class_without_weight_counts_nothing() -> None:
    model, batches = BY_NAME["mlp"].model_and_data()
    criterion = nn.CrossEntropyLoss(weight=torch.tensor([0.0, 1.0, 2.0]))
    problem = Problem(model, criterion, batches)
    grouped = Grouped(problem)
    assert grouped.weights[0] == 0.0
    assert np.isnan(grouped.losses[0])
    v = torch.randn(79, dtype=torch.float64)
    assert relative(grouped @ v, Hessian(problem) @ v) < EXACT


def test_products_of_a_class_without_weight_are_zero() -> None:
    model = nn.Linear(3, 2)
    data = [(torch.randn(8, 3), torch.tensor([0, 1] * 4))]
    grouped = Grouped(Problem(model, nn.CrossEntropyLoss(weight=torch.tensor([1.0, 0.0])), data))
    V = torch.randn(8, 2)
    products = grouped.products(V)
    assert torch.equal(products[1], torch.zeros(8, 2))
    assert torch.equal(products[0], grouped @ V)


def dropped() -> Problem:
    model = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 3)).double()
    return Problem(model, nn.CrossEntropyLoss(), BY_NAME["mlp"].batches(), mode="train")


def normalised() -> Problem:
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).double()
    return Problem(model, nn.CrossEntropyLoss(), BY_NAME["mlp"].batches(), mode="train")


REFUSED: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "dropout": (dropped, {}, OperatorError, r"groups to add up.*dropout masks \(mode='train'\).*Use mode='eval'"),
    "batch statistics": (normalised, {}, OperatorError, r"not coupled by BatchNorm.*mode='train'.*Use mode='eval'"),
    "tokens": (BY_NAME["transformer"].problem, {}, DataError, r"one integer target a sample.*int64 of shape \(7, 5\)"),
    "numbers": (
        BY_NAME["mlp-squared"].problem,
        {},
        DataError,
        r"one integer target a sample.*float64 of shape \(7, 3\)",
    ),
    "no targets": (BY_NAME["from-loss"].problem, {}, DataError, r"one integer target a sample.*found NoneType"),
    "a word": (BY_NAME["mlp"].problem, {"by": "domain"}, DataError, r"by='targets', labels, or a function.*'domain'"),
    "too few": (BY_NAME["mlp"].problem, {"by": [0] * 9}, DataError, r"each of 7 samples of a batch, found 2"),
    "too many": (BY_NAME["mlp"].problem, {"by": [0] * 20}, DataError, r"each of 17 samples, found 20"),
    "a matrix": (BY_NAME["mlp"].problem, {"by": torch.zeros(17, 2)}, DataError, r"shape \(samples,\), found \(17, 2\)"),
    "no mean": (
        BY_NAME["mlp"].problem,
        {"operator": GradientCovariance},
        OperatorError,
        r"weighted mean over samples.*found <GradientCovariance",
    ),
    "no sum": (BY_NAME["mlp"].problem, {"operator": Jacobian}, OperatorError, r"weighted mean over samples"),
    "empirical": (
        BY_NAME["mlp"].problem,
        {"operator": lambda part: Fisher(part, kind="empirical")},
        OperatorError,
        r"weighted mean over samples",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_groups_is_refused(case: str) -> None:
    make, options, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        Grouped(make(), **options)


def test_too_many_groups_are_refused() -> None:
    problem = Problem(nn.Linear(2, 1), nn.MSELoss(), [(torch.randn(1500, 2), torch.randn(1500, 1))])
    with pytest.raises(DataError, match=r"at most 1000 groups.*Are the labels real numbers"):
        problems_by_group(problem, by=lambda batch: batch[1][:, 0])
