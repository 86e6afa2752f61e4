"""What changes the loss between two products is seen: modes, settings of the criterion, values of the model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from theodolite.errors import ProblemError
from theodolite.operators import Hessian
from theodolite.problem import Problem


class Scaled(nn.Module):
    """A criterion with a number that a schedule may change."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = 1.0

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.scale * F.cross_entropy(outputs, targets)


def data() -> list[tuple[Tensor, Tensor]]:
    return [
        (torch.randn(8, 4, dtype=torch.float64), torch.arange(8) % 3),
        (torch.randn(4, 4, dtype=torch.float64), torch.arange(4) % 3),
    ]


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 3)).double()


def test_a_criterion_that_changes_is_followed() -> None:
    criterion = Scaled()
    problem = Problem(net(), criterion, data())
    H, v = Hessian(problem), torch.randn(problem.n, dtype=torch.float64)
    before = H @ v
    criterion.scale = 5.0
    torch.testing.assert_close(H @ v, 5 * before)


class Adapted(nn.Module):
    """A layer with a switch, a scale and named scales, as adapters have them, that counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.adapter = nn.Linear(4, 3), nn.Linear(4, 3)
        self.active, self.temperature, self.scaling, self.calls = True, 1.0, {"default": 1.0}, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        adapted = self.scaling["default"] * self.adapter(x) if self.active else 0.0
        return (self.layer(x) + adapted) / self.temperature


def switch_off(model: Adapted) -> None:
    model.active = False


def warm(model: Adapted) -> None:
    model.temperature = 2.0


def rescale(model: Adapted) -> None:
    model.scaling["default"] = 3.0


@pytest.mark.parametrize("change", [switch_off, warm, rescale])
def test_attributes_of_modules_that_change_are_followed(change: Callable[[Adapted], None]) -> None:
    model = Adapted().double()
    problem = Problem(model, nn.CrossEntropyLoss(), data())
    H, v = Hessian(problem), torch.randn(problem.n, dtype=torch.float64)
    before = H @ v
    change(model)
    expected = Hessian(Problem(model, nn.CrossEntropyLoss(), problem.batches)) @ v
    torch.testing.assert_close(H @ v, expected)
    assert float((before - expected).norm() / expected.norm()) > 1e-2


def test_what_an_evaluation_counts_is_no_change() -> None:
    """Graphs are kept in a model that counts its calls."""
    H = Hessian(Problem(Adapted().double(), nn.CrossEntropyLoss(), data()))
    v = torch.randn(H.shape[0], dtype=torch.float64)
    H @ v
    built = H.gradients
    H @ v
    assert H.gradients == built


def test_modes_that_change_are_followed_as_they_are() -> None:
    model = net().train()
    problem = Problem(model, nn.CrossEntropyLoss(), data(), mode="as is")
    H, v = Hessian(problem), torch.randn(problem.n, dtype=torch.float64)
    noisy = H @ v
    model.eval()
    plain = Hessian(Problem(model, nn.CrossEntropyLoss(), problem.batches)) @ v
    torch.testing.assert_close(H @ v, plain)
    assert float((noisy - plain).norm() / plain.norm()) > 1e-2


@pytest.mark.parametrize("mode", ["eval", "train", "as is"])
def test_totals_that_do_not_add_up_are_refused_in_every_mode(mode: str) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)).double()
    problem = Problem(model, lambda o, t: F.cross_entropy(o, t, reduction="sum"), data(), mode=mode)
    with pytest.raises(ProblemError, match=r"mean over samples, found .* as the mean of its parts"):
        problem.loss()


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_bound_keywords_of_a_known_function_are_weighed_as_the_module(mode: str) -> None:
    model, batches = nn.Linear(4, 3).double(), data()
    bound = Problem(model, partial(F.cross_entropy, ignore_index=0, label_smoothing=0.1), batches, mode=mode)
    module = Problem(model, nn.CrossEntropyLoss(ignore_index=0, label_smoothing=0.1), batches, mode=mode)
    assert bound.loss() == module.loss()
