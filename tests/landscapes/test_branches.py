"""In a double well the side is chosen by noise at first and by the gradient later."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from theodolite.errors import ProblemError
from theodolite.landscapes.paths import basin, branching, path
from theodolite.landscapes.paths.branches import blended
from theodolite.problem import Problem


class Well(nn.Module):
    """(w² − 1)², with w = 0 between two equal wells, and a bias that nothing pulls."""

    def __init__(self, at: float = 0.0) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.full((1, 1), at, dtype=torch.float64))
        self.still = nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, scale: Tensor) -> Tensor:
        return scale * (self.w.square() - 1).square().squeeze() + 0 * self.still


def wells(at: float = 0.0) -> Problem:
    batches = [torch.full((2,), scale, dtype=torch.float64) for scale in (0.5, 1.5)]
    return Problem.from_loss(Well(at), lambda model, scale: model(scale).mean(), batches)


def train(model: nn.Module, memory: object, steps: range, seed: int) -> object:
    """Gradient descent after a first step whose sign is that of the seed; memory counts the steps taken."""
    taken = 0 if memory is None else memory
    assert taken == steps.start
    torch.randn(3)  # draws from the global stream, as loaders do
    for step in steps:
        model.zero_grad()
        model(torch.ones(1, dtype=torch.float64)).sum().backward()
        with torch.no_grad():
            model.w.sub_(0.05 * model.w.grad)
            if step == 0:
                model.w.add_(0.1 if seed % 2 else -0.1)
    return steps.stop


def test_runs_that_part_before_the_side_is_chosen_have_a_barrier() -> None:
    problem, random = wells(), torch.get_rng_state()
    found = branching(problem, train, branches=[3, 0, 1], steps=60, points=5)
    assert found.branches.tolist() == [3, 0, 1]
    np.testing.assert_allclose(found.barriers, [0, 1, 0], atol=1e-3)
    assert found.barrier(1).value == found.barriers[1]
    assert found.barrier(1).stderr == pytest.approx(0.5, abs=1e-3)  # two chunks, at 0.5 and 1.5 times the height
    np.testing.assert_allclose(found.cosines, [1, -1, 1])
    np.testing.assert_allclose(found.gaps, [0, 2, 0], atol=1e-3)
    np.testing.assert_allclose(found.distances[1], [1, 1], atol=1e-3)
    assert found.stable_after(0.01) == 1
    assert found.stable_after(2.0) == 0
    assert float(problem.model.w.detach()) == 0
    assert torch.equal(torch.get_rng_state(), random)


def test_a_run_that_never_settles_is_never_stable() -> None:
    found = branching(wells(), train, branches=[0], steps=60, points=5)
    assert found.stable_after(0.01) is None
    at_the_end = branching(wells(), train, branches=[60], steps=60, points=5)
    assert at_the_end.gaps.tolist() == [0]
    assert np.isnan(at_the_end.cosines).all()


def test_the_border_of_a_basin_is_where_runs_turn_to_the_other_well() -> None:
    problem = wells(1.0)
    found = basin(problem, lambda *args: descend(*args), Well(-1.0), alphas=[0.0, 0.3, 0.45, 0.6], steps=60, points=5)
    np.testing.assert_allclose(found.barriers, [0, 0, 0, 1], atol=1e-3)
    assert found.border(0.01) == 0.45
    assert found.starts[0] == found.loss == found.losses[0] == 0
    assert found.distances[0].tolist() == [0, 0]
    np.testing.assert_allclose(found.distances[3, 1], 2, atol=1e-3)
    assert np.isnan(found.replace(heights=found.heights + 1).border(0.01))


def descend(model: nn.Module, memory: object, steps: range, seed: int) -> None:
    for _ in steps:
        model.zero_grad()
        model(torch.ones(1, dtype=torch.float64)).sum().backward()
        with torch.no_grad():
            model.w.sub_(0.05 * model.w.grad)


class Normed(nn.Module):
    """One weight before BatchNorm with stored statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Linear(2, 2).double()
        self.norm = nn.BatchNorm1d(2).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.scale(x))


def test_runs_with_batchnorm_are_compared_with_recalibrated_ends_and_named_with_stored_losses() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(16, 2).double(), torch.randn(16, 2).double()
    problem = Problem(Normed(), nn.MSELoss(), [(x[:8], y[:8]), (x[8:], y[8:])])

    def drift(model: Normed, memory: None, steps: range, seed: int) -> None:
        with torch.no_grad():
            model.scale.weight.add_(1.0 + seed)
            model.norm.running_var.mul_(3.0 + seed)

    ends = [copy.deepcopy(problem.model) for _ in range(2)]
    for seed, end in enumerate(ends):
        drift(end, None, range(1), seed)
    found = branching(problem, drift, branches=[0], steps=1, points=3)
    alone = path(problem, *ends, points=3, predict=False)
    assert found.barrier(0) == alone.barrier("linear, recalibrated")
    assert found.losses[0].tolist() == alone.losses[0, [0, -1]].tolist()
    from_home = basin(problem, drift, Normed(), alphas=[0.0], steps=1, points=3)
    home = path(problem, problem.model, ends[0], points=3, predict=False)
    assert from_home.barrier(0) == home.barrier("linear, recalibrated")
    assert [from_home.loss, *from_home.losses] == home.losses[0, [0, -1]].tolist()
    for record in (found, from_home):
        assert any("recalibrated at every position, the ends included" in note for note in record.notes)
    assert found.cost.forwards == 2 + 6


def test_a_blend_keeps_the_variance_of_independent_weights_and_the_rest_of_the_model() -> None:
    g = torch.Generator().manual_seed(0)
    home, away = ({"w": torch.randn(300, 300, generator=g), "b": torch.randn(5, generator=g)} for _ in range(2))
    blend = blended(home, away, 0.3, weights={"w", "b"})
    assert float(blend["w"].var()) == pytest.approx(1, abs=0.02)
    assert torch.equal(blend["b"], home["b"])
    assert torch.equal(blended(home, away, 0.0, weights={"w"})["w"], home["w"])
    assert torch.equal(blended(home, away, 1.0, weights={"w"})["w"], away["w"])


def test_errors_show_the_scene() -> None:
    with pytest.raises(ProblemError, match=r"between 0 and steps=5, found \[9\]"):
        branching(wells(), train, branches=[9], steps=5)
    with pytest.raises(ProblemError, match=r"two different seeds, found \(0, 0\)"):
        branching(wells(), train, branches=[0], steps=5, seeds=(0, 0))
    with pytest.raises(ProblemError, match=r"alphas between 0 and 1, found \[1.5\]"):
        basin(wells(1.0), train, Well(-1.0), alphas=[1.5], steps=5)
    with pytest.raises(ProblemError, match="found points=2 and steps=5"):
        branching(wells(), train, branches=[0], steps=5, points=2)
