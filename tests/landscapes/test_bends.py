"""Trained curves find a curved valley, keep their ends and follow the gradient of the mean loss along them."""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from families import BY_NAME
from theodolite.errors import NonFiniteError, ProblemError
from theodolite.landscapes.paths import Curve, bezier, chain, path
from theodolite.problem import Problem


class Place(nn.Module):
    """A point (x, y)."""

    def __init__(self) -> None:
        super().__init__()
        self.at = nn.Parameter(torch.tensor([0.3, 0.4], dtype=torch.float64))

    def forward(self, scale: Tensor) -> Tensor:
        return scale * (self.at[1] - self.at[0].square()).square()


def parabola() -> Problem:
    """The valley y = x², walls (y − x²)²."""
    batches = [torch.ones(2, dtype=torch.float64)] * 2
    return Problem.from_loss(Place(), lambda model, scale: model(scale).mean(), batches)


LEFT, RIGHT = (torch.tensor(at, dtype=torch.float64) for at in ([-1.0, 1.0], [1.0, 1.0]))


def test_a_bezier_curve_finds_the_parabola_that_it_can_follow_exactly() -> None:
    problem = parabola()
    curve = bezier(problem, LEFT, RIGHT, steps=120, optimizer=partial(torch.optim.Adam, lr=0.1), seed=1)
    found = path(problem, LEFT, RIGHT, curves={"bezier": curve}, points=11, predict=False)
    assert found.barrier().value == pytest.approx(1)  # the straight line passes at height 1 above the valley
    assert found.barrier("bezier").value < 1e-4
    np.testing.assert_allclose(curve.controls[1]["at"].numpy(), [0, -1], atol=1e-2)
    assert not any("its ends are not" in note for note in found.notes)
    other = path(problem, RIGHT, LEFT, curves={"bezier": curve}, points=3, predict=False)
    assert "bezier: its ends are not the given checkpoints, as of a curve to a matched end" in other.notes
    assert found.distances[1] > found.distances[0] == 2


def test_a_chain_follows_the_valley_as_closely_as_its_pieces_can() -> None:
    problem = parabola()
    curve = chain(problem, LEFT, RIGHT, bends=3, steps=200, optimizer=partial(torch.optim.Adam, lr=0.05))
    found = path(problem, LEFT, RIGHT, curves={"chain": curve}, points=41, predict=False)
    # Between two points of the parabola a distance h apart in x, a straight piece rises (h/2)² above it: 1/16 for four pieces,
    # which costs the square of that, less what the best pieces share between their ends and their middles.
    assert found.barrier("chain").value < 1 / 256 + 0.01


@pytest.mark.parametrize("form", ["bezier", "chain"])
def test_a_step_is_that_of_the_gradient_at_its_position(form: str) -> None:
    problem = parabola()
    train = bezier if form == "bezier" else partial(chain, bends=1)
    curve = train(problem, LEFT, RIGHT, steps=1, optimizer=partial(torch.optim.SGD, lr=0.1), seed=5)
    t = np.random.default_rng(5).uniform()
    x, y = 2 * t - 1, 1.0
    weight = 2 * t * (1 - t) if form == "bezier" else 1 - abs(2 * t - 1)
    gradient = 2 * (y - x**2) * np.array([-2 * x, 1.0])
    np.testing.assert_allclose(curve.controls[1]["at"].numpy(), [0, 1] - 0.1 * weight * gradient, rtol=1e-12)
    assert curve.training.tolist() == pytest.approx([(y - x**2) ** 2])


def test_curves_pass_through_their_ends_bit_for_bit_and_sum_their_weights() -> None:
    g = torch.Generator().manual_seed(0)
    controls = tuple({"w": torch.randn(5, generator=g)} for _ in range(4))
    for form in ("bezier", "chain"):
        curve = Curve(form, controls)  # type: ignore[arg-type]
        assert curve.at(0.0) is controls[0]
        assert curve.at(1.0) is controls[-1]
        assert all(sum(curve.weights(t)) == pytest.approx(1) for t in np.linspace(0, 1, 9).tolist())
    torch.testing.assert_close(curve.at(1 / 3)["w"], controls[1]["w"])


def test_training_leaves_no_trace_and_repeats() -> None:
    family = BY_NAME["convnet"]
    model, batches = family.model_and_data()
    problem, other = family.problem_of(model, batches), copy.deepcopy(model)
    with torch.no_grad():
        other.conv1.weight.neg_()
    before = copy.deepcopy(model.state_dict())
    random = torch.get_rng_state()
    first, again = (bezier(problem, model, other, steps=6, seed=2) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(first.controls[1][name], again.controls[1][name]) for name in before)
    assert not torch.equal(first.controls[1]["conv2.weight"], model.conv2.weight)
    found = path(problem, model, other, curves={"bezier": first}, points=3)
    assert found.profiles == ("linear", "linear, recalibrated", "bezier, recalibrated")
    assert found.losses[2, [0, -1]].tolist() == found.losses[1, [0, -1]].tolist()


def test_errors_show_the_scene() -> None:
    with pytest.raises(ProblemError, match="bends=0 and steps=3"):
        chain(parabola(), LEFT, RIGHT, bends=0, steps=3)
    with pytest.raises(
        NonFiniteError, match=r"found (inf|nan) at step \d+, on batch 0. Are the data finite\?.* smaller"
    ):
        bezier(parabola(), LEFT, RIGHT, steps=50, optimizer=partial(torch.optim.SGD, lr=1e3))


def test_what_is_not_finite_before_training_is_not_the_optimisers_fault() -> None:
    model = nn.Linear(2, 1).double()
    x, y = torch.full((3, 2), float("nan")).double(), torch.zeros(3, 1).double()
    problem = Problem(model, nn.MSELoss(), [(x, y)])
    with pytest.raises(NonFiniteError, match="where the bends start, found nan at step 0, on batch 0 before anything"):
        bezier(problem, torch.zeros(3), torch.ones(3), steps=2)
    with pytest.raises(NonFiniteError, match=r"found NaN or infinity in end: weight \(1 of 2\)"):
        bezier(problem, torch.zeros(3), torch.tensor([0.0, float("inf"), 0.0]), steps=2)
