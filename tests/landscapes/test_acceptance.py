"""A deep network without skips: its plane is refused at every coarse grid, and right where it was not read."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from theodolite.demo import digits
from theodolite.landscapes import plane
from theodolite.problem import Problem


@pytest.mark.slow
def test_a_rugged_plane_is_refused_and_refined() -> None:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(64, 48), nn.ReLU()]
    for _ in range(14):
        layers += [nn.Linear(48, 48), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(48, 10))
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
    inputs, targets = (part[:256] for part in digits())
    optimizer, order = torch.optim.Adam(model.parameters(), lr=1e-3), torch.Generator().manual_seed(1)
    for _ in range(300):
        chosen = torch.randint(len(targets), (128,), generator=order)
        optimizer.zero_grad()
        F.cross_entropy(model(inputs[chosen]), targets[chosen]).backward()
        optimizer.step()
    problem = Problem(model, nn.CrossEntropyLoss(), list(zip(inputs.split(128), targets.split(128), strict=True)))
    few, every = plane(problem, points=51, interpolate=1e-3), plane(problem, points=51)
    assert few.evaluated is not None
    assert every.losses.max() > 1e4 * every.losses.min()
    assert few.evaluated.sum() > 2 * (17 * 17 + 24)
    logs = np.log(every.losses)
    assert np.abs(np.log(few.losses) - logs).max() <= 0.02 * np.ptp(logs)
    np.testing.assert_array_equal(few.losses[few.evaluated], every.losses[few.evaluated])
