"""The stability ratio is 1 exactly where the optimiser's own iteration on a quadratic stops converging."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, NAdam, Optimizer, RMSprop

from families import BY_NAME
from theodolite.measures import stability
from theodolite.problem import Problem

CURVATURES = torch.tensor([0.3, 1.0, 4.0], dtype=torch.float64)


class Bowl(nn.Module):
    """L = ½ Σ λ_i θ_i²."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64))

    def forward(self) -> Tensor:
        return 0.5 * (CURVATURES * self.theta.square()).sum()


def bowl_problem(model: nn.Module) -> Problem:
    return Problem.from_loss(model, lambda model, batch: model(), [torch.zeros(1)])


def diverges(optimizer: Optimizer, model: nn.Module, *, steps: int = 400) -> bool:
    """Whether θ grows from a tiny displacement with the preconditioner frozen."""
    start = float(model.theta.detach().norm())
    for _ in range(steps):
        optimizer.zero_grad()
        model().backward()
        optimizer.step()
    return float(model.theta.detach().norm()) > start


SGD_FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "heavy ball": {"momentum": 0.9},
    "nesterov": {"momentum": 0.8, "nesterov": True},
    "dampening": {"momentum": 0.7, "dampening": 0.4},
    "decay": {"momentum": 0.5, "weight_decay": 0.5},
}


@pytest.mark.parametrize("form", SGD_FORMS)
@pytest.mark.parametrize(("factor", "expected"), [(0.99, False), (1.01, True)])
def test_sgd_diverges_exactly_above_ratio_one(form: str, factor: float, expected: bool) -> None:
    def at(rate: float) -> tuple[Bowl, SGD]:
        model = Bowl()
        return model, SGD(model.parameters(), lr=rate, **SGD_FORMS[form])

    model, optimizer = at(1.0)
    edge = 1.0 / stability(bowl_problem(model), optimizer, tol=1e-10).ratio
    model, optimizer = at(factor * edge)
    found = stability(bowl_problem(model), optimizer, tol=1e-10)
    assert found.ratio == pytest.approx(factor, rel=1e-8)
    assert diverges(optimizer, model) is expected


def frozen_adam(model: Bowl, rate: float, kind: type[Adam], second: float, **options: Any) -> Adam:
    """Adam late in training, with a second moment so slow that the preconditioner is constant."""
    optimizer = kind(model.parameters(), lr=rate, betas=(0.9, 1 - 1e-9), **options)
    model().backward()
    optimizer.step()
    state = optimizer.state[model.theta]
    # v / (1 − β₂ᵗ) must equal `second` and stay there; the first moment's correction must have died out.
    state["step"] = torch.tensor(1e9)
    correction = 1 - (1 - 1e-9) ** 1e9
    state["exp_avg_sq"] = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64) * second * correction
    state["exp_avg"].zero_()
    with torch.no_grad():
        model.theta.copy_(1e-6 * torch.tensor([1.0, -1.0, 1.0]))
    return optimizer


@pytest.mark.parametrize(("kind", "decay"), [(Adam, 0.0), (AdamW, 0.3), (Adam, 0.3)])
@pytest.mark.parametrize(("factor", "expected"), [(0.98, False), (1.02, True)])
def test_adam_diverges_above_ratio_one(kind: type[Adam], decay: float, factor: float, expected: bool) -> None:
    model = Bowl()
    optimizer = frozen_adam(model, 1.0, kind, 1e-2, weight_decay=decay)
    edge = 1.0 / stability(bowl_problem(model), optimizer, tol=1e-10).ratio
    model = Bowl()
    optimizer = frozen_adam(model, factor * edge, kind, 1e-2, weight_decay=decay)
    found = stability(bowl_problem(model), optimizer, tol=1e-10)
    assert found.ratio == pytest.approx(factor, rel=1e-6)
    assert diverges(optimizer, model, steps=40) is expected


def test_adam_without_decay_is_judged_against_38_over_lr() -> None:
    model = Bowl()
    optimizer = frozen_adam(model, 0.01, Adam, 1e-2)
    found = stability(bowl_problem(model), optimizer, tol=1e-10)
    P = (torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64) * 1e-2).sqrt() + 1e-8
    assert found.threshold == pytest.approx(38 / 0.01)
    assert found.preconditioned_sharpness == pytest.approx(float((CURVATURES / P).max()), rel=1e-6)
    assert found.sharpness == pytest.approx(4.0)


@pytest.mark.parametrize("make", [lambda p: RMSprop(p, lr=0.01, momentum=0.5), lambda p: Adagrad(p, lr=0.1)])
def test_other_preconditioners_match_their_state(make: Callable[..., Optimizer]) -> None:
    model = Bowl()
    optimizer = make(model.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        model().backward()
        optimizer.step()
    found = stability(bowl_problem(model), optimizer, tol=1e-10)
    state = optimizer.state[model.theta]
    root = state["square_avg"].sqrt() + 1e-8 if "square_avg" in state else state["sum"].sqrt() + 1e-10
    assert found.preconditioned_sharpness == pytest.approx(float((CURVATURES / root).max()), rel=1e-8)
    assert found.threshold == pytest.approx(3 / 0.01 if isinstance(optimizer, RMSprop) else 2 / 0.1)


def test_several_learning_rates_have_one_ratio() -> None:
    model, batches = BY_NAME["mlp"].model_and_data()
    groups = [{"params": model[0].parameters(), "lr": 0.3}, {"params": model[2].parameters(), "lr": 0.01}]
    groups.append({"params": model[4].parameters(), "lr": 0.1})
    problem = BY_NAME["mlp"].problem_of(model, batches)
    found = stability(problem, SGD(groups, lr=0.1, momentum=0.9), tol=1e-10)
    from theodolite.operators import Hessian

    rates = torch.cat([torch.full((p.numel(),), g["lr"], dtype=torch.float64) for g in groups for p in _of(model, g)])
    H = Hessian(problem).dense()
    exact = torch.linalg.eigvalsh(rates.sqrt()[:, None] * H * rates.sqrt())[-1] / (2 * 1.9)
    assert found.ratio == pytest.approx(float(exact), rel=1e-8)
    assert found.threshold == 1.0
    assert "several learning rates" in found.notes[-1]


def _of(model: nn.Module, group: dict[str, Any]) -> list[nn.Parameter]:
    index = {0.3: 0, 0.01: 2, 0.1: 4}[group["lr"]]
    return list(model[index].parameters())


def test_unknown_optimisers_are_measured_but_not_judged() -> None:
    model = Bowl()
    found = stability(bowl_problem(model), NAdam(model.parameters()))
    assert found.sharpness == pytest.approx(4.0, rel=1e-4)
    assert math.isnan(found.ratio)
    assert "no stability bound: NAdam" in found.notes[-1]


def test_adam_before_its_first_step_is_not_judged() -> None:
    model = Bowl()
    assert math.isnan(stability(bowl_problem(model), Adam(model.parameters())).ratio)


def test_a_diverged_loss_is_a_reading() -> None:
    model = Bowl()
    with torch.no_grad():
        model.theta[0] = float("inf")
    found = stability(bowl_problem(model), SGD(model.parameters(), lr=0.1))
    assert math.isinf(found.loss)
    assert math.isnan(found.sharpness)
    assert not found.converged


def test_sharpness_carries_its_data_error() -> None:
    model, batches = BY_NAME["mlp"].model_and_data()
    found = stability(BY_NAME["mlp"].problem_of(model, batches), SGD(model.parameters(), lr=0.1))
    assert found.sharpness_stderr > 0
    assert found.converged
    assert found.residual <= found.tol
