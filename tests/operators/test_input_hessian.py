"""The input Hessian equals second derivatives of the mean loss in all inputs at once."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from families import BY_NAME, FAMILIES, Family, merged
from operators.plain import relative
from theodolite.errors import DerivativeError, NonFiniteError, OperatorError
from theodolite.operators import Hessian, InputHessian
from theodolite.problem import Problem

EXACT = 1e-10
WITH_INPUTS = [
    family for family in FAMILIES if family.criterion is not None and family.name not in ("transformer", "convnet")
]


def dense_oracle(model: nn.Module, criterion: Any, x: Tensor, y: Tensor) -> Tensor:
    model, criterion = copy.deepcopy(model).eval(), copy.deepcopy(criterion).double()
    return torch.autograd.functional.hessian(lambda flat: criterion(model(flat.reshape(x.shape)), y), x.reshape(-1))


@pytest.mark.parametrize("family", WITH_INPUTS, ids=lambda family: family.name)
def test_it_equals_the_dense_oracle_and_has_one_block_a_sample(family: Family) -> None:
    model, batches = family.model_and_data()
    (x, y), *_ = merged(batches)
    expected = dense_oracle(model, family.criterion, x, y)
    H = InputHessian(family.problem_of(model, batches))
    dense = H.dense()
    assert relative(dense, expected) < EXACT
    size = x[0].numel()
    assert H.sizes == [size] * 3
    blocks = torch.block_diag(*[dense[i * size : (i + 1) * size, i * size : (i + 1) * size] for i in range(17)])
    assert torch.equal(dense, blocks)
    for other in (
        family.problem_of(model, batches, microbatch=2),
        family.problem_of(model, batches, memory=1),
        family.problem_of(model, batches, engine="vmap"),
    ):
        assert relative(InputHessian(other).dense(), expected) < EXACT


def test_images_through_normalised_convolutions() -> None:
    model, batches = BY_NAME["convnet"].model_and_data()
    (x, y) = batches[2]
    H = InputHessian(BY_NAME["convnet"].problem_of(model, batches[2:]))
    assert H.shape == (75, 75)
    assert relative(H.dense(), dense_oracle(model, nn.CrossEntropyLoss(), x, y)) < EXACT


def test_several_inputs_lie_side_by_side_in_each_sample() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 2)

        def forward(self, a: Tensor, mask: Tensor, b: Tensor) -> Tensor:
            return self.layer(torch.tanh(torch.cat([a, b.flatten(1)], dim=1)) * mask)

    model = Two().double()
    a, b = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 2, 1, dtype=torch.float64)
    mask, y = torch.ones(1, 5, dtype=torch.float64), torch.randint(2, (4,))  # shared by the samples: no input of theirs
    both = torch.cat([a, b.flatten(1)], dim=1)
    expected = torch.autograd.functional.hessian(
        lambda flat: nn.functional.cross_entropy(model(flat.view(4, 5)[:, :3], mask, flat.view(4, 5)[:, 3:, None]), y),
        both.reshape(-1),
    )
    assert relative(InputHessian(Problem(model, nn.CrossEntropyLoss(), [((a, mask, b), y)])).dense(), expected) < EXACT


def test_batch_statistics_couple_samples() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)).double()
    x, y = torch.randn(5, 3, dtype=torch.float64), torch.randint(2, (5,))
    H = InputHessian(Problem(model, nn.CrossEntropyLoss(), [(x, y)], mode="train")).dense()
    expected = torch.autograd.functional.hessian(
        lambda flat: nn.functional.cross_entropy(copy.deepcopy(model).train()(flat.view(5, 3)), y), x.reshape(-1)
    )
    assert relative(H, expected) < EXACT
    assert float(H[:3, 3:].norm()) > 1e-3 * float(H.norm())


def test_a_piecewise_linear_network_curves_in_its_criterion_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1)).double()
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 1, dtype=torch.float64)
    H = InputHessian(Problem(model, nn.MSELoss(), [(x, y)])).dense()
    slopes = torch.autograd.functional.jacobian(lambda inputs: model(inputs).sum(), x)
    expected = torch.block_diag(*[2 / 6 * torch.outer(slope, slope) for slope in slopes])
    assert relative(H, expected) < EXACT


def once(*, before: bool = False) -> Problem:
    """A cube that hides its input from the second derivative, after the first layer or before it."""

    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.hidden = x.detach()
            return x**3

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return gradient * 3 * ctx.hidden**2

    class Cube(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Once.apply(x)

    layers = [nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)]
    layers.insert(0 if before else 1, Cube())
    model = nn.Sequential(*layers).double()
    x = torch.randn(8, 3, dtype=torch.float64)
    return Problem(model, nn.CrossEntropyLoss(), [(x, torch.randint(2, (8,)))])


def test_what_has_no_input_hessian_is_refused() -> None:
    with pytest.raises(
        OperatorError, match=r"found torch.int64 of shape \(7, 5\).*derivative in tokens.*inputs_embeds"
    ):
        InputHessian(BY_NAME["transformer"].problem())
    with pytest.raises(
        OperatorError, match=r"batches of \(inputs, targets\), found a problem made by Problem.from_loss"
    ):
        InputHessian(BY_NAME["from-loss"].problem())
    for before in (False, True):  # upstream of all parameters their own certificate sees nothing
        with pytest.raises(DerivativeError, match=r"finite differences of the gradient.*Once.*Use mode='eval', or the"):
            InputHessian(once(before=before)) @ torch.ones(24, dtype=torch.float64)
    Hessian(once(before=True)) @ torch.ones(26, dtype=torch.float64)
    model = nn.Linear(3, 2)
    bad = InputHessian(Problem(model, nn.CrossEntropyLoss(), [(torch.full((8, 3), torch.nan), torch.randint(2, (8,)))]))
    with pytest.raises(NonFiniteError, match="finite loss"):
        bad @ torch.ones(24)
    with pytest.raises(OperatorError, match=r"Leaving chunks out in turn"):
        InputHessian(BY_NAME["mlp"].problem()).by_chunk(torch.ones(85, 1, dtype=torch.float64))


def test_the_certificate_is_of_the_inputs() -> None:
    problem = BY_NAME["mlp"].problem()
    operator = InputHessian(problem)
    assert operator.certificate is None
    operator @ torch.ones(operator.shape[0], dtype=torch.float64)
    found = operator.certificate
    assert found is not None
    assert found.symmetry < 1e-12
    assert found.difference < 1e-3
    assert found.dtype == "float64"
    assert not problem.certificates  # that in the parameters is not made


def test_a_preprocessing_without_a_second_derivative_is_named() -> None:
    class Rounded(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x**2

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return 2 * ctx.saved_tensors[0] * gradient

    class First(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Rounded.apply(x)

    model = nn.Sequential(First(), nn.Linear(3, 2)).double()
    data = (torch.randn(8, 3, dtype=torch.float64), torch.randint(2, (8,)))
    with pytest.raises(DerivativeError, match=r"twice differentiable|finite differences"):
        InputHessian(Problem(model, nn.CrossEntropyLoss(), [data])) @ torch.ones(24, dtype=torch.float64)
