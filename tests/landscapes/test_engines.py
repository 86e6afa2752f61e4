"""What is saved by not computing again: the same bits, fewer calls, and nothing where it would be wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from families import FAMILIES, Family, features, labels
from theodolite.landscapes import plane, readings
from theodolite.landscapes.prefix import Prefix
from theodolite.problem import Problem
from theodolite.records import Plane

DATA = list(zip(features((6, 5), 5), labels((6, 5), 3), strict=True))
families = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


class Counting(nn.Module):
    """A linear map that counts its calls."""

    def __init__(self, wide: int, out: int) -> None:
        super().__init__()
        self.linear, self.calls = nn.Linear(wide, out), [0]

    def forward(self, x: Tensor) -> Tensor:
        self.calls[0] += 1
        return self.linear(x)


def net(*, between: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    torch.manual_seed(5)
    return nn.Sequential(Counting(5, 8), between(), Counting(8, 8), nn.Tanh(), Counting(8, 3)).double()


def head_plane(model: nn.Module, name: str, **options: object) -> Plane:
    problem = Problem(model, nn.CrossEntropyLoss(), DATA, params=name)
    return plane(problem, directions="gaussian", points=4, span=(-1, 1), **options)  # type: ignore[arg-type]


def without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Prefix, "evaluate", lambda self, model, leaves, chunk, compute: compute())


def test_what_comes_before_the_displaced_head_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    found = head_plane(model, "4.*", scalars=("accuracy",))
    early, middle, head = (model[index].calls[0] for index in (0, 2, 4))
    for index in (0, 2, 4):
        assert "forward" not in model[index].__dict__
        assert not model[index]._forward_hooks
    assert early == middle < head - 20  # 15 points of two chunks, but for the first and the check
    without(monkeypatch)
    again = net()
    plain = head_plane(again, "4.*", scalars=("accuracy",))
    np.testing.assert_array_equal(found.losses, plain.losses)
    np.testing.assert_array_equal(found.stderrs, plain.stderrs)
    np.testing.assert_array_equal(found.scalars["accuracy"], plain.scalars["accuracy"])
    assert again[0].calls[0] == again[4].calls[0]


@families
def test_planes_of_the_last_parameters_are_the_same_to_the_bit(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ties, attention, recurrence, BatchNorm, functions between modules: kept outputs are those of computing."""

    def drawn() -> Plane:
        problem = family.problem()
        shift = torch.zeros(problem.n, dtype=torch.float64)
        shift[-2:] = torch.tensor([0.3, -0.7])
        other = torch.zeros(problem.n, dtype=torch.float64)
        other[-2:] = torch.tensor([0.5, 0.4])
        return plane(problem, directions=(shift, other), points=3)

    kept = drawn()
    without(monkeypatch)
    np.testing.assert_array_equal(kept.losses, drawn().losses)


class Borrowing(nn.Module):
    """Uses the weight of its head before the head is called, so that the first module depends on it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.first, self.head = Counting(5, 8), nn.Linear(8, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.first(x + self.head.weight.mean())))


def test_a_weight_that_is_used_outside_its_module_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = head_plane(Borrowing(), "head.weight")
    without(monkeypatch)
    np.testing.assert_array_equal(kept.losses, head_plane(Borrowing(), "head.weight").losses)


class InPlace(nn.Module):
    """Writes to the output of the module before it: kept outputs would be written to again at every point."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(0.5)


def test_outputs_that_are_written_to_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    class Halving(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(5)
            self.first, self.head = nn.Linear(5, 8), nn.Linear(8, 3)
            self.double()

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.first(x).mul_(0.5))

    kept = head_plane(Halving(), "head.*")
    through = head_plane(net(between=InPlace), "4.*")
    without(monkeypatch)
    np.testing.assert_array_equal(kept.losses, head_plane(Halving(), "head.*").losses)
    np.testing.assert_array_equal(through.losses, head_plane(net(between=InPlace), "4.*").losses)


def test_nothing_is_kept_beyond_memory_or_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    small = net()
    problem = Problem(small, nn.CrossEntropyLoss(), DATA, params="4.*", memory=400)  # a quarter of it holds no output
    plane(problem, directions="gaussian", points=3)
    assert small[0].calls[0] == small[4].calls[0]
    dropping = nn.Sequential(Counting(5, 8), nn.Dropout(0.5), nn.Linear(8, 3)).double()
    problem = Problem(dropping, nn.CrossEntropyLoss(), DATA, params="2.*", mode="train")
    kept = plane(problem, directions="gaussian", points=3)
    without(monkeypatch)
    np.testing.assert_array_equal(kept.losses, plane(problem, directions="gaussian", points=3).losses)


def test_blocks_of_any_size_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    drawn = []
    for seconds in (0.0, 100.0):
        monkeypatch.setattr(readings, "BLOCK_SECONDS", seconds)
        drawn.append(plane(Problem.from_loss(net(), loss, DATA, mode="train"), points=5).losses)
    np.testing.assert_array_equal(*drawn)
