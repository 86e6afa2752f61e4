"""Adam's moments and steps against the optimiser itself, and the line along them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, NAdam, Optimizer

from families import BY_NAME
from theodolite.errors import ProblemError
from theodolite.landscapes import adameq
from theodolite.landscapes.directions import adam_moments, adam_step, update
from theodolite.problem import Problem

OPTIONS = {
    "adam": (Adam, {}),
    "amsgrad": (Adam, {"amsgrad": True, "betas": (0.5, 0.6)}),
    "coupled decay": (Adam, {"weight_decay": 0.3}),
    "adamw": (AdamW, {"weight_decay": 0.3, "eps": 1e-3}),
    "maximize": (AdamW, {"maximize": True, "weight_decay": 0.0}),
}


def theta(problem: Problem) -> Tensor:
    return problem.layout.flatten([leaf.detach() for leaf in problem.point().leaves]).clone()


def take(problem: Problem, optimizer: Optimizer) -> None:
    """One step on the gradient of the problem."""
    for name, part in zip(problem.layout.names, problem.layout.unflatten(problem.gradient()), strict=True):
        dict(problem.model.named_parameters())[name].grad = part.clone()
    optimizer.step()


def trained(kind: type[Optimizer], options: dict[str, object], *, steps: int = 4) -> tuple[Problem, Optimizer]:
    problem = BY_NAME["mlp"].problem()
    layers = [list(problem.model[:2].parameters()), list(problem.model[2:].parameters())]
    groups = [{"params": layers[1], "lr": 0.02}, {"params": layers[0], "lr": 0.05}]  # not in the order of the model
    optimizer = kind(groups, **options)
    for _ in range(steps):
        take(problem, optimizer)
    return problem, optimizer


def decay(problem: Problem, optimizer: Optimizer, weights: Tensor) -> Tensor:
    """lr·decay·θ of AdamW, 0 of Adam."""
    rates = torch.cat([
        torch.full((shape.numel(),), 0.05 if name.startswith("0.") else 0.02, dtype=torch.float64)
        for name, shape in zip(problem.layout.names, problem.layout.shapes, strict=True)
    ])  # fmt: skip
    decoupled = isinstance(optimizer, AdamW)
    return rates * optimizer.param_groups[0]["weight_decay"] * weights if decoupled else 0 * weights


@pytest.mark.parametrize("name", OPTIONS)
def test_one_step_ahead_is_the_optimisers_next_and_one_behind_where_its_last_began(name: str) -> None:
    problem, optimizer = trained(*OPTIONS[name])
    at, ahead = theta(problem), adam_step(problem, optimizer, gradient=problem.gradient())
    torch.testing.assert_close(
        update(problem, optimizer), ahead - decay(problem, optimizer, at), rtol=1e-11, atol=1e-14
    )
    loss, state = problem.loss(), copy.deepcopy(optimizer.state_dict())
    take(problem, optimizer)
    moved = theta(problem)
    torch.testing.assert_close(moved, at + ahead - decay(problem, optimizer, at), rtol=1e-12, atol=0)
    held = adam_step(problem, optimizer)
    torch.testing.assert_close(held, ahead, rtol=1e-11, atol=1e-15)
    assert state["state"].keys() == optimizer.state_dict()["state"].keys()
    if not decay(problem, optimizer, at).any():
        found = adameq(problem, optimizer, points=3, span=(-1, 1))
        assert found.losses[0] == pytest.approx(loss, rel=1e-12)


def test_the_line_ahead_holds_the_loss_after_the_step() -> None:
    problem, optimizer = trained(Adam, {})
    found = adameq(problem, optimizer, gradient=problem.gradient(), points=5, span=(-1, 1))
    take(problem, optimizer)
    assert found.losses[-1] == pytest.approx(problem.loss(), rel=1e-12)
    assert found.name == "adameq"
    assert found.context["lr"] == 0.02
    assert found.context["eps"] == 1e-8
    assert found.context["optimizer"] == "Adam"
    assert any("2 parameter groups with a learning rate each" in note for note in found.notes)


def test_the_surface_of_two_multipliers_is_the_line() -> None:
    """θ + a·m/√(b·v), drawn over (a, b), has the loss of the line at α = −a/(√b·lr)."""
    problem, optimizer = trained(Adam, {"eps": 0.0})
    for group in optimizer.param_groups:
        group["lr"] = 0.05
    first, second = adam_moments(problem, optimizer)
    corrections = (1 - 0.999**4) ** 0.5 / (1 - 0.9**4)
    at = theta(problem)
    for a, b in ((0.02, 0.5), (-0.03, 1.7)):
        shifted = problem.layout.unflatten(at + a * corrections * first / (b * second).sqrt())
        there = problem.totals(problem.displaced(shifted))
        alpha = -a / (b**0.5 * 0.05)
        ends = (min(alpha, 0.0), max(alpha, 0.0))
        found = adameq(problem, optimizer, points=2, span=ends)
        loss = float(there[0].sum()) / problem.total_weight(there[1])
        assert found.losses[0 if alpha < 0 else -1] == pytest.approx(loss, rel=1e-11)


def test_moments_are_in_the_order_of_the_parameters() -> None:
    problem, optimizer = trained(NAdam, {})
    first, second = adam_moments(problem, optimizer)
    for name, parameter in problem.model.named_parameters():
        where = problem.layout.slices[name]
        assert torch.equal(first[where].view_as(parameter), optimizer.state[parameter]["exp_avg"])
        assert torch.equal(second[where].view_as(parameter), optimizer.state[parameter]["exp_avg_sq"])


def test_the_first_step_needs_no_moments() -> None:
    problem, optimizer = trained(Adam, {}, steps=0)
    ahead = adam_step(problem, optimizer, gradient=problem.gradient())
    at = theta(problem)
    take(problem, optimizer)
    torch.testing.assert_close(theta(problem), at + ahead, rtol=1e-12, atol=0)


def test_decoupled_decay_is_named() -> None:
    problem, optimizer = trained(AdamW, {"weight_decay": 0.1})
    found = adameq(problem, optimizer, points=3)
    assert any("decoupled weight decay" in note for note in found.notes)


def test_missing_moments_are_named() -> None:
    problem = BY_NAME["mlp"].problem()
    optimizer = Adam(problem.model[2:].parameters())
    with pytest.raises(ProblemError, match=r"all 6 surveyed parameters, found none for 0\.weight, 0\.bias, 2\.weight"):
        adam_moments(problem, optimizer)
    take(problem, optimizer)
    with pytest.raises(ProblemError, match=r"found none for 0\.weight, 0\.bias\. .*missing='zero'"):
        adam_step(problem, optimizer)
    first, _ = adam_moments(problem, optimizer, missing="zero")
    assert not first[problem.layout.layer_slices["0"]].any()
    assert first[problem.layout.layer_slices["2"]].any()
    with pytest.raises(ProblemError, match=r"Expected Adam or AdamW.*found SGD"):
        adam_step(problem, SGD(problem.model.parameters(), lr=0.1))
    with pytest.raises(ProblemError, match="SGD to hold moments"):
        adam_moments(problem, SGD(problem.model.parameters(), lr=0.1), missing="zero")
    assert isinstance(problem.model, nn.Module)
