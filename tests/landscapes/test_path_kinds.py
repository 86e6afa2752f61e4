"""Arguments of another kind are named, past the type checker of the tests, which users do not have."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from torch import nn

from theodolite.errors import ProblemError
from theodolite.landscapes.paths import basin, bezier, branching, connectivity, path
from theodolite.problem import Problem


def two() -> tuple[Problem, nn.Module, nn.Module]:
    torch.manual_seed(0)
    one, other = (nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)) for _ in range(2))
    return Problem(one, nn.MSELoss(), [(torch.randn(6, 3), torch.randn(6, 2))]), one, other


def test_checkpoints_in_a_list_are_named_by_their_number() -> None:
    problem, one, other = two()
    found = connectivity(problem, [one, other], points=3)
    assert found.names == ("0", "1")
    np.testing.assert_array_equal(found.heights, connectivity(problem, {"a": one, "b": other}, points=3).heights)
    with pytest.raises(ProblemError, match=r"several checkpoints by name, .* or a list of them, found Sequential"):
        inspect.unwrap(connectivity)(problem, one)


def test_curves_and_matchings_of_another_kind_are_named() -> None:
    problem, *ends = two()
    bend, unchecked = bezier(problem, *ends, steps=2), inspect.unwrap(path)
    with pytest.raises(ProblemError, match=r"Expected curves by name, .* found Curve\."):
        unchecked(problem, *ends, curves=bend)
    with pytest.raises(ProblemError, match=r"found {'x': 'int'}"):
        unchecked(problem, *ends, curves={"x": 5})
    with pytest.raises(ProblemError, match=r"Expected aligned to be True, False or what .* found str"):
        unchecked(problem, *ends, aligned="yes")


def test_an_optimiser_of_other_parameters_cannot_train_a_bend() -> None:
    problem, one, other = two()
    unchecked = inspect.unwrap(bezier)
    with pytest.raises(ProblemError, match=r"a function that makes an optimiser .* found Adam\."):
        unchecked(problem, one, other, optimizer=torch.optim.Adam(one.parameters()))
    with pytest.raises(ProblemError, match=r"found one that made None\."):
        unchecked(problem, one, other, optimizer=lambda tensors: None)


def test_training_with_other_arguments_is_refused_before_it_runs() -> None:
    problem, _, other = two()

    def train(model: nn.Module) -> None:
        raise AssertionError("not to be called")

    with pytest.raises(ProblemError, match=r"\(model, memory, steps, seed\) .*, found train\(model"):
        inspect.unwrap(branching)(problem, train, branches=[0], steps=2)
    with pytest.raises(ProblemError, match="found None, a NoneType"):
        inspect.unwrap(basin)(problem, None, other, alphas=[0.0], steps=2)
