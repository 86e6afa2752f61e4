"""Half precision, a memory cap, and tensors that still require grad."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from families import BY_NAME
from theodolite.landscapes import line, plane
from theodolite.measures import density, gradients, spectrum, trace
from theodolite.problem import Problem
from theodolite.records import Record, differences

MEASURES: dict[str, Callable[..., Record]] = {
    "spectrum": lambda problem: spectrum(problem, k=1, tol=0.1),
    "gradients": gradients,
    "trace": lambda problem: trace(problem, probes=4),
    "hutch++": lambda problem: trace(problem, probes=6, method="hutch++"),
    "density": lambda problem: density(problem, probes=2, steps=5),
    "line": lambda problem: line(problem, points=3),
    "plane": lambda problem: plane(problem, points=3),
}


@pytest.mark.filterwarnings("ignore::theodolite.errors.NotConvergedWarning")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", MEASURES)
def test_half_precision_models_give_readings(name: str, dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(40, 4, generator=g), torch.randint(3, (40,), generator=g)

    def problem(dtype: torch.dtype) -> Problem:
        torch.manual_seed(0)
        model = nn.Linear(4, 3).bfloat16().to(dtype)
        pieces = zip(inputs.bfloat16().to(dtype).split(20), targets.split(20), strict=True)
        return Problem(model, nn.CrossEntropyLoss(), list(pieces))

    half, exact = MEASURES[name](problem(dtype)), MEASURES[name](problem(torch.float64))
    assert main_number(half) == pytest.approx(main_number(exact), rel=0.1)


def main_number(record: Any) -> float:
    names = {"spectrum": "max", "gradients": "norm", "trace": "value"}
    if record.kind == "density":
        return float(record.trace.value)
    return float(record.losses.flat[0] if record.kind in ("line", "plane") else getattr(record, names[record.kind]))


@pytest.mark.parametrize("name", MEASURES)
def test_no_number_is_taken_from_a_tensor_that_requires_grad(name: str) -> None:
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            MEASURES[name](BY_NAME["mlp"].problem(engine="retained"))
    finally:
        torch.set_warn_always(False)


class Held(TorchDispatchMode):
    """Bytes of the storages that live tensors keep."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: Any = WeakIdKeyDictionary()
        self.peak = self.last = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.storages[tensor.untyped_storage()] = tensor.untyped_storage().nbytes()
        self.last = sum(self.storages.values())
        self.peak = max(self.peak, self.last)
        return result


@pytest.mark.parametrize(("cap", "held"), [(45, 40), (10, 10)])
def test_gradients_stay_within_their_memory_cap(cap: int, held: int) -> None:
    model = nn.Linear(500, 40, bias=False)
    size = 500 * 40 * 4
    batches = [(torch.randn(2, 500), torch.randint(40, (2,))) for _ in range(40)]
    problem = Problem(model, nn.CrossEntropyLoss(), batches, memory=cap * size)
    problem.ensure_checked()
    with Held() as memory:
        record = gradients(problem)
    # Beside what is held: the sum, the chunk under way with its parts, the gradient itself.
    assert memory.peak < (held + 6) * size
    assert memory.peak > held * size
    assert memory.last < (held if cap > 40 else 0) * size + 5 * size
    assert np.isfinite(record.norm_stderr) == (cap > 40)


def test_two_measurements_of_one_problem_and_seed_differ_in_cost_alone() -> None:
    problem = BY_NAME["mlp"].problem()
    for measure in (density, lambda problem: spectrum(problem, k=1), trace):
        first, second = measure(problem), measure(problem)
        different = differences(first, second, ignore={"cost"})
        way = {record.context["blocks"] for record in (first, second) if "blocks" in record.context}
        assert all(word in ("vmap", "loop") for word in way)
        # Which way is faster may change with the load of the machine, and rounding with it.
        assert len(way) > 1 or not different


def test_hutchpp_counts_the_samples_of_its_remainder() -> None:
    problem = BY_NAME["convnet"].problem()
    found = trace(problem, probes=30, method="hutch++")
    assert found.probes == 10
    assert found.cost.products == 30
    assert found.estimate.degrees == 9
    exact = trace(BY_NAME["mlp-squared"].problem(params="4.bias"), probes=9, method="hutch++", seed=1)
    assert (exact.probes, exact.stderr) == (0, 0.0)
    assert exact.estimate.interval() == (exact.value, exact.value)
