"""Evaluations of a problem leave model, loaders and random state bit-identical, also when they fail midway."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from snapshots import snapshot
from theodolite.operators import GGN, GradientCovariance, Hessian
from theodolite.problem import Problem

EVALUATIONS: dict[str, Callable[[Problem], Any]] = {
    "loss": lambda problem: problem.loss(),
    "totals": lambda problem: problem.totals(),
    "gradient": lambda problem: problem.gradient(),
    "samples": lambda problem: problem.samples,
    "context": lambda problem: problem.context(),
    "hessian": lambda problem: Hessian(problem) @ torch.ones(problem.n, 2),
    "difference": lambda problem: Hessian(problem.replace(engine="difference")) @ torch.ones(problem.n),
    "ggn": lambda problem: GGN(problem) @ torch.ones(problem.n),
}


def noisy_net() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 2))
    model(torch.randn(8, 3)).sum().backward()
    return model


def dataset(n: int = 10) -> TensorDataset:
    return TensorDataset(torch.randn(n, 3), torch.randint(2, (n,)))


@pytest.mark.parametrize("mode", ["eval", "train", "as is"])
@pytest.mark.parametrize("evaluation", EVALUATIONS)
def test_nothing_changes(evaluation: str, mode: str) -> None:
    model = noisy_net()
    problem = Problem(model, nn.CrossEntropyLoss(), [dataset()[:]], mode=mode)
    before = snapshot(model)
    EVALUATIONS[evaluation](problem)
    assert snapshot(model) == before


class Twice(nn.Module):
    """A module used twice, a block that holds it under another name, and a weight tied across modules."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.again = nn.ModuleList([self.first, nn.Tanh(), self.first[0]])
        self.head = nn.Linear(4, 4, bias=False)
        self.head.weight = self.first[0].weight

    def forward(self, x: Tensor) -> Tensor:
        for part in (self.first, *self.again):
            x = part(x)
        return self.head(x)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("evaluation", EVALUATIONS)
def test_modules_with_several_names_keep_their_own_parameters(evaluation: str, mode: str) -> None:
    model = Twice()
    own = {name: id(held) for name, held in [*model.named_parameters(), *model.named_buffers()]}
    problem = Problem(model, nn.CrossEntropyLoss(), [(torch.randn(8, 4), torch.randint(4, (8,)))], mode=mode)
    before = snapshot(model)
    EVALUATIONS[evaluation](problem)
    assert snapshot(model) == before
    assert {name: id(held) for name, held in [*model.named_parameters(), *model.named_buffers()]} == own
    assert model.first[0].weight is model.head.weight
    assert isinstance(model.again[2].weight, nn.Parameter)


def test_modules_with_several_names_keep_their_own_after_a_failure() -> None:
    model = Twice()
    weight = model.head.weight
    problem = Problem(model, nn.CrossEntropyLoss(), [(torch.randn(8, 4), torch.randint(4, (8,)))])

    def fail(_: nn.Module) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        problem.call(fail, problem.point())
    assert model.first[0].weight is model.head.weight is weight


SCRIPT = """
import random, torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from theodolite.operators import GradientCovariance, Hessian
from theodolite.problem import Problem

model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
data = TensorDataset(torch.randn(8, 3), torch.randint(2, (8,)))
before = random.getstate()
for mode in ("eval", "train"):
    problem = Problem(model, nn.CrossEntropyLoss(), DataLoader(data, batch_size=4), mode=mode)
    problem.context(), problem.loss(), problem.gradient(), Hessian(problem) @ torch.ones(problem.n)
GradientCovariance(problem.replace(mode="eval")) @ torch.ones(problem.n)
print(random.getstate() == before)
"""


def test_python_s_generator_is_left_alone_without_the_type_checker() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "True"


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_walking_a_loader_draws_from_no_generator_of_the_training(workers: int) -> None:
    model, shared = noisy_net(), torch.Generator().manual_seed(5)
    loader = DataLoader(dataset(), batch_size=4, num_workers=workers, generator=shared)
    problem = Problem(model, nn.CrossEntropyLoss(), loader)
    before, order = snapshot(model), shared.get_state()
    problem.gradient()
    Hessian(problem) @ torch.ones(problem.n)
    assert snapshot(model) == before
    assert torch.equal(shared.get_state(), order)


def test_walking_a_loader_without_a_generator_of_its_own_leaves_the_global_one() -> None:
    model = noisy_net()
    problem = Problem(model, nn.CrossEntropyLoss(), DataLoader(dataset(), batch_size=4))
    before = snapshot(model)
    problem.loss()
    assert snapshot(model) == before


@pytest.mark.slow
def test_an_epoch_under_way_on_persistent_workers_goes_on() -> None:
    data = dataset(12)
    loader = DataLoader(data, batch_size=2, num_workers=1, persistent_workers=True)
    problem = Problem(noisy_net(), nn.CrossEntropyLoss(), loader)
    seen = []
    for index, (inputs, _) in enumerate(loader):
        if index == 2:
            problem.loss()
        seen.append(inputs)
    assert torch.equal(torch.cat(seen), data.tensors[0])


class Fails(nn.Module):
    """Raises in the forward pass number ``at``, after the BatchNorm before it has run."""

    def __init__(self, error: type[BaseException]) -> None:
        super().__init__()
        self.error, self.calls, self.at = error, 0, 10**9

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls >= self.at:
            raise self.error("midway")
        return x


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("at", [1, 3, 5])
def test_a_probe_that_fails_midway_changes_nothing(error: type[BaseException], at: int) -> None:
    failing = Fails(error)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), failing, nn.Linear(4, 2))
    model(torch.randn(8, 3)).sum().backward()
    problem = Problem(model, nn.CrossEntropyLoss(), DataLoader(dataset(), batch_size=5), mode="train")
    before = snapshot(model)
    failing.calls, failing.at = 0, at
    with pytest.raises(error, match="midway"):
        Hessian(problem) @ torch.ones(problem.n)
    assert snapshot(model) == before
    failing.at = 10**9
    assert torch.isfinite(Hessian(problem) @ torch.ones(problem.n)).all()
    assert snapshot(model) == before


def test_a_loader_that_fails_midway_changes_nothing() -> None:
    class Breaks:
        def __iter__(self) -> Iterator[Any]:
            yield dataset()[:]
            torch.rand(1)
            raise OSError("disk")

    model = noisy_net()
    problem = Problem(model, nn.CrossEntropyLoss(), Breaks())
    before = snapshot(model)
    with pytest.raises((OSError, ValueError)):
        problem.loss()
    assert snapshot(model) == before


def test_hooks_on_parameters_do_not_fire() -> None:
    model, fired = noisy_net(), []
    for parameter in model.parameters():
        parameter.register_hook(lambda gradient: fired.append("gradient"))
        parameter.register_post_accumulate_grad_hook(lambda parameter: fired.append("accumulated"))
    problem = Problem(model, nn.CrossEntropyLoss(), [dataset()[:]])
    problem.gradient()
    Hessian(problem) @ torch.ones(problem.n)
    GradientCovariance(problem) @ torch.ones(problem.n)
    assert fired == []


@pytest.mark.parametrize("optimizer_type", [torch.optim.SGD, torch.optim.AdamW])
def test_training_between_probes_is_the_same_bit_for_bit(optimizer_type: type[torch.optim.Optimizer]) -> None:
    def train(*, probed: bool) -> list[Tensor]:
        torch.manual_seed(1)
        model, data = noisy_net(), dataset(16)
        optimizer = optimizer_type(model.parameters(), lr=0.05)
        problem = Problem(model, nn.CrossEntropyLoss(), DataLoader(dataset(), batch_size=4), mode="train")
        for inputs, targets in DataLoader(data, batch_size=4, shuffle=True):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs), targets)
            if probed:  # between forward and backward, the worst moment
                Hessian(problem) @ torch.ones(problem.n)
            loss.backward()
            if probed:
                problem.gradient()
            optimizer.step()
        state = [slot for slots in optimizer.state.values() for slot in slots.values() if isinstance(slot, Tensor)]
        return [*model.state_dict().values(), *state, torch.get_rng_state()]

    plain, probed = train(probed=False), train(probed=True)
    assert len(plain) == len(probed)
    assert all(torch.equal(a, b) for a, b in zip(plain, probed, strict=True))


@pytest.mark.parametrize("cast", [None, torch.float64])
@pytest.mark.parametrize("write", ["no_grad", "data", "permuted data", "load_state_dict", "replaced data"])
def test_a_problem_follows_every_way_of_writing_to_the_parameters(write: str, cast: torch.dtype | None) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    data = [dataset()[:]]
    problem = Problem(model, nn.CrossEntropyLoss(), data, dtype=cast)
    H = Hessian(problem)
    v = torch.randn(problem.n, dtype=problem.dtype)
    before = H @ v
    weight = model[2].weight
    if write == "no_grad":
        with torch.no_grad():
            weight.mul_(2.0)
    elif write == "data":
        weight.data.mul_(2.0)
    elif write == "permuted data":
        weight.data.copy_(weight.data[[1, 0]].clone())
    elif write == "load_state_dict":
        model.load_state_dict({name: 2 * value for name, value in model.state_dict().items()})
    else:
        weight.data = 2 * weight.data
    fresh = Problem(model, nn.CrossEntropyLoss(), data, dtype=cast)
    assert problem.loss() == fresh.loss()
    torch.testing.assert_close(H @ v, Hessian(fresh) @ v)
    assert not torch.allclose(H @ v, before, rtol=1e-3)
