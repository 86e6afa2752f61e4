"""The end of the gradient flow: closed form on scalar networks, least squares, and monotone decrease under gradient descent."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from measures.quadratics import Vector, quadratic, symmetric
from theodolite.errors import NotConvergedWarning, ProblemError
from theodolite.measures import gradients, spectrum
from theodolite.measures.flow_sharpness import flow_sharpness, scalar_flow_sharpness
from theodolite.problem import Problem


def scalar_network(weights: list[float]) -> Problem:
    model = Vector(torch.tensor(weights, dtype=torch.float64))
    return Problem.from_loss(model, lambda model, _: 0.5 * (model.theta.prod() - 1) ** 2, [torch.zeros(1)])


def descend(weights: Tensor, rate: float) -> Tensor:
    product = weights.prod()
    return weights - rate * (product - 1) * product / weights


def test_the_golden_values() -> None:
    assert scalar_flow_sharpness([1.5, 0.8, 0.7]) == pytest.approx(3.508109823, abs=1e-9)
    assert scalar_flow_sharpness([2.6, 0.45]) == pytest.approx(6.8557, abs=5e-5)


@pytest.mark.parametrize("weights", [[1.5, 0.8, 0.7], [2.6, 0.45], [0.6, 0.8, 0.9, 1.7]])
def test_the_flow_ends_at_the_closed_form(weights: list[float]) -> None:
    problem = scalar_network(weights)
    before = problem.model.theta.detach().clone()
    found = flow_sharpness(problem, tol=1e-7, reach=0.2, sharpness_tol=1e-6)
    assert found.converged
    assert found.sharpness == pytest.approx(scalar_flow_sharpness(weights), rel=1e-6)
    assert found.losses[-1] < 1e-13
    assert (np.diff(found.losses) <= 0).all()
    assert torch.equal(problem.model.theta.detach(), before)
    assert found.distance > 0


@pytest.mark.parametrize(("weights", "rate"), [([2.6, 0.45], 0.27), ([2.2, 0.5], 0.38), ([2.5, 0.6], 0.3)])
def test_gradient_descent_never_raises_it_and_ends_below_two_over_the_rate(weights: list[float], rate: float) -> None:
    theta, sharpnesses = torch.tensor(weights, dtype=torch.float64), []
    for _ in range(400):
        sharpnesses.append(scalar_flow_sharpness(theta.tolist()))
        theta = descend(theta, rate)
    assert (np.diff(sharpnesses) <= 1e-12).all()
    assert sharpnesses[-1] <= 2 / rate
    if weights == [2.6, 0.45]:
        assert sharpnesses[-1] == pytest.approx(6.8088, abs=5e-5)


def test_least_squares_flow_has_the_time_course_of_its_modes() -> None:
    H, g = symmetric(5, positive=True) + 0.3 * torch.eye(5, dtype=torch.float64), torch.ones(5, dtype=torch.float64)
    found = flow_sharpness(quadratic([H], [g]), tol=1e-2, every=5)
    values, vectors = torch.linalg.eigh(H)
    start = vectors.T @ torch.linalg.solve(H, g)
    for time, norm in zip(found.times, found.gradient_norms, strict=True):
        exact = (values * start * torch.exp(-values * time)).norm()
        assert norm == pytest.approx(float(exact), rel=1e-4)
    assert found.sharpness == pytest.approx(float(values[-1]), rel=1e-6)
    assert found.sharpening == pytest.approx(1.0, rel=1e-6)
    assert found.distance == pytest.approx(float(start.norm()), rel=0.04)
    assert found.max_learning_rate == pytest.approx(2 / float(values[-1]), rel=1e-6)


def test_a_flow_that_does_not_end_says_so() -> None:
    torch.manual_seed(0)
    data = [(torch.randn(12, 3, dtype=torch.float64), torch.randint(2, (12,)))]
    problem = Problem(nn.Linear(3, 2).double(), nn.CrossEntropyLoss(), data)
    with pytest.warns(NotConvergedWarning, match="did not end within 3 steps"):
        found = flow_sharpness(problem, max_steps=3)
    assert not found.converged
    assert "NOT CONVERGED after 3 steps" in repr(found)
    assert "no finite minimum" in found.notes[-1]


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ProblemError, match="positive product"):
        scalar_flow_sharpness([1.0, -0.5])
    with pytest.raises(ProblemError, match=r"reach in \(0, 2.5\], found .*reach=3.0"):
        flow_sharpness(scalar_network([1.5, 0.8]), reach=3.0)


def test_the_sharpness_is_the_largest_eigenvalue_where_a_negative_one_is_stronger() -> None:
    """L = cosine of the first entry at its top, with a weak parabola beside."""

    class Hill(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.theta = nn.Parameter(torch.tensor([0.3, 1.0], dtype=torch.float64))

    def loss(model: nn.Module, index: Tensor) -> Tensor:
        return 10 * model.theta[0].cos() + 0.5 * model.theta[1].square()

    found = flow_sharpness(Problem.from_loss(Hill(), loss, [torch.tensor([0])]), tol=1e-3)
    assert found.sharpnesses[0] == pytest.approx(1.0, rel=1e-3)
    assert found.sharpness == pytest.approx(10.0, rel=1e-3)
    assert found.sharpening == pytest.approx(10.0, rel=1e-2)


def test_errors_from_the_data_are_those_of_the_readings_at_their_points() -> None:
    torch.manual_seed(1)
    inputs, targets = torch.randn(40, 3, dtype=torch.float64), torch.randn(40, 1, dtype=torch.float64)
    model = nn.Linear(3, 1).double()
    problem = Problem(model, nn.MSELoss(), list(zip(inputs.split(10), targets.split(10), strict=True)))
    found = flow_sharpness(problem, tol=1e-3, sharpness_tol=1e-8)
    assert found.loss_stderrs is not None
    assert found.sharpness_stderrs is not None
    assert found.loss_stderrs[0] == pytest.approx(gradients(problem).loss_stderr, rel=1e-9)
    exact = float(spectrum(problem, k=1, tol=1e-8).data_stderr[0])
    assert found.sharpness_stderrs[[0, -1]] == pytest.approx([exact, exact], rel=1e-6)  # a quadratic: H is the same
    assert found.sharpness_estimate.stderr == found.sharpness_stderrs[-1]
    assert found.sharpness_estimate.degrees == 3
    assert "(data, at this point)" in repr(found)
