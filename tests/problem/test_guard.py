"""The guard leaves a model and all random state as they were, however its block ends."""

from __future__ import annotations

import random
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from snapshots import snapshot
from theodolite.problem import undisturbed


def model_with_everything() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    model[0].bias.requires_grad_(False)
    model[2].eval()
    model(torch.randn(6, 3)).sum().backward()
    return model


def wreck(model: nn.Module) -> None:
    """Everything that a careless measure may do."""
    model.eval()
    model[2].train()
    model[0].bias.requires_grad_(True)
    model[3].weight.requires_grad_(False)
    with torch.no_grad():
        model[0].weight.mul_(3.0)
        model[1].running_mean.add_(1.0)
        model[3].weight.grad.zero_()
    model[3].bias.data = torch.zeros(2)
    model[1].running_var = torch.full((4,), 7.0)
    model[1].num_batches_tracked += 5
    model[0].weight.grad = None
    torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002


@pytest.mark.parametrize("ending", [None, ValueError, KeyboardInterrupt, SystemExit], ids=str)
def test_everything_is_restored_however_the_block_ends(ending: type[BaseException] | None) -> None:
    model = model_with_everything()
    before = snapshot(model, python=True)
    with suppress(ending or ValueError), undisturbed(model):
        wreck(model)
        if ending is not None:
            raise ending
    assert snapshot(model, python=True) == before


def test_the_guard_hands_the_model_to_its_block_and_may_be_nested() -> None:
    model = model_with_everything()
    before = snapshot(model, python=True)
    with undisturbed(model) as outer, undisturbed(outer) as inner:
        assert inner is model
        wreck(model)
    assert snapshot(model, python=True) == before


def test_a_graph_built_before_the_guard_can_be_differentiated_after_it() -> None:
    # Restoring by copying would count as an in-place write, and autograd would refuse the training step.
    model, inputs = model_with_everything(), torch.randn(6, 3)
    loss = model(inputs).square().sum()
    with undisturbed(model):
        model.eval()(inputs)
    loss.backward()


def test_values_that_are_not_numbers_are_restored_too() -> None:
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight[0, 0] = float("nan")
    before = model.weight.detach().clone()
    with undisturbed(model), torch.no_grad():
        model.weight.zero_()
    assert torch.equal(model.weight.isnan(), before.isnan())
    assert torch.equal(model.weight[1], before[1])


def test_without_copies_only_flags_gradients_and_random_state_are_restored() -> None:
    model = model_with_everything()
    value, gradient, draws = model[0].weight.detach().clone(), model[3].weight.grad, torch.get_rng_state()
    with undisturbed(model, copy=False):
        model.eval()
        model[3].weight.grad = None
        torch.rand(1)
        with torch.no_grad():
            model[0].weight.mul_(2.0)
    assert model.training
    assert model[3].weight.grad is gradient
    assert torch.equal(torch.get_rng_state(), draws)
    assert torch.equal(model[0].weight, 2 * value)


def test_the_next_training_step_is_the_same_bit_for_bit() -> None:
    def train(*, probed: bool) -> list[Tensor]:
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        for _ in range(3):
            model(torch.randn(6, 3)).square().mean().backward()
            if probed:
                with undisturbed(model):
                    disturb(model, optimizer)
            optimizer.step()
            optimizer.zero_grad()
        return [value.detach().clone() for value in model.state_dict().values()]

    def disturb(model: nn.Module, optimizer: Any) -> None:
        model.train(False)
        model.zero_grad(set_to_none=False)
        model(torch.randn(50, 3)).sum().backward()

    assert all(torch.equal(a, b) for a, b in zip(train(probed=False), train(probed=True), strict=True))
