"""Trajectories: principal directions against the SVD, coordinates and distances against least squares."""

from __future__ import annotations

import math

import jaxtyping
import numpy as np
import pytest
import torch

from families import BY_NAME
from theodolite.errors import ProblemError
from theodolite.landscapes import at_checkpoint, gaussian, plane, trajectories, trajectory
from theodolite.landscapes.trajectories import project
from theodolite.problem import Problem
from theodolite.records import Snapshot


def walk(n: int, *, steps: int = 9, seed: int = 0, dtype: type = np.float64) -> tuple[list[Snapshot], np.ndarray]:
    """A curved path that ends near a centre."""
    g = np.random.default_rng(seed)
    center = g.standard_normal(n)
    t = np.linspace(1, 0, steps)[:, None]
    path = center + 3 * t * g.standard_normal(n) + t**2 * g.standard_normal(n) + 0.2 * g.standard_normal((steps, n))
    return [Snapshot(parameters=row.astype(dtype), step=10 * index) for index, row in enumerate(path)], center.astype(
        dtype
    )


def matrix(snapshots: list[Snapshot]) -> np.ndarray:
    return np.stack([snapshot.parameters for snapshot in snapshots])


def theta(problem: Problem) -> np.ndarray:
    return problem.layout.flatten([leaf.detach() for leaf in problem.point().leaves]).numpy()


def test_a_plane_takes_checkpoints_in_any_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    problem = BY_NAME["mlp"].problem()
    snapshots = training(problem, steps=3)
    models = [at_checkpoint(problem, snapshot).model for snapshot in snapshots]
    expected = plane(problem, points=3, trajectory=snapshots)
    steps = {snapshot.step: model for snapshot, model in zip(snapshots, models, strict=True)}
    for given in (models, [model.state_dict() for model in models], steps, [*snapshots[:2], models[2]]):
        found = plane(problem, points=3, trajectory=given)
        np.testing.assert_array_equal(found.path, expected.path)
        np.testing.assert_array_equal(found.path_losses, expected.path_losses)
        assert (found.path_steps is None) == (given is not steps)
    for wrong in (snapshots[0], models[0], 3):
        with pytest.raises(ProblemError, match="Expected a trajectory of several checkpoints, found a"):
            plane(problem, trajectory=wrong)  # type: ignore[arg-type]


def training(problem: Problem, *, steps: int = 6) -> list[Snapshot]:
    """A path through the parameters of a problem that ends at them."""
    snapshots, center = walk(problem.n, steps=steps)
    return [
        snapshot.replace(parameters=theta(problem) + 0.1 * (snapshot.parameters - center)) for snapshot in snapshots
    ]


@pytest.mark.parametrize(("n", "steps"), [(50, 9), (4, 30), (trajectories.BLOCK + 5, 4), (20, 3)])
def test_principal_directions_are_those_of_the_svd(n: int, steps: int) -> None:
    snapshots, center = walk(n, steps=steps)
    found = trajectory(snapshots, center=center)
    _, singular, right = np.linalg.svd(matrix(snapshots) - center, full_matrices=False)
    for direction, expected, share, value in zip(found.directions, right, found.explained, singular, strict=False):
        assert np.linalg.norm(direction) == pytest.approx(1, rel=1e-14)
        assert abs(direction @ expected) == pytest.approx(1, rel=1e-10)
        assert share == pytest.approx(value**2 / (singular**2).sum(), rel=1e-10)
        along = (matrix(snapshots) - center) @ direction
        assert along[np.abs(along).argmax()] > 0
    assert abs(found.directions[0] @ found.directions[1]) < 1e-14
    assert found.explained[0] >= found.explained[1] > 0
    assert sum(found.explained) <= 1 + 1e-14


def test_a_thin_second_direction_stays_orthogonal() -> None:
    """Inner products square the ratio of the singular values, 1e-5 here."""
    g = np.random.default_rng(0)
    first, second = np.linalg.qr(g.standard_normal((40, 2)))[0].T
    t = np.linspace(1, 0, 7)
    rows = t[:, None] * first + 1e-5 * np.cos(9 * t)[:, None] * second
    found = trajectory([Snapshot(parameters=row) for row in rows], center=np.zeros(40))
    assert abs(found.directions[0] @ found.directions[1]) < 1e-15
    assert abs(found.directions[1] @ second) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("lengths", [(1, 1), (1e-6, 1e5), (250, 3)])
def test_coordinates_are_least_squares_whatever_the_lengths_and_the_angle(lengths: tuple[float, float]) -> None:
    snapshots, center = walk(60)
    g = np.random.default_rng(5)
    first = g.standard_normal(60)
    directions = (lengths[0] * first, lengths[1] * (first + 0.5 * g.standard_normal(60)))
    found = project(snapshots, center=center, directions=directions)
    differences = matrix(snapshots) - center
    expected = np.linalg.lstsq(np.stack(directions, axis=1), differences.T, rcond=None)[0].T
    np.testing.assert_allclose(found.coordinates, expected, rtol=1e-8)
    residual = differences - found.coordinates @ np.stack(directions)
    np.testing.assert_allclose(found.distances, np.linalg.norm(residual, axis=1), rtol=1e-9)
    for direction in directions:
        assert np.abs(residual @ direction).max() < 1e-9 * np.linalg.norm(direction)
    shown = np.linalg.norm(found.coordinates @ np.stack(directions), axis=1)
    np.testing.assert_allclose(shown**2 + found.distances**2, (differences**2).sum(1), rtol=1e-10)
    assert sum(found.explained) == pytest.approx((shown**2).sum() / (differences**2).sum(), rel=1e-10)


@pytest.mark.parametrize("length", [1e-3, 1.0, 40.0])
def test_half_a_direction_away_is_at_one_half(length: float) -> None:
    problem = BY_NAME["mlp"].problem()
    first, second = gaussian(problem, seed=0).numpy(), gaussian(problem, seed=1).numpy()
    first = first * length
    at = theta(problem)
    snapshots = [Snapshot(parameters=at + 0.5 * first), Snapshot(parameters=at - 0.25 * second)]
    found = plane(problem, directions=(first, second), points=3, trajectory=snapshots)
    assert found.path is not None
    assert found.path_distances is not None
    np.testing.assert_allclose(found.path, [[0.5, 0], [0, -0.25]], atol=1e-12)
    assert found.path_distances.max() < 1e-12 * length + 1e-14


def test_the_plane_of_a_trajectory() -> None:
    problem = BY_NAME["mlp"].problem()
    snapshots = training(problem)
    found = plane(problem, directions="trajectory", trajectory=snapshots, points=(5, 6))
    principal = trajectory(snapshots, center=theta(problem))
    assert found.name == "trajectory"
    assert found.seed is None
    assert found.center == problem.loss()
    assert found.direction_norms == pytest.approx((1, 1), rel=1e-14)
    assert found.explained == pytest.approx(principal.explained, rel=1e-9)
    np.testing.assert_array_equal(found.path_steps, [snapshot.step for snapshot in snapshots])
    assert found.cost.forwards == 30 + len(snapshots)
    assert found.path is not None
    for positions, along in zip((found.alphas, found.betas), found.path.T, strict=True):
        low, high = min(along.min(), 0), max(along.max(), 0)
        assert positions[0] == pytest.approx(low - 0.15 * (high - low))
        assert positions[-1] == pytest.approx(high + 0.15 * (high - low))
        assert 0 in positions


def test_losses_of_the_path_are_those_of_the_checkpoints_not_of_their_projections() -> None:
    problem = BY_NAME["mlp"].problem()
    snapshots = training(problem)
    found = plane(problem, directions="trajectory", trajectory=snapshots, points=3)
    live = BY_NAME["mlp"].problem()
    for snapshot, loss in zip(snapshots, found.path_losses, strict=True):
        with torch.no_grad():
            parts = live.layout.unflatten(torch.from_numpy(snapshot.parameters.copy()))
            for parameter, part in zip(live.model.parameters(), parts, strict=True):
                parameter.copy_(part)
        assert loss == live.loss()
    assert found.directions is not None
    flat = snapshots[0].replace(
        parameters=theta(problem) + found.path[0] @ np.stack(found.directions)  # type: ignore[index]
    )
    projected = plane(problem, directions=found.directions, trajectory=[flat], points=3)
    assert projected.path_losses is not None
    assert abs(projected.path_losses[0] - found.path_losses[0]) > 1e-4


def test_a_given_span_stands_and_any_directions_carry_a_path() -> None:
    problem = BY_NAME["mlp"].problem()
    snapshots = training(problem)
    given = plane(problem, directions="trajectory", trajectory=snapshots, points=3, span=(-2, 5))
    assert (given.betas[0], given.betas[-1]) == (-2, 5)
    random = plane(problem, trajectory=snapshots, points=3)
    assert (random.alphas[0], random.alphas[-1]) == (-1, 1)
    assert random.path is not None
    assert random.explained is not None
    assert sum(random.explained) < sum(given.explained or (0, 0)) <= 1


def test_a_path_without_steps_has_none() -> None:
    problem = BY_NAME["mlp"].problem()
    snapshots = [snapshot.replace(step=None) for snapshot in training(problem)]
    assert plane(problem, trajectory=snapshots, points=3).path_steps is None


def test_snapshots_from_after_a_divergence_are_left_out_and_counted() -> None:
    problem = BY_NAME["mlp"].problem()
    snapshots = training(problem)
    broken = snapshots[2].replace(parameters=np.full(problem.n, math.nan))
    found = plane(problem, directions="trajectory", trajectory=[*snapshots, broken], points=3)
    assert any("1 of 7 snapshots are not finite" in note for note in found.notes)
    clean = plane(problem, directions="trajectory", trajectory=snapshots, points=3)
    np.testing.assert_array_equal(found.losses, clean.losses)
    np.testing.assert_array_equal(found.path, clean.path)


def test_stored_statistics_are_those_of_the_centre_and_the_record_says_so() -> None:
    for mode, said in (("eval", True), ("train", False)):
        problem = BY_NAME["convnet"].problem(mode=mode)
        found = plane(problem, directions="trajectory", trajectory=training(problem), points=3)
        assert any("BatchNorm statistics of the centre" in note for note in found.notes) == said


def test_single_precision_checkpoints() -> None:
    problem = BY_NAME["mlp"].problem(dtype=torch.float32)
    snapshots, _ = walk(problem.n, dtype=np.float32)
    found = plane(problem, directions="trajectory", trajectory=snapshots, points=3)
    assert abs(found.cosine) < 1e-6
    assert found.directions is not None
    assert found.directions[0].dtype == np.float32


def test_refusals() -> None:
    problem = BY_NAME["mlp"].problem()
    n = problem.n
    snapshots = training(problem)
    with pytest.raises(ProblemError, match=r"at least 3 snapshots .* found 0"):
        plane(problem, directions="trajectory")
    with pytest.raises(ProblemError, match=r"at least 3 snapshots .* found 2"):
        plane(problem, directions="trajectory", trajectory=snapshots[:2])
    with pytest.raises(ProblemError, match=rf"the {n} selected parameters, found 3 in snapshot 1 \(step 70\)"):
        plane(problem, trajectory=[snapshots[0], Snapshot(parameters=np.ones(3), step=70)])
    straight = [Snapshot(parameters=theta(problem) + t * np.ones(n)) for t in (3.0, 2.0, 1.0, 0.0)]
    with pytest.raises(ProblemError, match="all 4 on one line through it"):
        plane(problem, directions="trajectory", trajectory=straight)
    with pytest.raises(ProblemError, match="all 3 on one line"):
        trajectory([Snapshot(parameters=np.ones(4))] * 3, center=np.ones(4))
    with pytest.raises(ProblemError, match="found NaN or infinity"):
        trajectory([*snapshots, Snapshot(parameters=np.full(n, np.inf))], center=theta(problem))
