"""Centred kernel alignment: its invariances, its expectation, a brute-force estimate, and its error."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from torch import nn

from families import BY_NAME
from theodolite.errors import ProblemError
from theodolite.landscapes.similarity import features_of, similarity
from theodolite.records.similarity import cka


def test_cka_is_blind_to_rotation_scale_and_shift_alone() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 5))
    turn = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    found, biased = cka(x, 3 - 0.1 * x @ turn)
    assert (found.value, biased) == pytest.approx((1.0, 1.0), abs=1e-12)
    assert found.stderr == pytest.approx(0.0, abs=1e-8)
    stretched, _ = cka(x, x * [10, 1, 1, 1, 1])
    assert stretched.value < 0.8


def test_debiased_cka_is_the_sum_over_distinct_samples() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(7, 3)), rng.normal(size=(7, 2))

    def hsic(first: np.ndarray, second: np.ndarray) -> float:
        k, m = first @ first.T, second @ second.T
        pairs = np.mean([k[i, j] * m[i, j] for i, j in permutations(range(7), 2)])
        triples = np.mean([k[i, j] * m[i, h] for i, j, h in permutations(range(7), 3)])
        quadruples = np.mean([k[i, j] * m[h, q] for i, j, h, q in permutations(range(7), 4)])
        return float(pairs + quadruples - 2 * triples)

    expected = hsic(x, y) / math.sqrt(hsic(x, x) * hsic(y, y))
    assert cka(x, y + 3.0)[0].value == pytest.approx(expected, rel=1e-10)
    centred = [each - each.mean(0) for each in (x, y)]
    cross, first, second = (
        np.linalg.norm(a.T @ b) for a, b in zip([centred[0]] * 2 + [centred[1]], [centred[1], *centred], strict=True)
    )
    assert cka(x, y)[1] == pytest.approx(cross**2 / (first * second), rel=1e-12)


def test_independent_features_have_none_whatever_their_number() -> None:
    rng = np.random.default_rng(2)
    found = [cka(rng.normal(size=(24, 60)), rng.normal(size=(24, 60)), blocks=12) for _ in range(60)]
    values, errors = np.array([[one.value, one.stderr] for one, _ in found]).T
    assert abs(values.mean()) < 3 * values.std() / math.sqrt(60)
    assert 1 < np.sqrt(np.square(errors).mean()) / values.std() < 2  # √2 of a degenerate statistic, and noise
    assert min(biased for _, biased in found) > 0.5


def test_the_error_is_the_scatter_over_samples() -> None:
    rng = np.random.default_rng(3)
    found = []
    for _ in range(80):
        shared = rng.normal(size=(60, 2))
        found.append(cka(shared + rng.normal(size=(60, 2)), shared + rng.normal(size=(60, 2)))[0])
    values = np.array([one.value for one in found])
    assert np.mean([one.stderr for one in found]) == pytest.approx(values.std(), rel=0.3)
    assert found[0].degrees == 19


def test_too_few_samples_and_constant_features_have_none() -> None:
    assert math.isnan(cka(np.eye(3), np.eye(3))[0].value)
    found, biased = cka(np.ones((9, 2)), np.random.default_rng(0).normal(size=(9, 2)))
    assert math.isnan(found.value)
    assert math.isnan(biased)


@pytest.mark.parametrize("name", ["mlp", "convnet"])
def test_checkpoints_are_compared_by_outputs_and_modules(name: str) -> None:
    family = BY_NAME[name]
    model, batches = family.model_and_data()
    problem = family.problem_of(model, batches)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    other = {
        key: value + 0.3 * torch.sin(torch.arange(value.numel()).view(value.shape))
        for key, value in before.items()
        if value.is_floating_point()
    }
    module = next(name for name, part in model.named_modules() if isinstance(part, nn.Linear | nn.Conv2d))
    for found in (
        similarity(problem, {"a": model, "b": other}),
        similarity(problem, {"a": model, "b": other}, module=module),
    ):
        np.testing.assert_allclose(np.diag(found.values), 1.0, rtol=1e-10)
        assert found.values[0, 1] == found.values[1, 0] < 0.999
        assert (found.samples, found.blocks, found.module in (None, module)) == (17, 8, True)
        assert found.between("a", "b").stderr > 0
        assert "most alike" in repr(found)
    features = features_of(problem, module=None, samples=99)
    with torch.no_grad():
        expected = torch.cat([model.eval()(inputs) for inputs, _ in batches])
    np.testing.assert_allclose(features, expected.flatten(1).numpy(), rtol=1e-12)
    assert all(bool((value == before[key]).all()) for key, value in model.state_dict().items())


def test_only_the_first_samples_are_compared_and_that_is_said() -> None:
    problem = BY_NAME["mlp"].problem()
    found = similarity(problem, {"a": problem.model, "b": problem.model}, samples=9)
    assert (found.samples, found.notes) == (9, ("the first 9 of 17 samples",))


def test_mistakes_are_told() -> None:
    problem = BY_NAME["mlp"].problem()
    with pytest.raises(ProblemError, match="at least 2 checkpoints to compare, found 1"):
        similarity(problem, {"a": problem.model})
    two = {"a": problem.model, "b": problem.model}
    with pytest.raises(ProblemError, match=r"among 0, 1, .*found 'head'"):
        similarity(problem, two, module="head")
    with pytest.raises(ProblemError, match="at least 4 samples"):
        similarity(problem, two, samples=3)
    with pytest.raises(ValueError, match="found 'c'"):
        similarity(problem, two).between("a", "c")
