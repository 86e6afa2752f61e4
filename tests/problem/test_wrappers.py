"""What a compiled or wrapped model is surveyed as: itself, to the last entry of the record."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from theodolite.measures import spectrum
from theodolite.problem import Problem


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()


def data() -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 3, generator=g, dtype=torch.float64), torch.arange(8) % 2) for _ in range(3)]


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "data parallel": nn.DataParallel,
    "compiled data parallel": lambda model: torch.compile(nn.DataParallel(model), backend="eager"),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_the_record_is_that_of_the_plain_model(wrapper: str) -> None:
    wrapped = WRAPPERS[wrapper](net())
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # what the compiler says is not ours
        wrapped(data()[0][0])
    problems = [Problem(model, nn.CrossEntropyLoss(), data(), engine="retained") for model in (wrapped, net())]
    assert problems[0].digest() == problems[1].digest()
    found, expected = (spectrum(problem, k=3) for problem in problems)
    assert np.array_equal(found.eigenvalues, expected.eigenvalues)
    assert np.array_equal(found.eigenvectors, expected.eigenvectors)
    assert found.parameters == expected.parameters
    assert found.context == expected.context
    assert found.cost.products == expected.cost.products
