"""Captured gradients equal those of one sample after the other, over the families of small problems."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from families import BY_NAME, Family
from operators.capture.oracle import gram, per_sample_gradients, relative
from theodolite.operators.capture import capture

EXACT = 1e-10


def oracle(family: Family, batch: Any) -> dict[str, Tensor]:
    model = family.model_and_data()[0].eval()

    def total(sample: Any) -> Tensor:
        if family.loss is not None:
            return family.loss(model, sample)[0]
        criterion = copy.deepcopy(family.criterion)
        assert isinstance(criterion, nn.Module)
        criterion.reduction = "sum"
        return criterion.double()(model(sample[0]), sample[1])

    return per_sample_gradients(model, total, batch)


@pytest.mark.parametrize("name", BY_NAME)
def test_gradients_equal_one_by_one(name: str) -> None:
    family = BY_NAME[name]
    problem = family.problem()
    for chunk in problem.chunks():
        expected = oracle(family, chunk.batch)
        found = capture(problem, chunk).merged()
        assert found.keys() == expected.keys()
        assert "fallback" not in {use.kind for uses in found.values() for use in uses}
        for parameter, uses in found.items():
            materialised = sum(use.block.place(use.materialise()) for use in uses)
            assert relative(materialised, expected[parameter]) < EXACT
            assert relative(sum(use.gram() for use in uses), gram(expected[parameter])) < EXACT
            norms = sum(use.norms().square() for use in uses)
            assert relative(norms, expected[parameter].flatten(1).square().sum(1)) < EXACT
            direction = torch.randn(expected[parameter].shape[1:], dtype=torch.float64)
            dots = sum(use.dots(_part(direction, use.block)) for use in uses)
            assert relative(dots, expected[parameter].flatten(1) @ direction.reshape(-1)) < EXACT


def _part(direction: Tensor, block: Any) -> Tensor:
    return direction.as_strided(block.shape, block.strides, block.offset)
