"""Directions: moments, norms piece by piece, orthogonality, and blindness to rescaled layers."""

from __future__ import annotations

import math

import jaxtyping
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from families import BY_NAME, FAMILIES, Family, features, labels
from theodolite.errors import NonFiniteError, ProblemError
from theodolite.landscapes import filter_normalised, gaussian, line, normalise, plane
from theodolite.landscapes.directions import random_directions
from theodolite.problem import Problem

families = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


def parts(flat: Tensor, problem: Problem) -> list[tuple[Tensor, Tensor]]:
    """Each tensor of a direction with the parameter that it displaces."""
    return [
        (part, leaf.detach()) for part, leaf in zip(problem.layout.unflatten(flat), problem.point().leaves, strict=True)
    ]


def test_gaussian_moments() -> None:
    model = nn.Linear(300, 200)
    problem = Problem(model, nn.MSELoss(), [(torch.zeros(2, 300), torch.zeros(2, 200))])
    drawn = gaussian(problem, seed=3).double()
    n = problem.n
    assert abs(float(drawn.mean())) < 4 / math.sqrt(n)
    assert abs(float(drawn.square().mean()) - 1) < 4 * math.sqrt(2 / n)
    assert abs(float(drawn.pow(4).mean()) - 3) < 4 * math.sqrt(96 / n)


def test_a_seed_is_a_direction_in_every_dtype() -> None:
    family = BY_NAME["mlp"]
    double, single = family.problem(), family.problem(dtype=torch.float32)
    for seed in (0, 1):
        assert torch.equal(gaussian(double, seed=seed), gaussian(single, seed=seed).double())
    assert not torch.equal(gaussian(double, seed=0), gaussian(double, seed=1))


def test_the_first_of_a_pair_is_that_of_a_line_and_the_second_no_other_seeds_first() -> None:
    problem = BY_NAME["mlp"].problem()
    first, second = random_directions(problem, seed=5, how="none")
    assert torch.equal(first, gaussian(problem, seed=5))
    for seed in range(20):
        other = gaussian(problem, seed=seed)
        assert abs(float(torch.dot(second, other)) / float(second.norm() * other.norm())) < 0.5


@families
def test_every_filter_has_the_norm_of_the_models_own(family: Family) -> None:
    problem = family.problem()
    for part, leaf in parts(filter_normalised(problem, seed=1), problem):
        if leaf.dim() < 2:
            assert not part.any()
            continue
        assert part.any()
        for own, filters in zip(leaf, part, strict=True):
            torch.testing.assert_close(filters.norm(), own.norm(), rtol=1e-14, atol=0)


@families
def test_one_dimensional_tensors_as_a_whole(family: Family) -> None:
    problem = family.problem()
    zero = filter_normalised(problem, seed=1)
    whole = filter_normalised(problem, seed=1, one_dimensional="whole")
    for (part, leaf), (other, _) in zip(parts(whole, problem), parts(zero, problem), strict=True):
        if leaf.dim() > 1:
            assert torch.equal(part, other)
        else:
            torch.testing.assert_close(part.norm(), leaf.norm(), rtol=1e-14, atol=0)


def test_normalisations_by_their_formulas() -> None:
    problem = BY_NAME["convnet"].problem()
    drawn = gaussian(problem, seed=2)
    theta = problem.layout.flatten([leaf.detach() for leaf in problem.point().leaves])
    assert torch.equal(normalise(drawn, problem, how="none"), drawn)
    assert torch.equal(normalise(drawn, problem, how="weight"), drawn * theta.abs())
    torch.testing.assert_close(
        normalise(drawn, problem, how="model"), drawn * theta.norm() / drawn.norm(), rtol=1e-14, atol=0
    )
    for (part, leaf), (raw, _) in zip(
        parts(normalise(drawn, problem, how="layer"), problem), parts(drawn, problem), strict=True
    ):
        torch.testing.assert_close(part, raw * leaf.norm() / raw.norm(), rtol=1e-14, atol=0)


def test_a_dead_filter_stays_where_it_is() -> None:
    model = nn.Linear(3, 2).double()
    with torch.no_grad():
        model.weight[0].zero_()
    problem = Problem(model, nn.MSELoss(), [(torch.ones(2, 3).double(), torch.ones(2, 2).double())])
    weight, _ = problem.layout.unflatten(filter_normalised(problem, seed=0))
    assert not weight[0].any()
    assert weight[1].all()


@families
@pytest.mark.parametrize("how", ["filter", "none"])
def test_a_pair_is_orthogonal(family: Family, how: str) -> None:
    problem = family.problem()
    first, second = random_directions(problem, seed=4, how=how)
    found = plane(problem, directions="filter" if how == "filter" else "gaussian", points=2, span=(0, 1), seed=4)
    cosine = float(torch.dot(first, second) / (first.norm() * second.norm()))
    assert found.cosine == pytest.approx(cosine, abs=1e-15)
    assert abs(cosine) < 1e-14
    if how == "filter":
        assert found.direction_norms == pytest.approx((float(first.norm()), float(second.norm())), rel=1e-14)
        assert found.direction_norms[0] == pytest.approx(found.direction_norms[1], rel=1e-14)


def test_filters_of_a_single_weight_leave_a_cosine_and_it_is_reported() -> None:
    model = nn.Sequential(nn.Linear(1, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    problem = Problem(model, nn.MSELoss(), [(torch.ones(2, 1).double(), torch.ones(2, 3).double())])
    found = plane(problem, points=2, span=(0, 1), seed=1)
    assert found.directions is not None
    first, second = found.directions
    single = float(first[:5] @ second[:5]) / (np.linalg.norm(first) * np.linalg.norm(second))
    assert abs(single) > 0.01
    assert found.cosine == pytest.approx(single, abs=1e-14)


def test_given_directions_report_their_cosine() -> None:
    problem = BY_NAME["mlp"].problem()
    first, other = gaussian(problem, seed=0), gaussian(problem, seed=1)
    found = plane(problem, directions=(first, (3 * first + other).numpy()), points=2, span=(0, 1))
    assert found.name == "given"
    assert found.seed is None
    a, b = first.numpy(), (3 * first + other).numpy()
    assert found.cosine == pytest.approx(float(a @ b / np.sqrt((a @ a) * (b @ b))), rel=1e-14)


def relu_net(scale: float) -> Problem:
    """The same function whatever the scale: the first layer times c, the second divided by it."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    with torch.no_grad():
        model[0].weight *= scale
        model[0].bias *= scale
        model[2].weight /= scale
    return Problem(model, nn.CrossEntropyLoss(), list(zip(features((9, 4), 5), labels((9, 4), 3), strict=True)))


def test_filter_normalised_curves_and_planes_do_not_see_rescaled_layers() -> None:
    one, other = relu_net(1.0), relu_net(7.0)
    assert one.loss() == pytest.approx(other.loss(), rel=1e-13)
    np.testing.assert_allclose(line(one, points=9).losses, line(other, points=9).losses, rtol=1e-11)
    np.testing.assert_allclose(plane(one, points=5).losses, plane(other, points=5).losses, rtol=1e-11)
    curves = [line(problem, direction="gaussian", points=9).losses for problem in (one, other)]
    assert np.abs(curves[0] - curves[1]).max() > 0.1 * np.ptp(curves[0])


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = BY_NAME["mlp"].problem()
    n = problem.n
    with pytest.raises(ProblemError, match=rf"shape \({n},\).*found \({n - 1},\)"):
        line(problem, direction=torch.ones(n - 1))
    with pytest.raises(ProblemError, match=rf"found \({n}, 1\).*flatten"):
        plane(problem, directions=(torch.ones(n), np.ones((n, 1))))
    with pytest.raises(ProblemError, match="not zero, found zeros"):
        line(problem, direction=np.zeros(n))
    with pytest.raises(NonFiniteError, match=rf"finite direction, found 1 of {n}"):
        line(problem, direction=np.where(np.arange(n) == 3, np.nan, 1.0))
    with pytest.raises(ProblemError, match="span a plane, found them parallel"):
        plane(problem, directions=(torch.ones(n), -2 * torch.ones(n)))
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users run without the checker of the tests
    with pytest.raises(ProblemError, match="one of 'none', 'weight', 'filter', 'layer', 'model', found 'filters'"):
        normalise(torch.ones(n), problem, how="filters")  # type: ignore[arg-type]
    with pytest.raises(ProblemError, match="'ggn' or a vector, found 'newton'"):
        line(problem, direction="newton")  # type: ignore[arg-type]
    with pytest.raises(ProblemError, match=r"'trajectory' .*, 2 of 'filter', .* or vectors, found 'pca'"):
        plane(problem, directions="pca")  # type: ignore[arg-type]


def test_only_biases_have_no_filters() -> None:
    problem = BY_NAME["mlp"].problem(params="*.bias")
    with pytest.raises(ProblemError, match="one_dimensional='whole'"):
        line(problem)
    assert (
        line(problem, direction=filter_normalised(problem, seed=0, one_dimensional="whole"), points=3).name == "given"
    )


def test_a_diverged_model_is_refused() -> None:
    problem = BY_NAME["mlp"].problem()
    with torch.no_grad():
        next(problem.model.parameters())[0, 0] = math.inf
    with pytest.raises(NonFiniteError, match=r"found 1 of .* diverged; survey an earlier checkpoint"):
        plane(problem)
