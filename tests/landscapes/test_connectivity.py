"""Barriers by layer and between all pairs: closed forms on quadratics, and equal to those of single paths."""

from __future__ import annotations

import copy
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from families import BY_NAME
from theodolite.errors import ProblemError
from theodolite.landscapes.paths import connectivity, layer_barriers, path
from theodolite.problem import Problem
from theodolite.records import Connectivity


class Sum(nn.Module):
    """Two linear layers side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 1), nn.Linear(4, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x[:, :3]) + self.b(x)


def hills() -> tuple[Problem, Tensor]:
    """−(a(x) + b(x) − y)²: along every line it deviates from its chord by t(1−t) times a mean square."""
    g = torch.Generator().manual_seed(0)
    batches = [(torch.randn(n, 4, generator=g).double(), torch.randn(n, 1, generator=g).double()) for n in (5, 5, 5)]
    problem = Problem.from_loss(
        Sum().double(), lambda model, batch: -(model(batch[0]) - batch[1]).square().mean(), batches
    )
    return problem, torch.cat([x for x, _ in batches])


def checkpoint(seed: int) -> Tensor:
    return torch.randn(8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_barriers_of_layers_are_those_of_the_quadratic() -> None:
    problem, x = hills()
    first, last = checkpoint(1), checkpoint(2)
    found = layer_barriers(problem, first, last, points=5)
    assert found.layers == ("a", "b")
    step = last - first
    inputs = torch.cat([x[:, :3], torch.ones(15, 1).double()], 1)
    changes = torch.stack([inputs @ step[:4], x @ step[4:]])
    means = changes.square().view(2, 3, 5).mean(2).numpy() / 4
    np.testing.assert_allclose(found.barriers, means.mean(1)[:, None].repeat(2, 1), rtol=1e-10)
    np.testing.assert_allclose(found.stderrs, means.std(1, ddof=1)[:, None].repeat(2, 1) / 3**0.5, rtol=1e-8)
    np.testing.assert_allclose(found.predicted, found.barriers, rtol=1e-10)
    np.testing.assert_allclose(found.predicted_stderrs, found.stderrs, rtol=1e-8)
    np.testing.assert_allclose(found.distances, [float(step[:4].norm()), float(step[4:].norm())])
    mixed = [torch.cat([last[:4], first[4:]]), torch.cat([first[:4], last[4:]])]
    losses = {name: path(problem, at, at, points=3).losses[0, 0] for name, at in zip("ab", mixed, strict=True)}
    ends = path(problem, first, last, points=3).losses[0, [0, -1]]
    np.testing.assert_allclose(found.rises[0], [losses["a"] - ends[0], losses["b"] - ends[1]])
    np.testing.assert_allclose(found.rises[1], [losses["b"] - ends[0], losses["a"] - ends[1]])
    assert (found.cost.forwards, found.cost.products) == (21, 8)
    assert "highest barrier" in repr(found)


def test_statistics_go_with_their_layer() -> None:
    family = BY_NAME["convnet"]
    model, batches = family.model_and_data()
    problem = family.problem_of(model, batches)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    state["norm2.running_var"] = 2 * state["norm2.running_var"]
    found = layer_barriers(problem, model, state, points=3)
    by_layer = dict(zip(found.layers, found.rises.tolist(), strict=True))
    whole = path(problem, model, state, points=3, batchnorm="interpolated").losses[0]
    assert by_layer["norm2"] == pytest.approx([whole[-1] - whole[0], whole[0] - whole[-1]])
    assert by_layer["conv1"] == [0, 0]


def test_every_pair_is_read_as_a_path_of_its_own() -> None:
    problem, _ = hills()
    checkpoints = {str(seed): checkpoint(seed) for seed in range(3)}
    found = connectivity(problem, checkpoints, points=5)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        alone = path(problem, checkpoints[str(i)], checkpoints[str(j)], points=5)
        assert found.barrier(str(i), str(j)) == alone.barrier()
        assert found.barrier(str(j), str(i), above="mean") == alone.barrier(above="mean")
        assert found.distances[i, j] == found.distances[j, i] == alone.distances[0]
        assert found.losses[[i, j]].tolist() == alone.losses[0, [0, -1]].tolist()
    assert not found.barriers.diagonal().any()
    assert found.cost.forwards == 3 + 3 * 3
    assert "lowest barrier" in repr(found)


def test_basins_are_joined_by_low_barriers_over_others() -> None:
    barriers = np.array([[0, 9, 1, 9], [9, 0, 9, 2], [1, 9, 0, 9], [9, 2, 9, 0.0]])
    heights = np.repeat(barriers[..., None], 4, axis=2)
    record = Connectivity(
        names=("a", "b", "c", "d"),
        losses=np.zeros(4),
        heights=heights,
        height_stderrs=0 * heights,
        distances=barriers,
        profile="linear",
        points=3,
    )
    assert record.basins(0.5).tolist() == [0, 1, 2, 3]
    assert record.basins(1.0).tolist() == [0, 1, 0, 2]
    assert record.basins(2.0).tolist() == [0, 1, 0, 1]
    chained = np.array([[0, 9, 9, 1], [9, 0, 1, 9], [9, 1, 0, 1], [1, 9, 1, 0.0]])
    assert record.replace(heights=np.repeat(chained[..., None], 4, axis=2)).basins(1.0).tolist() == [0, 0, 0, 0]
    with pytest.raises(ValueError, match="among 'a', 'b', 'c', 'd', found 'e'"):
        record.barrier("a", "e")


@pytest.mark.parametrize("aligned", [False, True])
def test_pairs_with_stored_statistics_are_recalibrated_at_the_checkpoints_too(aligned: bool) -> None:
    family = BY_NAME["convnet"]
    model, batches = family.model_and_data()
    problem, checkpoints = family.problem_of(model, batches), {"one": model}
    for seed, name in enumerate(("two", "three")):
        g = torch.Generator().manual_seed(seed)
        checkpoints[name] = copy.deepcopy(model)
        with torch.no_grad():
            for value in [*checkpoints[name].parameters(), checkpoints[name].norm1.running_var]:
                value.add_(0.3 * torch.rand(value.shape, generator=g, dtype=value.dtype))
    found = connectivity(problem, checkpoints, points=3, aligned=aligned)
    profile = "aligned, recalibrated" if aligned else "linear, recalibrated"
    assert found.profile == profile
    for i, j in combinations(checkpoints, 2):
        alone = path(problem, checkpoints[i], checkpoints[j], points=3, aligned=aligned, predict=False)
        assert found.barrier(i, j) == alone.barrier(profile)
    assert found.losses[1] == family.problem_of(checkpoints["two"], batches).loss()
    assert any("recalibrated at every position, the ends included" in note for note in found.notes)
    # three checkpoints and pairs: stored and recalibrated losses, and two passes between the ends
    assert found.cost.forwards == (3 + 3 * (1 + 6) if aligned else 3 * 3 + 3 * 2)


def test_copies_with_permuted_units_are_one_basin_when_aligned() -> None:
    problem = BY_NAME["mlp"].problem()
    state = {name: value.clone() for name, value in problem.model.state_dict().items()}
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    for name, axis in (("0.weight", 0), ("0.bias", 0), ("2.weight", 1)):
        state[name] = state[name].index_select(axis, order)
    found = connectivity(problem, {"one": problem.model, "other": state}, points=5, aligned=True)
    assert found.profile == "aligned"
    assert found.distances[0, 1] == 0
    assert abs(found.barriers[0, 1]) < 1e-14


def test_errors_show_the_scene() -> None:
    problem, _ = hills()
    with pytest.raises(ProblemError, match="found 1 checkpoints and points=5"):
        connectivity(problem, {"a": checkpoint(0)}, points=5)
    with pytest.raises(ProblemError, match="at least 3 points, both ends and one between them, found 2"):
        layer_barriers(problem, checkpoint(0), checkpoint(1), points=2)
