"""What is not finite is named before it is taken for a fault of the matching."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from theodolite.errors import NonFiniteError
from theodolite.landscapes.paths import match
from theodolite.problem import Problem


def test_what_is_not_finite_is_named_before_units_are_matched() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    x, y = torch.zeros(6, 3), torch.zeros(6, 2)
    problem = Problem(model, nn.MSELoss(), [(x, y)])
    broken = {name: value.clone() for name, value in model.state_dict().items()}
    broken["2.weight"][0, 1] = float("nan")
    for ends, which in (((model, broken), "end"), ((broken, model), "start")):
        with pytest.raises(NonFiniteError, match=rf"NaN or infinity in {which}: 2.weight \(1 of 8\)"):
            match(problem, *ends)
    lost = Problem(model, nn.MSELoss(), [(x.index_fill(0, torch.tensor([1]), float("nan")), y)])
    with pytest.raises(NonFiniteError, match=r"output 0 \(2 of 12\), and in the data: batch\[0\] \(3 of 18\)"):
        match(lost, model, model)

    class Overflow(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + float("inf")

    large = Problem(nn.Sequential(nn.Linear(3, 4), Overflow(4, 2)), nn.MSELoss(), [(x, y)])
    with pytest.raises(NonFiniteError, match="of finite data: the model overflows on it"):
        match(large, large.model, large.model)
