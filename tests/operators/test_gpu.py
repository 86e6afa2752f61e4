"""On an accelerator: the same operators, the same start vectors, an undisturbed random state."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch

from families import BY_NAME, FAMILIES, Family
from theodolite.linalg import LinearOperator
from theodolite.measures import spectrum
from theodolite.operators import (
    GGN,
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

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator")]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_operators_equal_those_of_the_processor(family: Family) -> None:
    model, batches = family.model_and_data()
    expected = Hessian(family.problem_of(model, batches)).dense()
    model, batches = family.model_and_data()
    found = Hessian(family.problem_of(model.cuda(), batches)).dense().cpu()
    assert float((found - expected).norm() / expected.norm()) < 1e-10


OPERATORS: dict[str, Callable[[Problem], LinearOperator]] = {
    "exact": Fisher,
    "sampled": lambda problem: Fisher(problem, kind="mc", draws=3),  # the same draws on every device
    "empirical": lambda problem: Fisher(problem, kind="empirical"),
    "centred": lambda problem: GradientCovariance(problem, centered=True),
    "jacobian": Jacobian,
    "transpose": lambda problem: Jacobian(problem).T,
    "classes": Grouped,
    "inputs": InputHessian,
    "layers": lambda problem: LayerBlocks(Hessian(problem)),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_other_operators_equal_those_of_the_processor(name: str) -> None:
    family = BY_NAME["mlp"]
    model, batches = family.model_and_data()
    expected = OPERATORS[name](family.problem_of(model, batches)).dense()
    found = OPERATORS[name](family.problem_of(copy.deepcopy(model).cuda(), batches)).dense().cpu()
    assert float((found - expected).norm() / expected.norm()) < 1e-10


def test_live_preconditioners_equal_those_of_the_processor() -> None:
    family = BY_NAME["mlp"]
    dense = []
    for device in ("cpu", "cuda"):
        model, batches = family.model_and_data()
        model.to(device)
        matrices = [parameter for parameter in model.parameters() if parameter.dim() == 2]
        others = [parameter for parameter in model.parameters() if parameter.dim() != 2]
        optimizers = [torch.optim.Muon(matrices), torch.optim.AdamW(others)]
        x, y = batches[0]
        torch.nn.functional.cross_entropy(model(x.to(device)), y.to(device)).backward()
        before = copy.deepcopy(model.state_dict())
        for optimizer in optimizers:
            optimizer.step()
        model.load_state_dict(before)  # steps in bfloat16 differ from device to device
        dense.append(PreconditionedHessian(family.problem_of(model, batches), optimizers).dense().cpu())
    assert float((dense[1] - dense[0]).norm() / dense[0].norm()) < 1e-8


def test_spectrum_equals_that_of_the_processor_and_disturbs_nothing() -> None:
    family = BY_NAME["convnet"]
    expected = spectrum(family.problem(), k=3, tol=1e-9)
    model, batches = family.model_and_data()
    state = torch.cuda.get_rng_state()
    found = spectrum(family.problem_of(model.cuda(), batches), k=3, tol=1e-9)
    assert torch.equal(torch.cuda.get_rng_state(), state)
    np.testing.assert_allclose(found.eigenvalues, expected.eigenvalues, rtol=1e-8)
    assert found.context["device"] == "cuda:0"


def test_full_precision_holds_while_the_user_allows_less() -> None:
    family = BY_NAME["mlp"]
    model, batches = family.model_and_data()
    model, batches = model.float().cuda(), [(inputs.float(), targets) for inputs, targets in batches]
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        loose = GGN(family.problem_of(model, batches)).dense().double().cpu()
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.backends.cuda.matmul.fp32_precision = "ieee"
    exact = GGN(family.problem_of(model.double(), batches)).dense().cpu()
    assert float((loose - exact).norm() / exact.norm()) < 1e-5
