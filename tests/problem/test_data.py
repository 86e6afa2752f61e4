"""Batches of every form give the loss, gradient and Hessian of all data as one batch."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from theodolite.errors import DataError, NotDeterministicError
from theodolite.operators import Hessian
from theodolite.problem import Problem
from theodolite.problem.data import Batches, map_tensors, move, samples_of, split

SIZES = (5, 4, 1)
N = sum(SIZES)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, 2), nn.Linear(2, 2)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return torch.tanh(self.left(left)) * self.right(right)


def data() -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    left, right = (torch.randn(N, width, generator=g, dtype=torch.float64) for width in (3, 2))
    return left, right, torch.randint(2, (N,), generator=g)


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


@dataclasses.dataclass
class Record:
    left: Tensor
    right: Tensor
    targets: Tensor


FORMS: dict[str, Callable[[Tensor, Tensor, Tensor], Any]] = {
    "tuple": lambda left, right, y: ((left, right), y),
    "list": lambda left, right, y: [[left, right], y],
    "mapping": lambda left, right, y: ({"right": right, "left": left}, y),
    "ordered mapping": lambda left, right, y: (collections.OrderedDict(right=right, left=left), y),
    "named tuple": lambda left, right, y: (Pair(left, right), y),
}


def cut(tensors: tuple[Tensor, ...]) -> list[tuple[Tensor, ...]]:
    return list(zip(*(tensor.split(SIZES) for tensor in tensors), strict=True))


def model() -> nn.Module:
    torch.manual_seed(0)
    return TwoInputs().double()


def expected() -> tuple[float, Tensor]:
    net, (left, right, y) = model(), data()
    loss = F.cross_entropy(net(left, right), y)
    return float(loss.detach()), torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(net.parameters()))])


def assert_expected(problem: Problem) -> None:
    loss, gradient = expected()
    assert problem.loss() == pytest.approx(loss, rel=1e-12)
    torch.testing.assert_close(problem.gradient(), gradient, rtol=1e-10, atol=1e-14)
    assert problem.samples == N


@pytest.mark.parametrize("microbatch", [None, 2])
@pytest.mark.parametrize("form", FORMS)
def test_inputs_of_every_form(form: str, microbatch: int | None) -> None:
    batches = [FORMS[form](*part) for part in cut(data())]
    assert_expected(Problem(model(), nn.CrossEntropyLoss(), batches, microbatch=microbatch))


def loss_of(form: str) -> Callable[[nn.Module, Any], Any]:
    def read(batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        if form == "mapping":
            return batch["left"], batch["right"], batch["targets"]
        if form == "record":
            return batch.left, batch.right, batch.targets
        return batch

    def loss(net: nn.Module, batch: Any) -> Any:
        left, right, y = read(batch)
        value = F.cross_entropy(net(left, right), y)
        return SimpleNamespace(loss=value) if form == "structured" else value

    return loss


@pytest.mark.parametrize("microbatch", [None, 2])
@pytest.mark.parametrize("form", ["tuple", "mapping", "record", "structured"])
def test_any_loss_function_weighs_by_samples(form: str, microbatch: int | None) -> None:
    make: dict[str, Callable[..., Any]] = {"mapping": lambda a, b, y: {"left": a, "right": b, "targets": y}}
    make["record"] = Record
    batches = [make.get(form, lambda *parts: parts)(*part) for part in cut(data())]
    assert_expected(Problem.from_loss(model(), loss_of(form), batches, microbatch=microbatch))


def test_mappings_keep_their_type() -> None:
    class Encoding(collections.UserDict):  # type: ignore[type-arg]
        """Entries are attributes too, as in the batches of tokenizers."""

        def __getattr__(self, name: str) -> Any:
            return self.data[name]

    batch = Encoding({"input_ids": torch.ones(4, 2), "note": "kept"})
    for found in (move(batch, device=torch.device("cpu"), dtype=torch.float64), split(batch, 2)[0]):
        assert type(found) is Encoding
        assert found["note"] == "kept"
    assert split(batch, 2)[0].input_ids.shape == (2, 2)
    assert batch.input_ids.shape == (4, 2)
    assert batch.input_ids.dtype == torch.float32
    counted = collections.defaultdict(list, x=torch.ones(2))
    assert type(map_tensors(counted, lambda t: 2 * t)) is collections.defaultdict


def test_splitting_covers_every_sample_once_and_leaves_what_is_not_sampled_whole() -> None:
    table = torch.arange(12.0).reshape(3, 4)
    batch = {
        "x": torch.arange(7),
        "nested": [torch.arange(14).reshape(7, 2)],
        "table": table,
        "scalar": torch.tensor(1.0),
    }
    pieces = split(batch, 3)
    assert [samples_of(piece) for piece in pieces] == [3, 3, 1]
    assert torch.equal(torch.cat([piece["x"] for piece in pieces]), batch["x"])
    assert torch.equal(torch.cat([piece["nested"][0] for piece in pieces]), batch["nested"][0])
    assert all(piece["table"] is table for piece in pieces)


class Stream(IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Iterator[Any]:
        left, right, y = data()
        yield from zip(left, right, y, strict=True)


def collate(rows: list[tuple[Tensor, ...]]) -> Any:
    left, right, y = (torch.stack(column) for column in zip(*rows, strict=True))
    return (left, right), y


class Again:
    """A custom iterable that makes its batches anew at every walk."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches, self.walks = batches, 0

    def __iter__(self) -> Iterator[Any]:
        self.walks += 1
        for batch in self.batches:
            yield map_tensors(batch, torch.clone)


@pytest.mark.parametrize("source", ["map-style", "stream", "custom", "tuple"])
def test_sources_of_every_kind(source: str) -> None:
    batches = [((left, right), y) for left, right, y in cut(data())]
    sources: dict[str, Any] = {
        "map-style": DataLoader(TensorDataset(*data()), batch_size=4, collate_fn=collate),
        "stream": DataLoader(Stream(), batch_size=4, collate_fn=collate),
        "custom": Again(batches),
        "tuple": tuple(batches),
    }
    assert_expected(Problem(model(), nn.CrossEntropyLoss(), sources[source]))


def test_a_loader_is_walked_once_while_its_batches_fit_in_memory() -> None:
    source = Again([((left, right), y) for left, right, y in cut(data())])
    problem = Problem(model(), nn.CrossEntropyLoss(), source)
    H = Hessian(problem)
    for _ in range(3):
        H @ torch.ones(problem.n, dtype=torch.float64)
    assert problem.samples == N
    assert source.walks == 3  # the first batch, once more to compare, and the first pass


def test_a_loader_that_does_not_fit_is_walked_at_every_pass_and_watched() -> None:
    source = Again([torch.arange(3.0), torch.arange(4.0)])
    batches = Batches(source, keep=1)
    for _ in range(3):
        assert [batch.shape[0] for batch in batches] == [3, 4]
    source.batches[1] = torch.arange(4.0).flip(0)
    with pytest.raises(NotDeterministicError, match=r"other data in batch 1"):
        list(batches)
    source.batches[1:] = []
    with pytest.raises(NotDeterministicError, match=r"Expected 2 batches as in the first pass, found 1"):
        list(batches)
    source.batches = [torch.arange(3.0), torch.arange(4.0), torch.arange(5.0)]
    with pytest.raises(NotDeterministicError, match=r"Expected 2 batches as in the first pass, found 3"):
        list(batches)


@pytest.mark.parametrize("mode", ["inference_mode", "no_grad"])
def test_batches_made_without_gradients_serve(mode: str) -> None:
    with getattr(torch, mode)():
        batches = [((left.clone(), right.clone()), y.clone()) for left, right, y in cut(data())]
    assert_expected(Problem(model(), nn.CrossEntropyLoss(), batches))


def test_a_batch_of_one_number_has_no_samples() -> None:
    with pytest.raises(DataError, match=r"first dimension counts samples, found dict without any"):
        samples_of({"x": torch.tensor(1.0)})


def test_equal_weights_for_unequal_batches_would_be_wrong_here() -> None:
    """The error that the weighting avoids: 13 to 30 per cent in tools that average batch means."""
    parts = [((left, right), y) for left, right, y in cut(data())]
    means = [Problem(model(), nn.CrossEntropyLoss(), [part]).loss() for part in parts]
    assert abs(sum(means) / len(means) / expected()[0] - 1) > 0.02
