"""The Jacobian equals rows of plain gradients, its transpose is its adjoint, and it makes the GGN."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from families import BY_NAME, FAMILIES, Family, merged
from operators.oracles import outputs_and_jacobian
from operators.plain import relative
from theodolite.errors import OperatorError
from theodolite.operators import GGN, Jacobian
from theodolite.problem import Problem

EXACT = 1e-10
criterion_families = pytest.mark.parametrize(
    "family", [family for family in FAMILIES if family.criterion is not None], ids=lambda family: family.name
)


@criterion_families
def test_the_jacobian_and_its_transpose_are_exact_and_adjoint(family: Family) -> None:
    z, expected, _ = outputs_and_jacobian(family)
    J = Jacobian(family.problem())
    assert J.shape == expected.shape == (z.numel(), J.problem.n)
    assert relative(J.dense(), expected) < EXACT
    assert J.T.shape == expected.T.shape
    assert relative(J.T.dense(), expected.T) < EXACT
    u, v = torch.randn(J.shape[0], dtype=torch.float64), torch.randn(J.shape[1], dtype=torch.float64)
    assert float(u @ (J @ v)) == pytest.approx(float((J.T @ u) @ v), rel=1e-12)
    assert J.T.T is J


@criterion_families
def test_it_makes_the_ggn(family: Family) -> None:
    problem = family.problem()
    z, _, targets = outputs_and_jacobian(family)
    criterion = copy.deepcopy(family.criterion)
    assert isinstance(criterion, nn.Module)
    criterion = criterion.double()
    curvature = torch.autograd.functional.hessian(lambda out: criterion(out.reshape(z.shape), targets), z.reshape(-1))
    J, V = Jacobian(problem), torch.randn(problem.n, 3, dtype=torch.float64)
    assert relative(J.T @ (curvature @ (J @ V)), GGN(problem) @ V) < EXACT


@pytest.mark.parametrize("name", ["mlp", "convnet", "lstm"])
def test_batches_microbatches_and_memory_do_not_change_it(name: str) -> None:
    family = BY_NAME[name]
    model, batches = family.model_and_data()
    reference = Jacobian(family.problem_of(model, batches)).dense()
    for other in (
        family.problem_of(model, merged(batches)),
        family.problem_of(model, batches, microbatch=2),
        family.problem_of(model, batches, memory=1),
        family.problem_of(model, batches, engine="vmap"),
    ):
        J = Jacobian(other)
        assert relative(J.dense(), reference) < EXACT
        assert relative(J.T.dense(), reference.T) < EXACT


def test_a_block_is_a_set_of_columns_and_products_are_counted() -> None:
    J = Jacobian(BY_NAME["mlp"].problem())
    assert relative(J.block("2.*").dense(), J.dense()[:, 36:64]) < 1e-12
    before = J.cost.products
    J @ torch.ones(79, 2, dtype=torch.float64)
    J.T @ torch.ones(51, dtype=torch.float64)
    assert J.cost.products - before == 3
    assert J.gradients == pytest.approx(1.0)  # one graph serves both directions


def test_it_follows_the_parameters() -> None:
    model, batches = BY_NAME["mlp"].model_and_data()
    J = Jacobian(BY_NAME["mlp"].problem_of(model, batches))
    before = J.dense()
    with torch.no_grad():
        model[0].weight.mul_(1.5)
    assert relative(J.dense(), before) > 1e-3
    assert relative(J.T.dense(), Jacobian(BY_NAME["mlp"].problem_of(model, batches)).dense().T) < EXACT


def test_outputs_that_no_parameter_reaches_have_zero_rows() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.layer(x), x[:, :1]], dim=1)

    problem = Problem(Half(), nn.MSELoss(), [(torch.randn(5, 3), torch.randn(5, 2))])
    dense = Jacobian(problem).dense()
    assert torch.count_nonzero(dense[1::2]) == 0
    assert torch.equal(dense[0::2, 3], torch.ones(5))


def test_what_it_has_not_is_refused() -> None:
    with pytest.raises(OperatorError, match=r"Problem.from_loss.*Use Problem\(model, criterion, batches\)"):
        Jacobian(BY_NAME["from-loss"].problem())
    J = Jacobian(BY_NAME["mlp"].problem())
    with pytest.raises(OperatorError, match=r"sums over them, found <Jacobian: 51×79.*Use the Hessian or the GGN"):
        J.by_chunk(torch.ones(79, 1, dtype=torch.float64))
    with pytest.raises(OperatorError, match=r"multiplies vectors of shape \(51,\)"):
        J.T @ torch.ones(79, dtype=torch.float64)
