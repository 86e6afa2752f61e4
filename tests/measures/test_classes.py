"""Outliers against classes, and the curvature of each class by itself."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from families import BY_NAME
from theodolite.errors import DataError, OperatorError, ProblemError
from theodolite.measures import batch_sharpness, classwise, outliers, spectrum, tuning
from theodolite.measures.subject import OPERATORS
from theodolite.operators import Hessian, problems_by_group
from theodolite.problem import Problem
from theodolite.records import Record


def blobs(classes: int, *, width: int = 16, seed: int = 0, steps: int = 60) -> Problem:
    """A ReLU network trained on Gaussian blobs around orthogonal centres."""
    g = torch.Generator().manual_seed(seed)
    targets = torch.repeat_interleave(torch.arange(classes), 40)
    centres = 2.0 * torch.linalg.qr(torch.randn(32, classes, generator=g, dtype=torch.float64)).Q.T
    inputs = centres[targets] + 0.3 * torch.randn(len(targets), 32, generator=g, dtype=torch.float64)
    model = trained(inputs, targets, width=width, seed=seed, steps=steps)
    order = torch.randperm(len(targets), generator=g)
    inputs, targets = inputs[order], targets[order]
    return Problem(model, nn.CrossEntropyLoss(), list(zip(inputs.split(50), targets.split(50), strict=True)))


def trained(inputs: torch.Tensor, targets: torch.Tensor, *, width: int, seed: int, steps: int) -> nn.Module:
    """A network of one hidden layer after full-batch steps with momentum."""
    torch.manual_seed(seed)
    classes = int(targets.max()) + 1
    model = nn.Sequential(nn.Linear(inputs.shape[1], width), nn.ReLU(), nn.Linear(width, classes)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    return model


def test_the_overlap_is_that_of_dense_eigenvectors_with_class_means() -> None:
    problem = blobs(3, width=4, steps=20)
    found = outliers(problem, spectrum=spectrum(problem, k=6, tol=1e-9, probes=4))
    vectors = torch.linalg.eigh(Hessian(problem).dense()).eigenvectors.flip(1)[:, :6]
    means = torch.stack([part.gradient() for part in problems_by_group(problem).values()])
    Q = torch.linalg.qr(means.T).Q
    np.testing.assert_allclose(found.shares, (Q.T @ vectors).square().sum(0).numpy(), atol=1e-6)
    count = found.count
    assert found.overlap == pytest.approx(float((Q.T @ vectors[:, :count]).square().sum()) / count, abs=1e-6)
    np.testing.assert_allclose(found.gradient_norms, means.norm(dim=1).numpy(), rtol=1e-9)
    assert found.cosines[0, 1] == pytest.approx(float(torch.cosine_similarity(means[0], means[1], dim=0)), abs=1e-9)
    assert found.classes == ("0", "1", "2")
    assert found.rank == 3
    assert found.chance == pytest.approx(3 / problem.n)


def test_the_classes_of_blobs_are_seen_in_the_spectrum() -> None:
    found = outliers(blobs(3))
    assert abs(found.excess) <= 1
    assert found.overlap > 20 * found.chance
    assert "3 classes" in repr(found)


def test_a_spectrum_of_something_else_is_refused() -> None:
    problem = blobs(2, width=4, steps=1)
    with pytest.raises(OperatorError, match=r"its 142 parameters, found one of 79"):
        outliers(problem, spectrum=spectrum(BY_NAME["mlp"].problem(), k=2))
    with pytest.raises(OperatorError, match=r"found none of the upper end \(which='smallest'\)"):
        outliers(problem, spectrum=spectrum(problem, k=2, which="smallest"))
    with pytest.raises(OperatorError, match="found no eigenvectors"):
        outliers(problem, spectrum=spectrum(problem, k=2, keep_vectors_below=0))


def test_without_a_density_the_bulk_is_not_known() -> None:
    problem = blobs(2, width=4, steps=20)
    found = outliers(problem, spectrum=spectrum(problem, k=4))
    assert found.above_bulk is None
    assert np.isnan(found.centre)


@pytest.mark.parametrize(
    ("name", "operator"),
    [
        ("mlp", "hessian"),
        ("mlp-weighted", "ggn"),
        pytest.param("mlp", "ggn", marks=pytest.mark.slow),
        pytest.param("mlp-weighted", "hessian", marks=pytest.mark.slow),
    ],
)
def test_classes_have_the_dense_spectra_of_their_own_problems(name: str, operator: str) -> None:
    problem = BY_NAME[name].problem()
    found = classwise(problem, tol=1e-8, probes=2, steps=problem.n, operator=operator)
    whole = 0.0
    for place, part in enumerate(problems_by_group(problem).values()):
        exact = torch.linalg.eigvalsh(OPERATORS[operator](part).dense())
        scale = float(exact.abs().max())
        assert found.largest[place] == pytest.approx(float(exact[-1]), abs=1e-6 * scale)
        assert found.smallest[place] == pytest.approx(float(exact[0]), abs=1e-6 * scale)
        assert found.losses[place] == pytest.approx(part.loss())
        assert found.samples[place] == part.samples
        estimate = found.by_group[str(place)]
        assert abs(estimate.value - float(exact.sum())) <= 4 * estimate.stderr + 1e-6 * scale
        whole += found.weights[place] * float(exact.sum())
    assert float(OPERATORS[operator](problem).dense().trace()) == pytest.approx(whole, rel=1e-9)
    assert abs(found.trace.value - whole) <= 4 * found.trace.stderr + 1e-6 * abs(whole)


def test_domains_are_groups_too() -> None:
    problem = BY_NAME["mlp-squared"].problem()
    domains = ["left", "right"] * 8 + ["left"]
    found = classwise(problem, by=domains, probes=2)
    assert found.groups == ("left", "right")
    np.testing.assert_array_equal(found.samples, [9, 8])
    with pytest.raises(DataError, match="one integer target a sample"):
        classwise(problem)


def test_a_class_without_weight_has_no_curvature() -> None:
    inputs, targets = torch.randn(30, 4, dtype=torch.float64), torch.arange(30) % 3
    criterion = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 0.0, 2.0]))
    problem = Problem(nn.Linear(4, 3).double(), criterion, [(inputs, targets)])
    found = classwise(problem, probes=2)
    assert np.isnan(found.largest).tolist() == [False, True, False]
    assert found.converged.tolist() == [True, False, True]
    assert np.isnan(found.saddles).tolist() == [False, True, False]
    assert found.trace.value == pytest.approx(float((found.weights * found.traces)[[0, 2]].sum()))
    assert np.isfinite(found.trace.stderr)
    assert "deepest saddle: 1" not in repr(found)
    tops = outliers(problem)
    assert tops.classes == ("0", "2")
    assert np.isfinite(tops.shares).all()
    assert tops.notes[-1] == "left out, without weight in the loss: 1"


def test_groups_have_probes_of_their_own() -> None:
    """Two groups of the same samples: with the same probes the error of the whole would be √2 too small."""
    torch.manual_seed(0)
    inputs, targets = torch.randn(12, 60, dtype=torch.float64), torch.randint(3, (12,))
    problem = Problem(nn.Linear(60, 3).double(), nn.CrossEntropyLoss(), [(inputs.repeat(2, 1), targets.repeat(2))])
    found = classwise(problem, by=["a"] * 12 + ["b"] * 12, probes=3, steps=3)
    assert found.largest[0] == pytest.approx(found.largest[1], rel=1e-3)
    assert abs(found.traces[0] - found.traces[1]) > 1e-6


@pytest.mark.parametrize("measure", [classwise, batch_sharpness, tuning])
@pytest.mark.parametrize("operator", ["covariance", "fischer"])
def test_what_is_no_curvature_is_refused(measure: Callable[..., Record], operator: str) -> None:
    with pytest.raises(ProblemError, match=rf"one of 'hessian', 'ggn', found '{operator}'"):
        inspect.unwrap(measure)(BY_NAME["mlp"].problem(), operator=operator)


@pytest.mark.slow
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_as_many_outliers_as_classes_whatever_the_width(classes: int) -> None:
    """Sagun et al. 2017, the median over five seeds: one outlier a class or one less, from 16 as from 64 hidden units."""
    counts, overlaps = [], []
    for width in (16, 64):
        found = [outliers(blobs(classes, width=width, seed=seed)) for seed in range(5)]
        counts.append(float(np.median([each.count for each in found])))
        overlaps += [each.overlap / each.chance for each in found]
        assert min(each.above_bulk or 3 * classes for each in found) >= classes - 1
    assert all(classes - 1 <= count <= classes for count in counts)
    assert counts[0] == counts[1]
    assert min(overlaps) > 10
