"""Reentrant activation checkpoints, which have no double backward of their own, are exact and stay what they are outside."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import checkpoint as checkpoints

from operators.plain import gradient_and_hessian, relative
from theodolite.operators import GGN, Hessian
from theodolite.problem import Problem


class Reentrant(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return checkpoints.checkpoint(self.inner, x, use_reentrant=True)


def made() -> tuple[nn.Module, nn.Module, tuple[Tensor, Tensor]]:
    plain = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3), nn.Dropout(0.5), nn.Linear(3, 2)).double()
    model = nn.Sequential(plain[0], Reentrant(plain[1:4]), plain[4])
    return model, plain, (torch.randn(8, 3, dtype=torch.float64), torch.randint(2, (8,)))


@pytest.mark.parametrize("engine", ["auto", "retained", "vmap", "fresh"])
def test_products_through_reentrant_checkpoints_are_exact(engine: Any) -> None:
    model, plain, data = made()
    problem = Problem(model, nn.CrossEntropyLoss(), [data], engine=engine)
    found, gradient = Hessian(problem).dense(), problem.gradient()
    plain.eval()
    expected_gradient, expected = gradient_and_hessian(plain, lambda: F.cross_entropy(plain(data[0]), data[1]))
    assert relative(gradient, expected_gradient) < 1e-10
    assert relative(found, expected) < 1e-10
    assert relative(GGN(problem).dense(), GGN(Problem(plain, nn.CrossEntropyLoss(), [data])).dense()) < 1e-10


def test_dropout_inside_is_recomputed_with_the_same_mask() -> None:
    model, plain, data = made()
    dense = [Hessian(Problem(m, nn.CrossEntropyLoss(), [data], mode="train")).dense() for m in (model, plain)]
    assert relative(*dense) < 1e-10


def test_the_user_s_own_backward_is_as_it_was() -> None:
    model, _, data = made()
    before = checkpoints.CheckpointFunction
    Hessian(Problem(model, nn.CrossEntropyLoss(), [data])) @ torch.ones(39, dtype=torch.float64)
    assert checkpoints.CheckpointFunction is before
    loss = F.cross_entropy(model(data[0].requires_grad_()), data[1])
    with pytest.raises(RuntimeError, match="use_reentrant=True"):
        torch.autograd.grad(loss, list(model.parameters()))
