"""Checkpoints in every form are the same checkpoint; planes through them hold their losses."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from families import BY_NAME
from theodolite.errors import CheckpointError, ParameterError, ProblemError
from theodolite.landscapes import at_checkpoint, line, plane, snapshots
from theodolite.landscapes.checkpoints import Checkpoint, flat_of
from theodolite.landscapes.directions import cosine, difference, length, spanning
from theodolite.problem import Problem
from theodolite.records import Log, Scalars, Snapshot


def theta(problem: Problem) -> torch.Tensor:
    return problem.layout.flatten([leaf.detach() for leaf in problem.point().leaves])


@pytest.fixture(scope="module")
def problem() -> Problem:
    return BY_NAME["convnet"].problem()


def moved_model(problem: Problem, *, seed: int = 0) -> nn.Module:
    """Other weights and other statistics of BatchNorm."""
    model = copy.deepcopy(problem.model)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=g, dtype=torch.float64)
        model.norm1.running_mean += 1.0
    return model


def test_every_form_is_the_same_checkpoint(problem: Problem, tmp_path: Path) -> None:
    model = moved_model(problem)
    before, state = problem.loss(), model.state_dict()
    torch.save({"model": {f"module.{name}": tensor for name, tensor in state.items()}}, tmp_path / "c.pt")
    whole: list[Checkpoint] = [
        state,
        tmp_path / "c.pt",
        str(tmp_path / "c.pt"),
        lambda: state,
        lambda: tmp_path / "c.pt",
    ]
    expected = problem.on(model)
    flat = theta(expected)
    for checkpoint in whole:
        assert at_checkpoint(problem, checkpoint).loss() == expected.loss()
        np.testing.assert_array_equal(flat_of(problem, checkpoint), flat.numpy())
    bare = at_checkpoint(problem, flat).loss()
    assert bare != expected.loss()  # with the statistics of the centre
    for checkpoint in (flat.numpy(), Snapshot(parameters=flat.numpy()), lambda: flat):
        assert at_checkpoint(problem, checkpoint).loss() == bare
    assert problem.loss() == before


def test_steps_and_run_logs(problem: Problem, tmp_path: Path) -> None:
    vectors = [np.full(problem.n, float(t)) for t in range(3)]
    named = snapshots(problem, {10 * t: vector for t, vector in enumerate(vectors)})
    assert [snapshot.step for snapshot in named] == [0, 10, 20]
    with Log(tmp_path) as log:
        log.append(Scalars(step=0, values={"loss": 1.0}))
        for snapshot in named:
            log.append(snapshot)
    for one, other in zip(snapshots(problem, tmp_path), named, strict=True):
        assert one.step == other.step
        np.testing.assert_array_equal(one.parameters, other.parameters)
    with Log(tmp_path / "empty") as log:
        log.append(Scalars(step=0, values={"loss": 1.0}))
    with pytest.raises(CheckpointError, match=r"snapshots in the run log .*empty, found none"):
        snapshots(problem, tmp_path / "empty")


def test_the_line_to_a_checkpoint_ends_at_its_loss() -> None:
    problem = BY_NAME["mlp"].problem()
    there = theta(problem) + torch.linspace(-1, 1, problem.n, dtype=torch.float64)
    found = line(problem, direction=difference(problem, there), points=3, span=(0, 1))
    assert found.losses[-1] == pytest.approx(at_checkpoint(problem, there).loss(), rel=1e-13)


def test_a_plane_through_three_checkpoints_holds_their_losses() -> None:
    problem = BY_NAME["mlp"].problem()
    g = torch.Generator().manual_seed(3)
    a, b = (theta(problem) + 0.5 * torch.randn(problem.n, generator=g, dtype=torch.float64) for _ in range(2))
    found = spanning(problem, a, b)
    first, second = found.directions
    assert abs(cosine(first, second)) < 1e-15
    assert length(first) == pytest.approx(length(second), rel=1e-14)
    assert found.coordinates[1, 1] > 0
    for there, (alpha, beta) in zip((a, b), found.coordinates.tolist(), strict=True):
        torch.testing.assert_close(theta(problem) + alpha * first + beta * second, there, rtol=0, atol=1e-13)
    surveyed = plane(
        problem, directions=found.directions, points=3, trajectory=snapshots(problem, [a, b]), span=((0, 1), (0, 1))
    )
    assert surveyed.path is not None
    assert surveyed.path_distances is not None
    np.testing.assert_allclose(surveyed.path, found.coordinates, atol=1e-13)
    assert surveyed.path_distances.max() < 1e-13
    assert surveyed.losses[-1, 0] == pytest.approx(at_checkpoint(problem, a).loss(), rel=1e-12)


def test_one_checkpoint_and_a_random_axis() -> None:
    problem = BY_NAME["mlp"].problem()
    found = spanning(problem, theta(problem) + 1, seed=4)
    assert found.coordinates.tolist() == [[1, 0]]
    assert abs(cosine(*found.directions)) < 1e-15
    assert not torch.equal(found.directions[1], spanning(problem, theta(problem) + 1, seed=5).directions[1])


def test_refusals(problem: Problem) -> None:
    state = problem.model.state_dict()
    with pytest.raises(CheckpointError, match="the state dict does not fit ConvNet: 1 names missing"):
        at_checkpoint(problem, {name: tensor for name, tensor in state.items() if name != "head.bias"})
    with pytest.raises(CheckpointError, match=r"parameters in the state dict, found none named head\.bias"):
        flat_of(problem, {name: tensor for name, tensor in state.items() if name != "head.bias"})
    with pytest.raises(CheckpointError, match=r"conv1\.weight of shape .* in the state dict, found \(\d+,\)"):
        flat_of(problem, state | {"conv1.weight": state["conv1.weight"].flatten()})
    with pytest.raises(CheckpointError, match=r"found shape \(3,\) in the snapshot of step 7"):
        at_checkpoint(problem, Snapshot(step=7, parameters=np.ones(3)))
    with pytest.raises(CheckpointError, match=r"found none at nowhere\.pt"):
        at_checkpoint(problem, "nowhere.pt")
    with pytest.raises(
        ParameterError, match=r"of ConvNet, found 9 missing or of other shape: conv1\.weight is missing"
    ):
        problem.on(nn.Linear(2, 2))
    with pytest.raises(CheckpointError, match=r"by their optimiser step, found the keys 'conv1\.weight'.*as a list"):
        snapshots(problem, state)
    with pytest.raises(CheckpointError, match="function that returns one, found int"):
        at_checkpoint(problem, lambda: 3)
    with pytest.raises(ProblemError, match="not zero, found zeros"):
        difference(problem, theta(problem))
    with pytest.raises(ProblemError, match="found them parallel"):
        spanning(problem, theta(problem) + 1, theta(problem) + 2)
