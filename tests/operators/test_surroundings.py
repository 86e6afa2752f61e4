"""Contexts around a call change no product: no_grad, inference mode, autocast, vectors made inside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from families import BY_NAME
from operators.plain import relative
from theodolite.operators import (
    Fisher,
    GradientCovariance,
    Grouped,
    Hessian,
    InputHessian,
    Jacobian,
    LayerBlocks,
    PreconditionedHessian,
)
from theodolite.problem import Problem


def made() -> tuple[Problem, torch.optim.Optimizer]:
    model, batches = BY_NAME["mlp"].model_and_data()
    optimizer = torch.optim.Adam(model.parameters())
    F.cross_entropy(model(batches[0][0]), batches[0][1]).backward()
    optimizer.step()
    return BY_NAME["mlp"].problem_of(model, batches), optimizer


def results() -> dict[str, Callable[[], Tensor]]:
    """Each makes its operator and its vector where it is called."""
    problem, optimizer = made()

    def product(operator: Any) -> Tensor:
        return operator @ torch.linspace(-1, 1, operator.shape[1], dtype=torch.float64)

    def quadratic() -> Tensor:
        form = Fisher(problem, kind="mc").quadratic(torch.linspace(-1, 1, 79, dtype=torch.float64))
        return torch.tensor([form.value, form.stderr], dtype=torch.float64)

    return {
        "exact": lambda: product(Fisher(problem)),
        "sampled": lambda: product(Fisher(problem, kind="mc")),
        "empirical": lambda: product(Fisher(problem, kind="empirical")),
        "form": quadratic,
        "centred": lambda: product(GradientCovariance(problem, centered=True)),
        "jacobian": lambda: product(Jacobian(problem)),
        "transpose": lambda: product(Jacobian(problem).T),
        "classes": lambda: product(Grouped(problem)),
        "inputs": lambda: product(InputHessian(problem)),
        "layers": lambda: product(LayerBlocks(Hessian(problem))),
        "preconditioned": lambda: product(PreconditionedHessian(problem, optimizer)),
    }


@pytest.mark.parametrize("name", results())
def test_outer_contexts_do_not_matter(name: str) -> None:
    found = results()[name]
    expected = found()
    with torch.no_grad():
        assert relative(found(), expected) < 1e-12
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        inside = found()
    assert relative(inside.clone(), expected) < 1e-12
