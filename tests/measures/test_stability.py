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
from theodolite.records import Stability

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


COUPLED = torch.tensor(
    [[3.0, 0.8, -0.4, 0.2], [0.8, 1.5, 0.6, 0.1], [-0.4, 0.6, 2.0, 0.9], [0.2, 0.1, 0.9, 1.0]], dtype=torch.float64
)


class Halves(nn.Module):
    """L = ½ θᵀHθ with θ in two parameters, for two groups."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        self.b = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self) -> Tensor:
        theta = torch.cat([self.a, self.b])
        return 0.5 * theta @ COUPLED @ theta


SECOND = {"a": torch.tensor([4e-4, 1e-2], dtype=torch.float64), "b": torch.tensor([1e-3, 2e-4], dtype=torch.float64)}


def with_state(
    kind: type[Optimizer],
    groups: tuple[dict[str, Any], dict[str, Any]],
    state: Tensor,
    factor: float,
    *,
    steps: float = 1e9,
) -> tuple[Halves, Optimizer]:
    """An optimiser of both halves whose θ and momentum are ``state`` and whose second moments do not move."""
    model = Halves()
    slow = {"betas": (0.9, 1 - 1e-9)} if issubclass(kind, Adam) else {}
    optimizer = kind(
        [{"params": [part], **slow, **group} for part, group in zip(model.parameters(), groups, strict=True)], lr=1e-9
    )
    model().backward()
    optimizer.step()
    with torch.no_grad():
        for name, value, momentum in zip(("a", "b"), state[:4].split(2), state[4:].split(2), strict=True):
            parameter = getattr(model, name)
            parameter.copy_(value)
            kept = optimizer.state[parameter]
            if issubclass(kind, Adam):
                kept["step"] = torch.tensor(steps)
                kept["exp_avg_sq"] = SECOND[name] * (1 - (1 - 1e-9) ** (steps + 1))
                kept["exp_avg"].copy_(momentum)
            elif kept.get("momentum_buffer") is not None:
                kept["momentum_buffer"].copy_(momentum)
    for group in optimizer.param_groups:
        group["lr"] *= factor
    return model, optimizer


def spectral_radius(
    kind: type[Optimizer], groups: tuple[dict[str, Any], dict[str, Any]], factor: float, *, steps: float = 1e9
) -> float:
    """Of the matrix that one step of the optimiser is on (θ, momentum), a column for each unit vector."""
    columns = []
    for unit in torch.eye(8, dtype=torch.float64):
        scale = 1e-6  # so that gradients leave no trace in the second moments
        model, optimizer = with_state(kind, groups, scale * unit, factor, steps=steps)
        optimizer.zero_grad()
        model().backward()
        optimizer.step()
        after = [part.detach() for part in model.parameters()]
        name = "exp_avg" if issubclass(kind, Adam) else "momentum_buffer"
        kept = [optimizer.state[part].get(name) for part in model.parameters()]
        after += [torch.zeros(2, dtype=torch.float64) if one is None else one for one in kept]
        columns.append(torch.cat(after) / scale)
    return float(torch.linalg.eigvals(torch.stack(columns, 1)).abs().max())


GROUPS: dict[str, tuple[type[Optimizer], tuple[dict[str, Any], dict[str, Any]]]] = {
    "adamw, decay of one": (AdamW, ({"lr": 0.1, "weight_decay": 0.0}, {"lr": 0.1, "weight_decay": 6.0})),
    "adamw, decay of the other": (AdamW, ({"lr": 0.1, "weight_decay": 6.0}, {"lr": 0.1, "weight_decay": 0.0})),
    "adamw, rates and betas": (
        AdamW,
        (
            {"lr": 0.1, "weight_decay": 3.0, "betas": (0.5, 1 - 1e-9)},
            {"lr": 0.02, "weight_decay": 9.0, "betas": (0.9, 1 - 1e-9)},
        ),
    ),
    "adam, coupled decay": (Adam, ({"lr": 0.1, "weight_decay": 3.0}, {"lr": 0.03, "weight_decay": 0.0})),
    "sgd": (
        SGD,
        (
            {"lr": 0.1, "weight_decay": 2.0, "momentum": 0.9},
            {"lr": 0.3, "weight_decay": 0.0, "momentum": 0.5, "nesterov": True},
        ),
    ),
}


@pytest.mark.parametrize("name", GROUPS)
def test_several_groups_cross_one_where_the_spectral_radius_does(name: str) -> None:
    kind, groups = GROUPS[name]
    edge = 1.0 / _ratio_of(kind, groups, 1.0).ratio
    assert spectral_radius(kind, groups, 0.999 * edge) < 1.0
    assert spectral_radius(kind, groups, 1.001 * edge) > 1.0
    found = _ratio_of(kind, groups, 0.5 * edge)
    assert found.ratio == pytest.approx(0.5, rel=1e-6)
    assert found.ratio == pytest.approx(found.preconditioned_sharpness / found.threshold, rel=1e-12)
    assert found.max_learning_rate == pytest.approx(groups[0]["lr"] * edge, rel=1e-6)


@pytest.mark.parametrize("steps", [1.0, 4.0])
def test_early_in_training_the_edge_is_that_of_the_next_step(steps: float) -> None:
    """While bias corrections still change, the bound is for the step to come, with the second moments as they are."""
    groups: tuple[dict[str, Any], dict[str, Any]] = ({"lr": 0.1}, {"lr": 0.1})
    edge = 1.0 / _ratio_of(Adam, groups, 1.0, steps=steps).ratio
    assert spectral_radius(Adam, groups, 0.999 * edge, steps=steps) < 1.0
    assert spectral_radius(Adam, groups, 1.001 * edge, steps=steps) > 1.0


def _ratio_of(
    kind: type[Optimizer], groups: tuple[dict[str, Any], dict[str, Any]], factor: float, *, steps: float = 1e9
) -> Stability:
    model, optimizer = with_state(kind, groups, torch.zeros(8, dtype=torch.float64), factor, steps=steps)
    return stability(bowl_problem(model), optimizer, tol=1e-10)


def test_groups_without_parameters_of_the_problem_decide_nothing() -> None:
    model = Halves()
    groups = [
        {"params": [model.a], "lr": 0.5, "momentum": 0.9, "dampening": 2.0, "maximize": True},
        {"params": [model.b], "lr": 0.01},
    ]
    problem = Problem.from_loss(model, lambda model, batch: model(), [torch.zeros(1)], params="b")
    found = stability(problem, SGD(groups, lr=0.1), tol=1e-10)
    exact = float(torch.linalg.eigvalsh(COUPLED[2:, 2:])[-1])
    assert found.sharpness == pytest.approx(exact)
    assert (found.learning_rate, found.momentum, found.rule) == (0.01, 0.0, "λmax(H) < 2/lr")
    assert (found.threshold, found.bound) == (pytest.approx(200.0), 2.0)
    assert found.ratio == pytest.approx(exact / 200.0)
    assert not found.notes


def test_an_optimiser_of_other_parameters_is_not_judged() -> None:
    model = Halves()
    problem = Problem.from_loss(model, lambda model, batch: model(), [torch.zeros(1)], params="b")
    found = stability(problem, SGD([model.a], lr=0.1), tol=1e-10)
    assert math.isnan(found.ratio)
    assert found.sharpness > 0
    assert found.notes[-1] == "no stability bound: SGD holds none of the problem's parameters"


def test_a_parameter_that_was_never_stepped_is_left_out() -> None:
    class WithUnusedHead(Bowl):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 2).double()

    model = WithUnusedHead()
    optimizer = Adam(model.parameters(), lr=0.01)
    model().backward()
    optimizer.step()
    found = stability(bowl_problem(model), optimizer, tol=1e-10)
    # One step from θ = ±1 leaves v = (1 − β₂)λ²; the second one corrects by 1 − β₁² = 0.19 and 1 − β₂².
    P = 0.19 * ((CURVATURES**2 / 1.999).sqrt() + 1e-8)
    assert found.preconditioned_sharpness == pytest.approx(float((CURVATURES / P).max()), rel=1e-6)
    assert found.notes == (
        "left out of the bound: 8 parameters without optimiser state, which have never been stepped",
    )


@pytest.mark.parametrize("dead", [0.0, float("nan")])
def test_a_preconditioner_that_divides_by_zero_leaves_the_sharpness(dead: float) -> None:
    model = Bowl()
    optimizer = RMSprop(model.parameters(), lr=0.01, eps=0.0)
    model().backward()
    optimizer.step()
    optimizer.state[model.theta]["square_avg"][1] = dead
    found = stability(bowl_problem(model), optimizer, tol=1e-10)
    assert found.sharpness == pytest.approx(4.0)
    assert found.converged
    assert math.isnan(found.ratio)
    assert found.notes == (
        "no stability bound: the preconditioner of RMSprop is zero or not a number for 1 of 3 parameters (eps=0)",
    )


def test_a_preconditioned_product_that_overflows_leaves_the_sharpness() -> None:
    model = Bowl()
    optimizer = RMSprop(model.parameters(), lr=0.01, eps=0.0)
    model().backward()
    optimizer.step()
    optimizer.state[model.theta]["square_avg"].fill_(5e-324)
    problem = Problem.from_loss(model, lambda model, batch: 1e150 * model(), [torch.zeros(1)])
    found = stability(problem, optimizer, tol=1e-10)
    assert found.sharpness == pytest.approx(4e150)
    assert math.isnan(found.ratio)
    assert found.notes[-1].startswith("no stability bound: ")


@pytest.mark.parametrize("kind", [SGD, Adam, AdamW, RMSprop, Adagrad])
def test_a_subclass_is_another_optimiser(kind: type[Optimizer]) -> None:
    class Scaled(kind):  # type: ignore[misc, valid-type]
        """As LARS does, it may rescale the step of the class that it extends."""

    model = Bowl()
    optimizer = Scaled(model.parameters(), lr=0.1)
    model().backward()
    optimizer.step()
    found = stability(bowl_problem(model), optimizer, tol=1e-10)
    assert math.isnan(found.ratio)
    assert found.rule == "unknown"
    assert found.notes[-1] == "no stability bound: the update rule of Scaled is not known"


def test_at_learning_rate_zero_the_sharpness_still_allows_a_rate() -> None:
    model = Bowl()
    found = stability(bowl_problem(model), SGD(model.parameters(), lr=0.0, momentum=0.9), tol=1e-10)
    assert found.ratio == 0.0
    assert found.max_learning_rate == pytest.approx(3.8 / 4.0)


def test_unknown_optimisers_are_measured_but_not_judged() -> None:
    model = Bowl()
    found = stability(bowl_problem(model), NAdam(model.parameters()))
    assert found.sharpness == pytest.approx(4.0, rel=1e-4)
    assert math.isnan(found.ratio)
    assert found.notes[-1] == "no stability bound: the update rule of NAdam is not known"


def test_adam_before_its_first_step_is_not_judged() -> None:
    model = Bowl()
    found = stability(bowl_problem(model), Adam(model.parameters()))
    assert math.isnan(found.ratio)
    assert found.notes[-1] == "no stability bound: Adam has no preconditioner before its first step"


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
