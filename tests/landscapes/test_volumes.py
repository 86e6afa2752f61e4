"""Volumes: every cell of a quadratic, the centre bit for bit, its planes and lines, resumed to the same bytes."""

from __future__ import annotations

import itertools
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch

from families import BY_NAME
from landscapes.test_quadratic import bowl, closed_form
from theodolite.errors import ProblemError
from theodolite.landscapes import plane, volume
from theodolite.landscapes.directions import cosine, random_directions
from theodolite.records import Volume, differences


@pytest.mark.parametrize(
    ("points", "span"),
    [(3, (-1, 1)), ((4, 3, 5), ((-0.3, 2.1), (-1, 0), (0.5, 2)))],
    ids=["cube", "box off the centre"],
)
def test_every_cell_is_the_closed_form(points: object, span: object) -> None:
    problem, samples = bowl()
    found = volume(problem, directions="gaussian", points=points, span=span, seed=3)  # type: ignore[arg-type]
    assert found.directions is not None
    for place in np.ndindex(found.losses.shape):
        shift = sum(axis[i] * d for axis, i, d in zip(found.axes, place, found.directions, strict=True))
        assert found.losses[place] == pytest.approx(closed_form(problem, samples, shift).mean(), rel=1e-10)
    if points == 3:
        assert found.center == problem.loss()
        assert found.cost.forwards == 27
        assert found.stderrs[1, 1, 1] == 0
        *place, lowest = found.minimum
        assert lowest == found.losses.min()
        assert found.losses[tuple(int(p) + 1 for p in place)] == lowest
    else:
        assert np.isnan(found.center)
        assert any("leaves out the centre" in note for note in found.notes)


def test_its_cut_is_the_plane_of_its_seed_and_its_curvatures_those_of_the_quadratic() -> None:
    problem, _ = bowl()
    found = volume(problem, points=(5, 3, 3), seed=9)
    flat = plane(problem, points=(5, 3), seed=9)
    cut = found.cut(2)
    ignored = {"cost", "notes", "context"}
    np.testing.assert_array_equal(cut.losses, flat.losses)
    np.testing.assert_array_equal(cut.stderrs, flat.stderrs)
    assert not differences(cut, flat, ignore=ignored | {"cosine"})
    hessian = problem.model.H.numpy()
    assert found.directions is not None
    for direction, estimate in zip(found.directions, found.curvatures, strict=True):
        expected = direction @ hessian @ direction / (direction @ direction)
        assert estimate.value == pytest.approx(expected, rel=1e-9)
    np.testing.assert_array_equal(found.cut(0).losses, found.losses[2])
    np.testing.assert_array_equal(found.cut(1).losses, found.losses[:, 1])
    np.testing.assert_array_equal(found.along(1).losses, found.losses[2, :, 1])


def test_three_directions_are_orthogonal_after_normalisation() -> None:
    problem = BY_NAME["convnet"].problem()
    drawn = random_directions(problem, seed=1, count=3)
    found = volume(problem, points=2, span=(0, 1), seed=1)
    assert found.directions is not None
    for one, other in itertools.combinations(range(3), 2):
        assert found.cosines[one, other] == pytest.approx(cosine(drawn[one], drawn[other]), abs=1e-15)
        assert abs(found.cosines[one, other]) < 1e-13
    for direction, vector in zip(found.directions, drawn, strict=True):
        np.testing.assert_array_equal(direction, vector.numpy())


def test_named_directions_of_a_volume() -> None:
    problem = BY_NAME["mlp"].problem()
    vector = torch.ones(problem.n, dtype=torch.float64)
    found = volume(problem, directions=("gradient", "filter", vector), points=2, span=(0, 1), seed=5)
    assert (found.name, found.seed, found.cost.gradients) == ("gradient, filter, given", 5, 1)
    assert found.losses.shape == (2, 2, 2)


def test_an_interrupted_volume_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    problem = BY_NAME["mlp"].problem()

    def stop(done: int, _: int) -> None:
        if done == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        volume(problem, points=3, store=tmp_path, on_point=stop)
    (path,) = tmp_path.iterdir()
    held = len(path.read_bytes().splitlines())
    assert 11 <= held < 26
    calls: list[int] = []
    found = volume(problem, points=3, store=tmp_path, on_point=lambda done, _: calls.append(done))
    assert calls == list(range(1, 28))
    lines = path.read_bytes().splitlines()
    assert len(lines) == len(set(lines)) == 26  # none was read again, and the centre is not among them
    assert not differences(found, volume(problem, points=3), ignore={"cost"})


def test_other_quantities_and_options_are_those_of_a_plane() -> None:
    problem = BY_NAME["convnet"].problem()
    options = {"scalars": ("accuracy",), "groups": "targets", "batchnorm": "batch", "seed": 2, "span": (-1, 1)}
    found, flat = volume(problem, points=3, **options), plane(problem, points=3, **options)
    assert found.scalars == tuple(flat.scalars)
    cut = found.cut(2)
    for name in ("accuracy", "loss of 1"):
        np.testing.assert_array_equal(cut.scalars[name], flat.scalars[name])
        np.testing.assert_array_equal(cut.scalar_stderrs[name], flat.scalar_stderrs[name])
        np.testing.assert_array_equal(found.along(2).scalars[name][1], flat.scalars[name][1, 1])
    np.testing.assert_array_equal(cut.losses, flat.losses)
    assert found.context["batchnorm"] == flat.context["batchnorm"] == "batch statistics"
    capped = volume(problem, points=3, span=(-5, 5), cap=2.0)
    assert capped.partial is not None
    assert capped.partial.any()
    assert np.isnan(capped.masked()[capped.partial]).all()


def test_what_is_not_finite_is_counted_and_masked() -> None:
    values = np.array([np.nan, np.inf, 3.0, 1.0, 2.0, 7.0, 4.0, 5.0]).reshape(2, 2, 2)
    axis = np.array([0.0, 1.0])
    found = Volume(
        alphas=axis, betas=axis, gammas=axis, losses=values, stderrs=np.zeros((2, 2, 2)), direction_norms=(1.0, 1.0, 1.0),
        cosines=np.eye(3), name="given", parameter_norm=1.0,
    )  # fmt: skip
    assert found.minimum == (0, 1, 1, 1)
    assert "2 of 8 NOT FINITE" in repr(found)
    np.testing.assert_array_equal(np.isnan(found.masked(5.0)).ravel(), [1, 1, 0, 0, 0, 1, 0, 0])


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = BY_NAME["mlp"].problem()
    first, second, _ = random_directions(problem, seed=0, count=3)
    with pytest.raises(ProblemError, match=r"span a volume, found them in a plane .*Use plane\(\)"):
        volume(problem, directions=(first, second, first - 2 * second), points=3)
    with pytest.raises(ValueError, match=r"0 among the positions of γ .* found positions from 1 to 2"):
        volume(problem, points=3, span=((-1, 1), (-1, 1), (1, 2))).cut(2)
    with pytest.raises(ValueError, match="axis 0, 1 or 2 of a volume, found 3"):
        volume(problem, points=3).along(3)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users run without the checker of the tests
    with pytest.raises(ProblemError, match="Expected 3 directions, found 2"):
        volume(problem, directions=(first, second), points=3)  # type: ignore[arg-type]
    with pytest.raises(ProblemError, match="or three of each, found"):
        volume(problem, points=(3, 3))  # type: ignore[arg-type]
