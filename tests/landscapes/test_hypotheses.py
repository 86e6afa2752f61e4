"""Random hypotheses: the law of their losses where it is known, what is drawn and what is left alone."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from families import BY_NAME
from theodolite.errors import ProblemError
from theodolite.landscapes.hypotheses import hypotheses
from theodolite.problem import Problem


def orthogonal(points: int) -> Problem:
    """A linear model on the rows of √p·1: its mean squared error is that of its weights."""
    inputs = math.sqrt(points) * torch.eye(points, dtype=torch.float64)
    model = nn.Linear(points, 1, bias=False).double()
    return Problem(
        model,
        nn.MSELoss(),
        [(inputs[:2], torch.zeros(2, 1).double()), (inputs[2:], torch.zeros(points - 2, 1).double())],
    )


def test_losses_of_gaussian_weights_are_chi_squared() -> None:
    found = hypotheses(orthogonal(5), count=120, draw="gaussian", scale=0.5, seed=3)
    assert stats.kstest(found.losses / 0.25, stats.chi2(5).cdf).pvalue > 0.01
    target = 0.25 * stats.chi2(5).ppf(0.25)
    counted, fitted = found.bits(target), found.bits(target, shape="chi2")
    assert counted.low <= 2.0 <= counted.high
    assert fitted.value == pytest.approx(2.0, abs=0.4)
    assert fitted.high - fitted.low < counted.high - counted.low
    rare = 0.25 * stats.chi2(5).ppf(1e-6)
    assert found.bits(rare).high == math.inf
    assert found.bits(rare, shape="chi2").value == pytest.approx(-math.log2(1e-6), rel=0.3)


def test_the_initialiser_is_that_of_the_modules() -> None:
    found = hypotheses(orthogonal(8), count=80, draw="initialiser")
    bound = 1 / math.sqrt(8)  # nn.Linear draws uniformly from ± 1/√fan_in
    square = bound**2 / 3 * 8
    error = found.losses.std(ddof=1) / math.sqrt(80)
    assert abs(found.losses.mean() - square) < 3 * error
    assert found.losses.max() <= 8 * bound**2


@pytest.mark.parametrize("name", ["mlp", "convnet"])
def test_models_and_random_state_stay_as_they_are(name: str) -> None:
    family = BY_NAME[name]
    model, batches = family.model_and_data()
    problem = family.problem_of(model, batches)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    found = hypotheses(problem, count=3, test=family.problem_of(model, batches[:1]))
    assert all(bool((value == before[key]).all()) for key, value in model.state_dict().items())
    assert bool((torch.get_rng_state() == state).all())
    np.testing.assert_array_equal(found.losses, hypotheses(problem, count=3).losses)
    assert np.unique(found.losses).size == 3
    assert (hypotheses(problem, count=3, seed=1).losses != found.losses).all()
    assert (found.own, found.own_test) == (problem.loss(), family.problem_of(model, batches[:1]).loss())
    assert found.cost.forwards == 8 + 3 * (name == "convnet")


def test_only_selected_parameters_are_drawn_and_other_data_are_read_with_the_same() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    batches = [(torch.randn(6, 3).double(), torch.randn(6, 1).double()) for _ in range(2)]

    def zero(net: nn.Module) -> None:
        for parameter in net.parameters():
            parameter.zero_()

    problem = Problem(model, nn.MSELoss(), batches, params="2.*")
    found = hypotheses(problem, count=2, draw=zero, test=Problem(model, nn.MSELoss(), batches[:1], params="2.*"))
    mean = torch.cat([y for _, y in batches]).square().mean()
    assert found.losses.tolist() == pytest.approx([float(mean)] * 2)
    assert found.test_losses is not None
    assert found.test_losses.tolist() == pytest.approx([float(batches[0][1].square().mean())] * 2)
    assert found.draw == "zero"
    first = Problem(model, nn.MSELoss(), batches, params="0.*")
    assert hypotheses(first, count=2, draw=zero).losses[0] != pytest.approx(float(mean))


def test_draws_that_fit_are_kept_and_counted() -> None:
    problem = orthogonal(5)
    found = hypotheses(problem, count=50, draw="gaussian", test=problem)
    tol = float(np.median(found.losses))
    fit = found.fitting(tol)
    assert fit.losses.size == 25
    assert fit.notes[-1].startswith("25 of 50 draws have a loss of at most")
    assert fit.bits(tol).value == 0.0
    assert found.bits(tol).value == 1.0
    exploded = found.replace(test_losses=np.where(found.losses > tol, np.nan, found.losses))
    assert exploded.bits(tol).value == 1.0


def test_mistakes_are_told() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.scale * x

    problem = Problem(Bare(), nn.MSELoss(), [(torch.ones(2, 3), torch.ones(2, 3))])
    with pytest.raises(ProblemError, match=r"1 with parameters and without it \(Bare\)"):
        hypotheses(problem)
    with pytest.raises(ProblemError, match="found 'uniform'"):
        hypotheses(problem, draw="uniform")
    with pytest.raises(ProblemError, match="count=1"):
        hypotheses(problem, count=1)
