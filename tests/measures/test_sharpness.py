"""On a quadratic every kind of sharpness has a closed form; on a network those that should be invariant are."""

from __future__ import annotations

import inspect
import itertools
import math
import sys

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch import Tensor, nn

from families import BY_NAME, FAMILIES, Family, dense_oracle
from measures.quadratics import quadratic, symmetric
from records.published_jackknife import published
from theodolite.errors import NonFiniteError, ProblemError
from theodolite.measures.sharpness import KINDS, sharpness
from theodolite.problem import Problem

N = 7
RADII = (0.3, 1.1)


def one(H: Tensor, g: Tensor, theta: Tensor | None = None) -> Problem:
    return quadratic([H], [g], theta=theta)


def slope(n: int = N, *, seed: int = 5) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def highest_in_ball(H: Tensor, g: Tensor, radius: float) -> float:
    """max gᵀε + ½εᵀHε on ‖ε‖ = ρ, which is that over the ball where H has a positive eigenvalue: (μI − H)ε = g, μ > λ₁."""
    values, vectors = torch.linalg.eigh(H)
    b = vectors.T @ g

    def excess(mu: float) -> float:
        return float((b / (mu - values)).square().sum()) - radius**2

    top = float(values[-1])
    mu = brentq(excess, top + 1e-12, top + float(g.norm()) / radius + 1.0, xtol=1e-14)
    e = vectors @ (b / (mu - values))
    return float(g @ e + 0.5 * e @ H @ e)


def test_one_step_on_a_quadratic_is_exact() -> None:
    H, g = symmetric(N), slope()
    found = sharpness(one(H, g), radius=RADII)
    unit = g / g.norm()
    exact = [float(rho * g.norm() + 0.5 * rho**2 * unit @ H @ unit) for rho in RADII]
    assert found.rises == pytest.approx(exact, rel=1e-12)
    assert found.first_order == pytest.approx([rho * float(g.norm()) for rho in RADII], rel=1e-12)
    assert found.curvatures == pytest.approx([float(unit @ H @ unit)] * 2, rel=1e-9)
    assert found.seed is None
    assert (found.cost.gradients, found.cost.forwards) == (1, 2)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_one_step_tends_to_the_gradient_norm(family: Family) -> None:
    loss, gradient, H = dense_oracle(family)
    found = sharpness(family.problem(), radius=[1e-3, 2e-3])
    unit = gradient / gradient.norm()
    second = found.first_order + 0.5 * found.radii**2 * float(unit @ H @ unit)
    assert found.loss == pytest.approx(float(loss), rel=1e-12)
    assert found.rises / found.radii == pytest.approx([float(gradient.norm())] * 2, rel=2e-2)
    remainders = np.abs(found.rises - second)
    assert remainders[1] < 12 * remainders[0] + 1e-13  # of the third order: eightfold at twice the radius
    assert remainders[0] < 0.1 * abs(0.5 * found.radii[0] ** 2 * float(unit @ H @ unit)) + 1e-12


def test_a_gradient_along_the_top_eigenvector_gives_half_rho_squared_lambda() -> None:
    H = symmetric(N, positive=True)
    values, vectors = torch.linalg.eigh(H)
    found = sharpness(one(H, 1e-9 * vectors[:, -1]), radius=0.5)
    assert found.rises[0] == pytest.approx(0.5 * 0.25 * float(values[-1]), rel=1e-6)


def test_several_steps_stay_in_the_ball_and_climb_higher_on_a_curved_valley() -> None:
    H, g = symmetric(N, positive=True), slope()
    first, several, worst = (
        float(sharpness(one(H, g), kind=kind, radius=2.0, steps=steps).rises[0])
        for kind, steps in (("sam", 1), ("sam", 8), ("worst", 40))
    )
    assert first < several <= worst
    assert worst <= highest_in_ball(H, g, 2.0) + 1e-12


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("positive", [True, False])
def test_the_worst_case_reaches_the_trust_region_maximum(seed: int, positive: bool) -> None:
    H, g = symmetric(N, seed=seed, positive=positive), slope(seed=seed)
    found = sharpness(one(H, g), kind="worst", radius=RADII, steps=60)
    exact = [highest_in_ball(H, g, rho) for rho in RADII]
    assert (found.rises <= np.array(exact) + 1e-12).all()
    assert found.rises == pytest.approx(exact, rel=1e-3)


def test_the_worst_case_leaves_a_stationary_point() -> None:
    H = symmetric(N, positive=True)
    found = sharpness(one(H, torch.zeros(N, dtype=torch.float64)), kind="worst", radius=0.4, steps=60)
    assert found.rises[0] == pytest.approx(0.5 * 0.16 * float(torch.linalg.eigvalsh(H)[-1]), rel=1e-4)
    flat = sharpness(one(H, torch.zeros(N, dtype=torch.float64)), radius=0.4)
    assert flat.rises[0] == 0.0


@pytest.mark.parametrize("seed", range(4))
def test_keskars_box_is_highest_at_a_vertex(seed: int) -> None:
    H, g, theta = symmetric(N, seed=seed, positive=True), slope(seed=seed), slope(seed=seed + 9)
    found = sharpness(one(H, g, theta), kind="keskar", radius=0.1, draws=6, steps=12)
    there = g + H @ theta
    box = 0.1 * (theta.abs() + 1)
    corners = (box * torch.tensor(signs, dtype=torch.float64) for signs in itertools.product((-1.0, 1.0), repeat=N))
    highest = max(float(there @ corner + 0.5 * corner @ H @ corner) for corner in corners)
    assert found.rises[0] <= highest + 1e-12
    assert found.rises[0] == pytest.approx(highest, rel=1e-9)
    assert found.relative[0] == pytest.approx(100 * highest / (1 + found.loss), rel=1e-9)
    assert found.first_order[0] == pytest.approx(float((box * there).abs().sum()), rel=1e-12)


def test_the_average_is_half_the_trace_within_its_error() -> None:
    H, g, theta = symmetric(N), slope(), slope(seed=9)
    for kind, scale in (("average", torch.ones(N)), ("adaptive average", theta.abs())):
        exact = 0.5 * float((scale.double() ** 2 * H.diagonal()).sum())
        deviations = []
        for seed in range(16):
            found = sharpness(one(H, g, theta), kind=kind, radius=0.1, draws=8, seed=seed)
            estimate = found.draw_estimates[0]
            assert estimate.degrees == 7
            deviations.append((found.rises[0] - 0.01 * exact) / estimate.stderr)
        assert abs(np.mean(deviations)) < 4 * np.std(deviations) / math.sqrt(16)
        assert 0.7 < np.std(deviations) < 1.8  # Student's t with 7 degrees of freedom has 1.2
        assert found.curvatures[0] == pytest.approx(2 * found.rises[0] / 0.01, rel=1e-12)


def test_draws_are_shared_among_radii() -> None:
    found = sharpness(one(symmetric(N), slope()), kind="average", radius=[0.01, 0.02], draws=3)
    assert found.rises[1] == pytest.approx(4 * found.rises[0], rel=1e-9)


@pytest.mark.parametrize("kind", ["asam", "adaptive average", "adaptive worst"])
def test_adaptive_kinds_do_not_change_when_a_relu_network_is_rescaled(kind: str) -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    batches = [(torch.randn(9, 4, dtype=torch.float64), torch.randint(3, (9,)))]
    problem = Problem(model, nn.CrossEntropyLoss(), batches)
    before = sharpness(problem, kind=kind, radius=0.2, seed=1)
    plain = sharpness(problem, kind="sam", radius=0.2)
    with torch.no_grad():
        model[0].weight.mul_(8.0)
        model[0].bias.mul_(8.0)
        model[2].weight.div_(8.0)
    assert sharpness(problem, kind=kind, radius=0.2, seed=1).rises == pytest.approx(before.rises, rel=1e-9)
    assert abs(sharpness(problem, kind="sam", radius=0.2).rises[0] / plain.rises[0] - 1) > 0.05


def test_errors_are_those_of_the_rise_at_a_fixed_disturbance() -> None:
    hessians = [symmetric(N, seed=seed) for seed in range(5)]
    slopes = [slope(seed=seed) + 3 for seed in range(5)]
    found = sharpness(quadratic(hessians, slopes), radius=0.3)
    mean = torch.stack(slopes).mean(0)
    e = 0.3 * mean / mean.norm()
    rises = [float(g @ e + 0.5 * e @ H @ e) for H, g in zip(hessians, slopes, strict=True)]
    left_out = [(sum(rises) - rise) / 4 for rise in rises]
    assert found.rises[0] == pytest.approx(np.mean(rises), rel=1e-12)
    assert found.stderrs[0] == pytest.approx(published(left_out, np.mean(rises), np.ones(5)), rel=1e-9)
    assert found.stderrs[0] == pytest.approx(np.std(rises, ddof=1) / math.sqrt(5), rel=1e-9)
    assert found.estimates[0].degrees == 4
    assert np.isnan(found.draw_stderrs[0])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_repeats_itself_and_leaves_the_model_alone(kind: str) -> None:
    model, batches = BY_NAME["convnet"].model_and_data()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    problem = BY_NAME["convnet"].problem_of(model, batches)
    options = {} if kind in ("sam", "asam") else {"draws": 2}
    options |= {} if "average" in kind else {"steps": 2}
    first, second = (sharpness(problem, kind=kind, **options) for _ in range(2))
    assert first.rises.tolist() == second.rises.tolist()
    assert first.rises[0] > 0 or "average" in kind
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_overflow_is_a_reading_and_a_loss_that_is_none_a_refusal() -> None:
    model = nn.Linear(1, 1, bias=False).double()
    data = [torch.ones(1, 1, dtype=torch.float64)]
    problem = Problem.from_loss(model, lambda model, x: (1000 * model(x)).exp().mean(), data)
    with torch.no_grad():
        model.weight.fill_(0.5)
    found = sharpness(problem, kind="worst", radius=1.0)
    assert found.rises[0] == math.inf
    assert found.notes == ("the loss is not finite at 1 of 1 radii",)
    with torch.no_grad():
        model.weight.fill_(math.nan)
    with pytest.raises(NonFiniteError, match="finite loss at the current parameters, found nan"):
        sharpness(problem)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "sharp"}, "Expected kind to be one of 'sam', .*found 'sharp'"),
        ({"radius": 0.0}, "positive radii, found radius=0.0"),
        ({"radius": []}, r"positive radii, found radius=\[\]"),
        ({"steps": 0}, "at least 1 ascent steps and 0 draws"),
        ({"draws": 3}, "One path takes steps alone"),
        ({"kind": "average", "steps": 3}, "an average takes draws alone"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, object], message: str) -> None:
    problem = one(symmetric(N), slope())
    with pytest.raises(ProblemError, match=message):
        inspect.unwrap(sharpness)(problem, **options)


def test_a_vanishing_gradient_is_said() -> None:
    flat = one(symmetric(N), torch.zeros(N, dtype=torch.float64))
    found = sharpness(flat, radius=RADII)
    assert found.rises.tolist() == [0.0, 0.0]
    assert found.notes == ("no ascent direction: the gradient vanishes here, the rise is 0 at θ itself",)
    assert "random starts alone" in sharpness(flat, kind="worst").notes[0]
    assert not sharpness(flat, kind="average").notes
    assert not sharpness(one(symmetric(N), slope())).notes


@pytest.mark.parametrize("kind", ["average", "adaptive average"])
def test_an_average_takes_no_gradient(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object, **__: object) -> None:
        raise AssertionError("a gradient")

    monkeypatch.setattr(sys.modules["theodolite.measures.sharpness"], "gradient_at", none)
    found = sharpness(one(symmetric(N), slope()), kind=kind, draws=3, radius=RADII)
    assert (found.cost.gradients, found.cost.forwards) == (0, 13)
    assert found.first_order.tolist() == [0.0, 0.0]
