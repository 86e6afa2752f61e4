"""Slopes and curvatures along directions equal the dense oracle; differences carry the third derivative."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adam, AdamW, Optimizer

from families import BY_NAME, FAMILIES, Family, dense_oracle
from measures.quadratics import Vector, quadratic, symmetric
from records.published_jackknife import published
from theodolite.errors import NonFiniteError, ProblemError
from theodolite.measures.directional import directional
from theodolite.operators.updates import next_update
from theodolite.problem import Problem

all_families = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


def random_direction(n: int, *, seed: int = 3, size: float = 1e-3) -> Tensor:
    return size * torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@all_families
def test_slope_and_curvature_equal_the_oracle(family: Family) -> None:
    loss, gradient, H = dense_oracle(family)
    problem = family.problem()
    d = random_direction(problem.n)
    found = directional(problem, directions={"random": d})
    along = -found.norms[0] * gradient / gradient.norm()
    for index, vector in enumerate((along, d)):
        assert found.slopes[index] == pytest.approx(float(gradient @ vector), rel=1e-9)
        assert found.exact[index] == pytest.approx(float(vector @ H @ vector), rel=1e-8, abs=1e-14)
        assert found.sharpness[index] == pytest.approx(
            float(vector @ H @ vector / vector.square().sum()), rel=1e-8, abs=1e-9
        )
    assert found.names == ("gradient", "random")
    assert found.loss == pytest.approx(float(loss), rel=1e-12)
    assert found.gradient_norm == pytest.approx(float(gradient.norm()), rel=1e-10)
    assert found.loss_only == pytest.approx(found.exact, rel=0.1, abs=1e-9)
    assert found.decreases == pytest.approx(found.predicted_decreases, rel=1e-3, abs=1e-9)
    Hg = H @ gradient
    guarded = gradient + torch.where(gradient < 0, -1e-5, 1e-5)
    assert found.gradient_quotient == pytest.approx(float(((gradient - Hg) / guarded - 1).abs().mean()), rel=1e-6)


class Cubic(nn.Module):
    """L = gᵀθ + ½Σλθ² + cΣθ³/6: dᵀHd = Σλd², T[d,d,d] = cΣd³."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(3, dtype=torch.float64))

    def forward(self) -> Tensor:
        weights = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
        return 0.3 * self.theta.sum() + 0.5 * (weights * self.theta**2).sum() + 4.0 * (self.theta**3).sum() / 6


def test_the_three_ways_differ_by_the_third_derivative() -> None:
    problem = Problem.from_loss(Cubic(), lambda model, _: model(), [torch.zeros(1)])
    d = torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64)
    found = directional(problem, directions={"d": d, "back": -d})
    exact, third = 0.01 + 0.08 + 0.45, 4.0 * float((d**3).sum())
    for index, sign in ((1, 1.0), (2, -1.0)):
        assert found.exact[index] == pytest.approx(exact, rel=1e-12)
        assert found.difference[index] == pytest.approx(exact + sign * third / 2, rel=1e-12)
        assert found.loss_only[index] == pytest.approx(exact + sign * third / 3, rel=1e-12)
        assert found.third_order_index[index] == pytest.approx(sign * third / 2 / exact, rel=1e-10)
        assert found.third_derivatives[index] == pytest.approx(sign * third, rel=1e-10)
        slope = sign * 0.3 * float(d.sum())
        assert found.predicted_decreases[index] == pytest.approx(-slope - exact / 2, rel=1e-12)
        assert found.decreases[index] == pytest.approx(-slope - exact / 2 - sign * third / 6, rel=1e-12)
        assert found.best_scales[index] == pytest.approx(-slope / exact, rel=1e-12)
    assert found.resolved.all()


def test_on_a_quadratic_everything_agrees_and_the_step_that_overshoots_is_known() -> None:
    H, g = symmetric(6, positive=True), torch.randn(6, dtype=torch.float64)
    problem = quadratic([H], [g])
    best = float(g @ g / (g @ H @ g))
    for factor, overshoots in ((0.9, False), (1.9, False), (2.1, True)):
        found = directional(problem, optimizer=SGD(problem.model.parameters(), lr=factor * best))
        assert found.best_scales == pytest.approx([1 / factor] * 2, rel=1e-9)
        assert found.third_order_index == pytest.approx([0, 0], abs=1e-10)
        assert found.agreement == pytest.approx([1, 1], rel=1e-8)
        assert found.overshoots.tolist() == [overshoots] * 2
        assert (found.decreases < 0).tolist() == [overshoots] * 2
    down = directional(quadratic([-H], [g]))
    assert math.isnan(down.best_scales[0])
    assert not down.overshoots[0]


def test_errors_leave_out_the_same_chunk_everywhere() -> None:
    hessians = [symmetric(4, seed=seed) for seed in range(5)]
    slopes = [random_direction(4, seed=seed, size=1.0) for seed in range(5)]
    problem, d = quadratic(hessians, slopes), torch.tensor([1.0, -1.0, 2.0, 0.5], dtype=torch.float64)
    found = directional(problem, directions={"d": d})
    forms = np.array([float(d @ H @ d) for H in hessians])
    rises = np.array([float(g @ d) for g in slopes]) + 0.5 * forms
    for errors, values in (
        (found.exact_stderrs, forms),
        (found.difference_stderrs, forms),
        (found.loss_only_stderrs, forms),
        (found.decrease_stderrs, rises),
    ):
        left_out = (values.sum() - values) / 4
        assert errors[1] == pytest.approx(published(left_out.tolist(), values.mean(), np.ones(5)), rel=1e-8)
    assert found.sharpness_estimates["d"].degrees == 4


def network(dtype: torch.dtype) -> Problem:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(20, 50), nn.Tanh(), nn.Linear(50, 5)).to(dtype)
    return Problem(model, nn.CrossEntropyLoss(), [(torch.randn(64, 20).to(dtype), torch.randint(5, (64,)))])


def test_the_floor_is_the_rounding_of_the_loss() -> None:
    single, double = network(torch.float32), network(torch.float64)
    with torch.no_grad():
        for here, there in zip(single.model.parameters(), double.model.parameters(), strict=True):
            there.copy_(here.double())
    double_batch = [(single.batches.first()[0].double(), single.batches.first()[1])]
    double = Problem(double.model, nn.CrossEntropyLoss(), double_batch)
    d = random_direction(single.n, size=1.0)
    d = d / d.norm()
    scores = []
    for index in range(12):
        scale = 10.0 ** (-1 - 0.2 * index)
        found = directional(single, directions={"d": (scale * d).float()})
        truth = directional(double, directions={"d": scale * d})
        scores.append((found.loss_only[1] - truth.loss_only[1]) / found.loss_only_floors[1])
    assert np.abs(scores).max() < 8
    assert np.abs(scores).max() > 0.05
    assert not directional(single, directions={"d": (1e-4 * d).float()}).resolved[1]
    assert directional(single, directions={"d": (3e-1 * d).float()}).resolved[1]


@pytest.mark.parametrize(
    "make",
    [
        lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
        lambda p: Adam(p, lr=0.01),
        lambda p: AdamW(p, lr=0.01, weight_decay=0.1, amsgrad=True),
    ],
)
def test_the_next_update_is_what_the_optimiser_does_next(make: object) -> None:
    model, batches = BY_NAME["mlp"].model_and_data()
    problem = BY_NAME["mlp"].problem_of(model, batches)
    optimizer: Optimizer = make(model.parameters())  # type: ignore[operator]
    called: list[int] = []
    optimizer.register_step_post_hook(lambda *_: called.append(1))
    for count in range(1, 4):
        gradient = problem.gradient()
        before = torch.cat([p.detach().reshape(-1).clone() for p in model.parameters()])
        update = next_update(problem, optimizer)
        assert torch.equal(torch.cat([p.detach().reshape(-1) for p in model.parameters()]), before)
        assert all(p.grad is None for p in model.parameters()) or count > 1
        for p, part in zip(model.parameters(), problem.layout.unflatten(gradient), strict=True):
            p.grad = part.clone()
        optimizer.step()
        after = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
        assert torch.equal(update, after - before)
        assert len(called) == count


def test_parameters_that_the_optimiser_does_not_hold_stay() -> None:
    model, batches = BY_NAME["mlp"].model_and_data()
    problem = BY_NAME["mlp"].problem_of(model, batches)
    update = next_update(problem, SGD(model[2].parameters(), lr=0.1))
    where = problem.layout.layer_slices["2"]
    torch.testing.assert_close(update[where], -0.1 * problem.gradient()[where], rtol=1e-12, atol=1e-16)
    update[where] = 0
    assert not update.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"directions": {"update": torch.ones(3)}}, r"other names than 'gradient' and 'update'.*found \['update'\]"),
        ({"directions": {"d": torch.ones(2)}}, r"'d' to be 3 finite numbers.*found shape \(2,\)"),
        ({"directions": {"d": torch.zeros(3)}}, "with 0 nonzero"),
        ({"directions": {"d": torch.tensor([1.0, math.nan, 0.0])}}, "1 not finite"),
        ({"optimizer": SGD([nn.Parameter(torch.ones(3))], lr=0.1)}, "SGD with 1 tensors, none of which is among theta"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, object], message: str) -> None:
    problem = Problem.from_loss(Cubic(), lambda model, _: model(), [torch.zeros(1)])
    with pytest.raises(ProblemError, match=message):
        inspect.unwrap(directional)(problem, **options)


def test_points_without_a_direction_or_a_gradient_are_refused() -> None:
    flat = Problem.from_loss(Vector(torch.zeros(2)), lambda model, _: (model.theta**2).sum(), [torch.zeros(1)])
    with pytest.raises(ProblemError, match="the gradient and the update are zero"):
        directional(flat)
    rooted = Problem.from_loss(Vector(torch.zeros(2)), lambda model, _: model.theta.norm().sqrt(), [torch.zeros(1)])
    with pytest.raises(NonFiniteError, match="finite gradient"):
        directional(rooted)
    problem = network(torch.float32)
    with pytest.raises(ProblemError, match="takes no closure, found LBFGS"):
        directional(problem, optimizer=LBFGS(problem.model.parameters()))


def test_what_is_rounding_has_no_ratios() -> None:
    """Along a straight line there is no curvature to divide by, and a step of 1e-16 changes no loss of 1."""
    generator = torch.Generator().manual_seed(0)
    H, g = symmetric(6, seed=1, positive=True), torch.randn(6, generator=generator, dtype=torch.float64)
    d = torch.randn(6, generator=generator, dtype=torch.float64)
    curved = quadratic([H], [g], theta=torch.ones(6, dtype=torch.float64))
    found = directional(curved, directions={"short": 1e-16 * d, "long": 0.1 * d})
    short, long = (found.names.index(name) for name in ("short", "long"))
    assert found.resolved[[short, long]].tolist() == [False, True]
    for ratios in (found.best_scales, found.third_order_index, found.agreement):
        assert math.isnan(ratios[short])
        assert math.isfinite(ratios[long])
    straight = directional(quadratic([1e-18 * H], [g], theta=torch.ones(6, dtype=torch.float64)), directions={"d": d})
    place = straight.names.index("d")
    assert math.isnan(straight.best_scales[place])
    assert math.isnan(straight.third_order_index[place])
    assert straight.agreement[place] == pytest.approx(1.0, rel=1e-9)


@pytest.mark.parametrize("length", [0.0, -1.0, math.nan, math.inf])
def test_a_length_is_positive(length: float) -> None:
    with pytest.raises(ProblemError, match=r"positive length of the step along the gradient, found length="):
        directional(BY_NAME["mlp"].problem(), length=length)


def test_the_optimiser_comes_second_as_elsewhere() -> None:
    problem = BY_NAME["mlp"].problem()
    optimizer = SGD(problem.model.parameters(), lr=0.1)
    assert (
        directional(problem, optimizer).names
        == directional(problem, optimizer=optimizer).names
        == ("gradient", "update")
    )
