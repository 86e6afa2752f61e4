"""Slices along many directions: exact on quadratics, slopes and curvatures those of dense derivatives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from theodolite.errors import ProblemError
from theodolite.landscapes import atlas
from theodolite.problem import Problem
from theodolite.records import Atlas, Log, read


def linear(chunks: int = 4) -> Problem:
    g = torch.Generator().manual_seed(0)
    model = nn.Linear(4, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.randn(1, 4, generator=g, dtype=torch.float64))
    data = [(torch.randn(6, 4, generator=g).double(), torch.randn(6, 1, generator=g).double()) for _ in range(chunks)]
    return Problem(model, nn.MSELoss(), data)


def network() -> Problem:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    batches = [(torch.randn(8, 3).double(), torch.randint(2, (8,))) for _ in range(3)]
    return Problem(model, nn.CrossEntropyLoss(), batches)


def dense(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """θ, gradient and Hessian by another route."""
    names, shapes = problem.layout.names, [leaf.shape for leaf in problem.point().leaves]
    flat = problem.layout.flatten([leaf.detach() for leaf in problem.point().leaves])

    def loss(vector: Tensor) -> Tensor:
        parts = torch.split(vector, [shape.numel() for shape in shapes])
        values = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        x, y = (torch.cat(each) for each in zip(*problem.batches, strict=True))
        return nn.functional.cross_entropy(torch.func.functional_call(problem.model, values, (x,)), y)

    return (
        flat,
        torch.autograd.functional.jacobian(loss, flat),
        torch.autograd.functional.hessian(loss, flat),
    )


@pytest.fixture(scope="module")
def found() -> Atlas:
    return atlas(network(), points=9, draws=2, seed=3)


def test_a_quadratic_is_its_own_prediction() -> None:
    record = atlas(linear(), points=7, draws=3)
    np.testing.assert_allclose(record.losses, record.predicted, rtol=1e-10)
    assert (record.losses[:, 3] == record.center).all()


def test_the_same_distance_along_every_direction(found: Atlas) -> None:
    problem = network()
    flat, gradient, _ = dense(problem)
    ahead = flat - found.positions[-1] * flat.norm() * gradient / gradient.norm()
    moved = problem.on(nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double())
    nn.utils.vector_to_parameters(ahead, moved.model.parameters())
    assert found.losses[found.rows("gradient")[0], -1] == pytest.approx(moved.loss(), rel=1e-12)


def test_slopes_and_curvatures_are_those_of_dense_derivatives(found: Atlas) -> None:
    _, gradient, hessian = dense(network())
    values, vectors = torch.linalg.eigh(hessian)
    row = {name: int(found.rows(name)[0]) for name in found.names}
    assert found.slopes[row["gradient"]] == pytest.approx(-float(gradient.norm()), rel=1e-10)
    unit = gradient / gradient.norm()
    assert found.curvatures[row["gradient"]] == pytest.approx(float(unit @ hessian @ unit), rel=1e-9)
    assert found.curvatures[row["λ max"]] == pytest.approx(float(values[-1]), rel=1e-5)
    assert found.curvatures[row["λ min"]] == pytest.approx(float(values[0]), rel=1e-5)
    assert found.slopes[row["λ max"]] == pytest.approx(-abs(float(vectors[:, -1] @ gradient)), rel=1e-2)


def test_every_direction_is_turned_downhill(found: Atlas) -> None:
    assert (found.slopes <= 0).all()
    middle = len(found.positions) // 2
    slopes = (found.losses[:, middle + 1] - found.losses[:, middle - 1]) / (2 * found.positions[middle + 1])
    np.testing.assert_allclose(slopes / found.parameter_norm, found.slopes, atol=2e-3)


def test_errors_of_curvatures_are_those_of_a_mean_over_equal_chunks() -> None:
    problem = linear(chunks=5)
    record = atlas(problem, points=3, draws=0, directions={"first": torch.eye(4, dtype=torch.float64)[0]})
    each = np.array([float(2 * x[:, 0].square().mean()) for x, _ in problem.batches])
    estimate = record.curvature("first")
    assert estimate.value == pytest.approx(each.mean(), rel=1e-10)
    assert estimate.stderr == pytest.approx(each.std(ddof=1) / np.sqrt(5), rel=1e-10)
    assert estimate.degrees == 4


def test_the_update_of_gradient_descent_is_the_slice_of_the_gradient() -> None:
    problem = network()
    record = atlas(problem, optimizer=torch.optim.SGD(problem.model.parameters(), lr=0.5), points=5, draws=0)
    update, gradient = (int(record.rows(name)[0]) for name in ("update", "gradient"))
    np.testing.assert_allclose(record.losses[update], record.losses[gradient], rtol=1e-10)
    assert record.norms[update] == pytest.approx(0.5 * record.norms[gradient], rel=1e-10)


def test_draws_differ_and_their_mean_has_an_error(found: Atlas) -> None:
    first, second = found.rows("random")
    assert not np.array_equal(found.losses[first], found.losses[second])
    estimate = found.curvature("random")
    values = found.curvatures[[first, second]]
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.stderr == pytest.approx(abs(values[0] - values[1]) / 2)


def test_an_atlas_is_kept_by_the_log(found: Atlas, tmp_path) -> None:
    with Log(tmp_path / "run") as log:
        log.append(found)
    (back,) = read(tmp_path / "run").records
    np.testing.assert_array_equal(back.losses, found.losses)
    assert back.names == found.names


def test_what_cannot_be_drawn_is_refused(found: Atlas) -> None:
    with pytest.raises(ProblemError, match=r"positive reach and draws of at least 0, found reach=0\.0"):
        atlas(linear(), reach=0.0)
    with pytest.raises(ProblemError, match="a direction or a draw at least"):
        atlas(linear(), directions={}, draws=0)
    with pytest.raises(ProblemError, match="other names than 'random'"):
        atlas(linear(), directions={"random": "gaussian"})
    with pytest.raises(ValueError, match=r"Expected a direction among 'gradient', .*, found 'north'"):
        found.curvature("north")
