"""K-FAC is exact where theory says so, EKFAC is never further from the block, and both solve systems faster as preconditioners."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from families import BY_NAME, features, labels
from theodolite.errors import OperatorError
from theodolite.linalg import Dense, cg
from theodolite.operators import GGN, GradientCovariance
from theodolite.operators.blockwise import BlockwiseCurvature
from theodolite.operators.kfac import EKFAC, KFAC
from theodolite.problem import Problem

EXACT = 1e-10
families_and_sharing = pytest.mark.parametrize(
    ("family", "sharing"),
    [
        (BY_NAME[name], sharing)
        for name, sharing in (
            ("mlp-weighted", "expand"),
            ("convnet", "expand"),
            ("convnet", "reduce"),
            ("transformer", "reduce"),
            ("lstm", "expand"),
            ("frozen", "expand"),
        )
    ],
    ids=lambda value: getattr(value, "name", value),
)
both = pytest.mark.parametrize("approximation", [KFAC, EKFAC])


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def layer_error(approximation: Tensor, dense: Tensor, problem: Problem, layer: str) -> float:
    where = problem.layout.layer_slices[layer]
    return relative(approximation[where, where], dense[where, where])


@cache
def dense_ggn(name: str) -> Tensor:
    return GGN(BY_NAME[name].problem()).dense()


def double(model: nn.Module) -> nn.Module:
    torch.manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.reset_parameters()
    return model.double()


# ------------------------------------------------------------------------------------------------------ exact statements


@both
@pytest.mark.parametrize("kind", ["exact", "empirical"])
def test_exact_for_one_data_point(approximation: Any, kind: str) -> None:
    """One sample has one outer product of inputs, so that every block is a Kronecker product."""
    model, batches = BY_NAME["mlp"].model_and_data()
    inputs, targets = batches[0]
    problem = Problem(model, nn.CrossEntropyLoss(), [(inputs[:1], targets[:1])])
    dense = (GGN if kind == "exact" else GradientCovariance)(problem).dense()
    found = approximation(problem, kind=kind).dense()
    for layer in problem.layout.layers:
        assert layer_error(found, dense, problem, layer) < EXACT


@both
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_exact_for_a_deep_linear_network_under_squared_error(approximation: Any, reduction: str) -> None:
    model = double(nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 6), nn.Linear(6, 3)))
    problem = Problem(
        model,
        nn.MSELoss(reduction=reduction),
        list(zip(features((7, 7, 3), 5), features((7, 7, 3), 3, seed=4), strict=True)),
    )
    dense, found = GGN(problem).dense(), approximation(problem).dense()
    for layer in problem.layout.layers:
        assert layer_error(found, dense, problem, layer) < EXACT


class PositionWise(nn.Module):
    """A deep linear network on every position of a sequence, with a mean over positions before the loss or without."""

    def __init__(self, *, pooled: bool) -> None:
        super().__init__()
        self.first, self.second, self.pooled = nn.Linear(3, 4), nn.Linear(4, 2), pooled

    def forward(self, x: Tensor) -> Tensor:
        h = self.second(self.first(x))
        return h.mean(1) if self.pooled else h


@both
@pytest.mark.parametrize("pooled", [False, True])
def test_each_way_of_sharing_is_exact_where_it_belongs(approximation: Any, pooled: bool) -> None:
    """Eschenhagen et al. (2023): expand where the loss sums over positions, reduce where they are averaged before it."""
    model = double(PositionWise(pooled=pooled))
    targets = features((6, 4), 2, seed=4) if pooled else features((6, 4), 5, 2, seed=4)
    problem = Problem(model, nn.MSELoss(), list(zip(features((6, 4), 5, 3), targets, strict=True)))
    dense = GGN(problem).dense()
    right, wrong = ("reduce", "expand") if pooled else ("expand", "reduce")
    for layer in problem.layout.layers:
        assert layer_error(approximation(problem, sharing=right).dense(), dense, problem, layer) < EXACT
        if approximation is KFAC:
            assert layer_error(approximation(problem, sharing=wrong).dense(), dense, problem, layer) > 0.05


class LinearConvolution(nn.Module):
    """A convolution and a mean over the image: linear, so that reduce is exact."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).mean((2, 3))


@both
def test_convolutions_are_matrices_on_unfolded_inputs(approximation: Any) -> None:
    problem = Problem(
        double(LinearConvolution()), nn.MSELoss(), [(features((6,), 2, 5, 5)[0], features((6,), 3, seed=4)[0])]
    )
    found = approximation(problem, sharing="reduce")
    assert found.forms == {"conv.weight": "Kronecker with conv.bias", "conv.bias": "Kronecker with conv.weight"}
    assert relative(found.dense(), GGN(problem).dense()) < EXACT


# --------------------------------------------------------------------------------------------- EKFAC against the dense GGN


@families_and_sharing
def test_ekfac_is_the_nearest_in_its_eigenbasis(family: Any, sharing: str) -> None:
    """It is no further from any block than K-FAC, has the block's trace, and its eigenvalues are the rotated diagonal."""
    problem, dense = family.problem(), dense_ggn(family.name)
    kfac, ekfac = (approximation(problem, sharing=sharing) for approximation in (KFAC, EKFAC))
    assert ekfac.trace() == pytest.approx(float(dense.trace()), rel=1e-10)
    for index, old, block in zip(kfac.blocks.indices, kfac.blocks.blocks, ekfac.blocks.blocks, strict=True):
        truth = dense[index[:, None], index]
        errors = [float((approximation.dense() - truth).norm()) for approximation in (old, block)]
        assert errors[1] <= errors[0] * (1 + 1e-9) + 1e-12 * float(truth.norm())
        U = torch.eye(block.values.shape[0], dtype=torch.float64) if block.left is None else block.left
        V = torch.eye(block.values.shape[1], dtype=torch.float64) if block.right is None else block.right
        rotation = torch.kron(U, V)
        rotated = rotation.T @ truth @ rotation
        assert float((rotated.diagonal() - block.values.reshape(-1)).norm()) <= EXACT * float(dense.norm())


# ----------------------------------------------------------------------------------------- what is covered, and how it is said


def test_every_parameter_says_how_it_is_represented() -> None:
    forms = KFAC(BY_NAME["transformer"].problem()).forms
    assert forms["embedding.weight"] == "exact block"  # tied to the head: no Kronecker product
    assert forms["norm.weight"] == forms["norm.bias"] == "exact block"
    assert forms["qkv.weight"] == "Kronecker with qkv.bias"
    assert forms["attention.in_proj_weight"] == "Kronecker with attention.in_proj_bias"
    assert forms["attention.out_proj.weight"] == "Kronecker with attention.out_proj.bias"
    assert KFAC(BY_NAME["frozen"].problem()).forms["0.bias"] == "exact block"


class Tied(nn.Module):
    """One weight applied twice, with other biases."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.two(torch.tanh(self.one(x)))))


@both
def test_a_tied_weight_has_the_positions_of_all_its_uses(approximation: Any) -> None:
    problem = Problem(double(Tied()), nn.CrossEntropyLoss(), [(features((8,), 4)[0], labels((8,), 2)[0])])
    found = approximation(problem)
    assert found.forms["one.weight"] == "Kronecker"
    assert found.forms["one.bias"] == found.forms["two.bias"] == "exact block"
    dense, where = GGN(problem).dense(), problem.layout.slices["one.weight"]
    assert layer_error(found.dense(), dense, problem, "two") < EXACT
    if approximation is EKFAC:
        block = found.dense()[where, where]
        assert float(block.trace()) == pytest.approx(float(dense[where, where].trace()), rel=1e-10)


class InputsFirst(nn.Module):
    """Weights of shape (inputs, outputs), as GPT-2 has them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(5, 4)), nn.Parameter(torch.randn(4))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.addmm(self.bias, x, self.weight))


@both
def test_weights_with_inputs_first_are_factored_too(approximation: Any) -> None:
    """Exact, because the network is linear."""
    problem = Problem(double(InputsFirst()), nn.MSELoss(), [(features((8,), 5)[0], features((8,), 3, seed=4)[0])])
    found, dense = approximation(problem), GGN(problem).dense()
    assert found.forms["weight"] == "Kronecker with bias"
    first = slice(0, 24)
    assert relative(found.dense()[first, first], dense[first, first]) < EXACT


def test_parameters_without_gradient_and_large_tables_have_exact_blocks() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.idle, self.head = nn.Embedding(200, 3), nn.Linear(2, 2), nn.Linear(3, 2)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.table(tokens).mean(1))

    batch = labels((6,), 200, 4)[0], labels((6,), 2)[0]
    problem = Problem(Table().double(), nn.CrossEntropyLoss(), [batch])
    found, dense = KFAC(problem), GGN(problem).dense()
    where = problem.layout.slices["table.weight"]
    assert found.forms["table.weight"] == "exact diagonal"
    assert relative(found.diagonal()[where], dense.diagonal()[where]) < EXACT
    idle = problem.layout.layer_slices["idle"]
    assert not bool(found.diagonal()[idle].any())


# ------------------------------------------------------------------------------------------------- functions, use in CG, errors


@both
def test_functions_are_those_of_the_dense_approximation(approximation: Any) -> None:
    found: BlockwiseCurvature = approximation(BY_NAME["mlp"].problem())
    dense, n = found.dense(), found.shape[0]
    eye = torch.eye(n, dtype=torch.float64)
    assert relative(dense, dense.T) < EXACT
    assert relative(found.inverse(damping=1e-2).dense(), torch.linalg.inv(dense + 1e-2 * eye)) < EXACT
    root = found.power(-0.5, damping=1e-2).dense()
    assert relative(root @ root @ (dense + 1e-2 * eye), eye) < EXACT
    assert found.logdet(damping=1e-2) == pytest.approx(float(torch.logdet(dense + 1e-2 * eye)), rel=1e-10)
    assert relative(found.eigenvalues(), torch.linalg.eigvalsh(dense)) < EXACT
    assert relative(found.diagonal(), dense.diagonal()) < EXACT
    assert found.trace() == pytest.approx(float(dense.trace()), rel=1e-10)


def trained() -> Problem:
    """A classifier after 60 steps of Adam with many more outputs than parameters, and inputs of unequal size."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 4)).double()
    inputs = features((600,), 8)[0] * torch.logspace(-2, 0.5, 8)
    targets = (inputs @ features((8,), 4, seed=9)[0] + features((600,), 4, seed=5)[0]).argmax(1)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimiser.step()
    return Problem(model, nn.CrossEntropyLoss(), [(inputs, targets)])


def test_as_a_preconditioner_it_saves_products() -> None:
    problem, damping = trained(), 1e-6
    A, b = Dense(GGN(problem).dense(), symmetric=True).shift(damping), problem.gradient()
    plain = cg(A, b, tol=1e-6)
    assert bool(plain.converged)
    for approximation in (KFAC, EKFAC):
        solution = cg(A, b, tol=1e-6, preconditioner=approximation(problem).inverse(damping=damping))
        assert bool(solution.converged)
        assert relative(solution.x, plain.x) < 0.05
        assert solution.products < 0.6 * plain.products, (approximation, solution.products, plain.products)


def test_monte_carlo_tends_to_the_exact_one() -> None:
    problem = BY_NAME["mlp"].problem()
    exact = KFAC(problem).dense()
    few, many = (relative(KFAC(problem, kind="mc", draws=draws).dense(), exact) for draws in (1, 40))
    assert many < 0.15
    assert many < 0.6 * few


def test_refusals_show_the_scene() -> None:
    problem = BY_NAME["mlp"].problem()
    with pytest.raises(OperatorError, match="'expand' or 'reduce', found 'both'"):
        KFAC(problem, sharing="both")
    with pytest.raises(OperatorError, match="the model's outputs"):
        KFAC(BY_NAME["from-loss"].problem())
    linear = Problem(problem.model, lambda out, y: out.mean(), list(problem.batches))
    with pytest.raises(OperatorError, match="linear in them"):
        KFAC(linear)


def test_a_loss_function_has_an_empirical_fisher() -> None:
    found = EKFAC(BY_NAME["from-loss"].problem(), kind="empirical")
    assert found.trace() == pytest.approx(
        float(GradientCovariance(BY_NAME["from-loss"].problem()).dense().trace()), rel=1e-10
    )


class Switching(nn.Module):
    """Applies its weight to one batch as it is, and to others transposed or without its bias."""

    def __init__(self, *, how: str) -> None:
        super().__init__()
        self.first, self.head, self.how = nn.Linear(5, 5), nn.Linear(5, 3), how

    def forward(self, x: Tensor) -> Tensor:
        if len(x) == 7:
            h = self.first(x)
        elif self.how == "bias apart":
            h = F.linear(x, self.first.weight) * self.first.bias
        elif self.how == "matmul":
            h = x @ self.first.weight + self.first.bias
        else:
            h = F.linear(x, self.first.weight.T, self.first.bias)
        return self.head(torch.tanh(h))


@pytest.mark.parametrize("how", ["bias apart", "matmul", "transposed"])
def test_a_weight_that_changes_its_role_is_refused(how: str) -> None:
    batches = list(zip(features((7, 3), 5), labels((7, 3), 3), strict=True))
    with pytest.raises(OperatorError, match=r"Expected first\.weight to be applied in the same way"):
        KFAC(Problem(double(Switching(how=how)), nn.CrossEntropyLoss(), batches))
