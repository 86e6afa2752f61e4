"""Engines of points: what vmap and an added-up first layer find is what the loop finds, and what they cannot do is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from families import FAMILIES, Family, features, labels
from theodolite.errors import ProblemError
from theodolite.landscapes import engines, line, plane, routes, volume
from theodolite.problem import Problem

DATA = list(zip(features((6, 5), 5), labels((6, 5), 3), strict=True))
families = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


def net() -> nn.Sequential:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def problem_of(model: nn.Module, **options: object) -> Problem:
    return Problem(model, nn.CrossEntropyLoss(), DATA, **options)  # type: ignore[arg-type]


@families
def test_engines_find_what_the_loop_finds(family: Family) -> None:
    problem = family.problem()
    before = [parameter.detach().clone() for parameter in problem.model.parameters()]
    count = () if family.loss or "MSE" in str(family.criterion) else ("accuracy",)
    options: dict[str, Any] = {"points": 5, "scalars": count, "direction": "gaussian"}
    looped = line(problem, **options)
    fails = family.name == "lstm"  # no rule for batches, no linear layer first
    for engine in ("vmap", "linear"):
        found = line(problem, engine=engine, **options)
        np.testing.assert_allclose(found.losses, looped.losses, rtol=1e-12)
        np.testing.assert_allclose(found.stderrs, looped.stderrs, rtol=1e-8, atol=1e-13)
        assert found.losses[2] == looped.losses[2] == problem.loss()
        for name in count:
            np.testing.assert_allclose(found.scalars[name], looped.scalars[name], rtol=1e-12)
        assert found.context["engine"] == ("loop" if fails else engine)
        assert any("points by the loop" in note for note in found.notes) == fails
    assert all(map(torch.equal, before, problem.model.parameters()))
    assert not any("forward" in module.__dict__ or module._forward_hooks for module in problem.model.modules())


def test_planes_of_other_data_explosions_and_partial_points_are_the_same() -> None:
    model = net()
    problem, other = problem_of(model), Problem(model, nn.CrossEntropyLoss(), DATA[:1])
    options: dict[str, Any] = {
        "points": (5, 3),
        "span": (-9, 9),
        "cap": 4.0,
        "also": {"test": other},
        "groups": "targets",
    }
    looped = plane(problem, **options)
    assert looped.partial is not None
    for engine in ("vmap", "linear"):
        found = plane(problem, engine=engine, **options)
        np.testing.assert_array_equal(found.partial, looped.partial)
        np.testing.assert_allclose(found.losses, looped.losses, rtol=1e-12)
        for name, values in looped.scalars.items():
            np.testing.assert_allclose(found.scalars[name], values, rtol=1e-12, err_msg=name)
        assert found.context["engine"] == engine


@pytest.mark.parametrize("engine", ["vmap", "linear"])
def test_quadratics_are_exact_and_records_repeat_to_the_bit(engine: routes.Engine) -> None:
    torch.manual_seed(3)
    model = nn.Linear(3, 2).double()
    problem = Problem(model, nn.MSELoss(), list(zip(features((6, 5), 3), features((6, 5), 2, seed=4), strict=True)))
    found = volume(problem, points=3, directions="gaussian", engine=engine)
    again = volume(problem, points=3, directions="gaussian", engine=engine)
    np.testing.assert_array_equal(found.losses, again.losses)
    assert found.directions is not None
    theta, hessian = torch.cat([part.detach().ravel() for part in model.parameters()]), _hessian(problem)
    slope = problem.gradient()
    for index in np.ndindex(3, 3, 3):
        position = (found.alphas[index[0]], found.betas[index[1]], found.gammas[index[2]])
        step = sum(scale * torch.tensor(d) for scale, d in zip(position, found.directions, strict=True))
        assert isinstance(step, Tensor)
        expected = problem.loss() + float(slope @ step + step @ hessian @ step / 2)
        np.testing.assert_allclose(found.losses[index], expected, rtol=1e-10)
    assert torch.equal(theta, torch.cat([part.detach().ravel() for part in model.parameters()]))


def _hessian(problem: Problem) -> Tensor:
    columns = []
    base = problem.point().leaves
    for unit in torch.eye(problem.n, dtype=torch.float64):
        parts = problem.layout.unflatten(unit)
        there = problem.displaced(
            tuple((leaf + part).detach().requires_grad_() for leaf, part in zip(base, parts, strict=True))
        )
        columns.append(_slope(problem, there) - problem.gradient())
    return torch.stack(columns)


def _slope(problem: Problem, point: Any) -> Tensor:
    found = list(problem.chunk_gradients(point))
    return sum(part for *_, part in found) / sum(weight for _, _, weight, _ in found)


class Branching(nn.Module):
    """Takes a way that depends on its outputs, for batches of some size."""

    def __init__(self, *, size: int) -> None:
        super().__init__()
        self.inner, self.size = net(), size

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.inner(x)
        return -found if len(x) == self.size and found.sum() > 0 else found


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (lambda: Branching(size=6), {}),
        (lambda: nn.Sequential(net(), nn.BatchNorm1d(3)).double(), {"mode": "train"}),
        (lambda: nn.Sequential(net(), nn.Dropout(0.5)), {"mode": "train"}),
        (net, {"memory": 2000}),
    ],
    ids=["control flow", "batch statistics", "dropout", "memory"],
)
def test_what_vmap_cannot_do_is_done_by_the_loop_and_said(model: Any, options: dict[str, Any]) -> None:
    looped = line(problem_of(model(), **options), points=5)
    found = line(problem_of(model(), **options), points=5, engine="vmap")
    np.testing.assert_array_equal(found.losses, looped.losses)
    assert found.context["engine"] == "loop"
    assert any("points by the loop: vmap" in note for note in found.notes)


def test_a_failure_after_the_trial_goes_on_by_the_loop() -> None:
    looped = line(problem_of(Branching(size=5)), points=5)
    found = line(problem_of(Branching(size=5)), points=5, engine="vmap")
    np.testing.assert_array_equal(found.losses, looped.losses)
    assert found.context["engine"] == "loop"
    assert "points by the loop from some point on: vmap failed with RuntimeError" in found.notes


class Borrowing(nn.Module):
    """Uses the weight of its first layer again."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.first, self.head = nn.Linear(5, 8), nn.Linear(8, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(torch.tanh(self.first(x))) + self.first.weight.mean()
        return found * self.first.weight.square().sum()


class Reaching(Borrowing):
    """Its first layer sees what a displaced weight changed."""

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(torch.tanh(self.first(x * self.head.weight.sum())))
        return found


@pytest.mark.parametrize("model", [Borrowing, Reaching])
def test_a_first_layer_that_is_no_sum_is_noticed(model: type[nn.Module]) -> None:
    looped = line(problem_of(model()), points=5, direction="gaussian")
    found = line(problem_of(model()), points=5, direction="gaussian", engine="linear")
    np.testing.assert_array_equal(found.losses, looped.losses)
    assert "points by the loop: linear found other losses" in found.notes


class Twice(nn.Module):
    """A layer after a frozen one, called once or twice."""

    def __init__(self, *, calls: int) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.stem, self.layer, self.calls = nn.Linear(5, 4), nn.Linear(4, 4), calls
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = torch.tanh(self.stem(x))
        for _ in range(self.calls):
            found = torch.tanh(self.layer(found))
        return found


@pytest.mark.parametrize(("calls", "engine"), [(1, "linear"), (2, "loop")])
def test_a_layer_after_frozen_ones_is_added_up_where_it_is_called_once(calls: int, engine: str) -> None:
    problem = problem_of(Twice(calls=calls), params=["layer.*"])
    looped = line(problem, points=5, direction="gaussian")
    found = line(problem, points=5, direction="gaussian", engine="linear")
    np.testing.assert_allclose(found.losses, looped.losses, rtol=1e-12)
    assert found.context["engine"] == engine


def test_a_trial_takes_what_is_clearly_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for seconds in (0.5, 0.9):  # of the loop's, for every other engine
        monkeypatch.setattr(
            engines._Trial,
            "seconds",
            lambda self, route, count, taken=seconds: 1.0 if route.engine == "loop" else taken,
        )
        found[seconds] = plane(problem_of(net()), points=7, engine="auto", directions="gaussian")
    assert found[0.5].context["engine"] == "linear"
    assert (
        "points by adding up outputs of the first layer, 2.0 times as fast as the loop in a trial" in found[0.5].notes
    )
    assert found[0.9].context["engine"] == "loop"
    assert "points by the loop: linear was 1.11 times as fast in a trial" in found[0.9].notes
    np.testing.assert_allclose(found[0.5].losses, found[0.9].losses, rtol=1e-12)


def test_a_trial_of_the_clock_gives_the_losses_of_the_loop() -> None:
    problem = problem_of(net())
    looped, found = (plane(problem, points=7, engine=engine) for engine in ("loop", "auto"))
    np.testing.assert_allclose(found.losses, looped.losses, rtol=1e-12)
    assert found.cost.forwards > looped.cost.forwards == 49
    assert "engine" not in looped.context
    few = line(problem, points=5, engine="auto")
    assert "points by the loop: too few for a trial" in few.notes


def test_points_that_are_kept_are_computed_by_the_loop(tmp_path: Path) -> None:
    problem = problem_of(net())
    plain = plane(problem, points=3)
    kept = plane(problem, points=3, engine="auto", store=tmp_path)
    np.testing.assert_array_equal(kept.losses, plain.losses)
    assert kept.context["engine"] == "loop"
    assert "points by the loop, as they are kept or divided" in kept.notes
    for draw in (plane, volume):
        with pytest.raises(
            ProblemError, match=r"Expected engine='loop' or 'auto' where points are kept .* engine='vmap'"
        ):
            draw(problem, points=3, engine="vmap", store=tmp_path)


def test_gradients_and_recalibrated_statistics_are_taken_point_by_point() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double()
    for options in ({"scalars": ("gradient norm",)}, {"batchnorm": "recalibrated"}):
        found = line(problem_of(model), points=3, engine="vmap", **options)  # type: ignore[arg-type]
        assert "points by the loop: gradients and recalibrated statistics are taken point by point" in found.notes
