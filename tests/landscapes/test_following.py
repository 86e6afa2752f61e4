"""True losses and off-plane distances of a trajectory, and films whose frames pass through the checkpoints."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from families import BY_NAME
from landscapes.test_trajectories import theta, training
from theodolite.errors import ProblemError
from theodolite.landscapes import at_checkpoint, follow, frames, line, plane, trajectory
from theodolite.records import Snapshot
from theodolite.records.text import number


def test_losses_distances_and_shares() -> None:
    problem = BY_NAME["mlp"].problem()
    snapshots = training(problem)
    found = follow(problem, snapshots)
    principal = trajectory(snapshots, center=theta(problem))
    assert found.name == "principal"
    assert found.center == problem.loss()
    assert found.steps.tolist() == [snapshot.step for snapshot in snapshots]
    matrix = np.stack([snapshot.parameters for snapshot in snapshots]) - theta(problem)
    singular = np.linalg.svd(matrix, compute_uv=False)
    np.testing.assert_allclose(found.shares, singular**2 / (singular**2).sum(), rtol=1e-8, atol=1e-15)
    assert found.explained == pytest.approx(principal.explained, rel=1e-9)
    inside = found.coordinates @ np.stack(found.directions)
    residual = np.linalg.norm(matrix - inside, axis=1)
    np.testing.assert_allclose(found.distances, residual, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(found.off_plane, residual / np.linalg.norm(matrix, axis=1), rtol=1e-8)
    for index, snapshot in enumerate(snapshots):
        assert found.losses[index] == at_checkpoint(problem, snapshot).loss()
        shown = at_checkpoint(problem, theta(problem) + inside[index]).loss()
        assert found.plane_losses[index] == pytest.approx(shown, rel=1e-11)
    np.testing.assert_array_equal(found.hidden, found.losses - found.plane_losses)
    assert found.cost.forwards == 2 * len(snapshots) + 1
    surveyed = plane(problem, directions="trajectory", trajectory=snapshots, points=3)
    np.testing.assert_array_equal(found.losses, surveyed.path_losses)
    np.testing.assert_allclose(found.coordinates, surveyed.path, rtol=1e-12)


def test_checkpoints_are_read_with_their_own_statistics() -> None:
    problem = BY_NAME["convnet"].problem()
    states = []
    for index, snapshot in enumerate(training(problem, steps=3)):
        state = copy.deepcopy(at_checkpoint(problem, snapshot).model.state_dict())
        state["norm1.running_mean"] += index + 1
        states.append(state)
    found = follow(problem, states)
    np.testing.assert_array_equal(found.losses, [at_checkpoint(problem, state).loss() for state in states])
    bare = follow(problem, training(problem, steps=3))
    assert np.abs(found.losses - bare.losses).min() > 1e-3
    np.testing.assert_array_equal(found.coordinates, bare.coordinates)
    assert found.steps is None


def test_frames_share_their_axes_and_pass_through_their_checkpoint() -> None:
    problem = BY_NAME["mlp"].problem()
    snapshots = training(problem, steps=4)
    before = problem.loss()
    film = list(frames(problem, {snapshot.step: snapshot for snapshot in snapshots}, points=5))
    path = follow(problem, snapshots)
    first, second = path.directions
    assert len(film) == 4
    for index, frame in enumerate(film):
        assert frame.step == snapshots[index].step
        for positions, other in ((frame.alphas, film[0].alphas), (frame.betas, film[0].betas)):
            assert (positions[0], positions[-1]) == pytest.approx((other[0], other[-1]), rel=1e-13)
        alpha, beta = path.coordinates[index]
        i, j = (int(np.abs(axis - at).argmin()) for axis, at in ((frame.alphas, alpha), (frame.betas, beta)))
        assert frame.alphas[i] == pytest.approx(alpha, abs=1e-14)
        assert frame.losses[i, j] == frame.path_losses[-1] == path.losses[index]
        np.testing.assert_array_equal(frame.path, path.coordinates[: index + 1])
        off = snapshots[index].parameters - theta(problem) - alpha * first - beta * second
        assert frame.path_distances[index] < 1e-12
        corner = theta(problem) + off + frame.alphas[0] * first + frame.betas[-1] * second
        assert frame.losses[0, -1] == pytest.approx(at_checkpoint(problem, corner).loss(), rel=1e-11)
        assert frame.path_distances[0] == pytest.approx(
            np.linalg.norm(
                off - (snapshots[0].parameters - theta(problem) - path.coordinates[0] @ np.stack([first, second]))
            ),
            abs=1e-12,
        )
    assert problem.loss() == before


def test_a_checkpoint_outside_the_frame_still_has_its_loss() -> None:
    problem = BY_NAME["mlp"].problem()
    snapshots = training(problem, steps=3)
    (film, *_) = frames(problem, snapshots, points=2, span=((1e3, 2e3), (1e3, 2e3)))
    assert f"loss {number(float(film.path_losses[-1]))} at the checkpoint (" in repr(film)
    assert "nan" not in repr(film)
    assert "directions dropped" not in repr(film)  # nobody asked to keep them
    off = line(problem, span=(1.0, 2.0), points=2)
    assert "centre off the grid, lowest" in repr(off)
    assert "nan" not in repr(off)
    assert film.path_losses[0] == at_checkpoint(problem, snapshots[0]).loss()


def test_checkpoints_after_a_divergence_are_left_out_and_counted() -> None:
    problem = BY_NAME["mlp"].problem()
    snapshots = training(problem, steps=3)
    broken = Snapshot(parameters=np.full(problem.n, np.nan))
    found = follow(problem, [*snapshots, broken], directions=tuple(torch.eye(problem.n, dtype=torch.float64)[:2]))
    assert (found.name, len(found.losses)) == ("given", 3)
    assert any("1 of 4 checkpoints are not finite" in note for note in found.notes)
    with pytest.raises(ProblemError, match="found 1 and none finite"):
        follow(problem, [broken])
