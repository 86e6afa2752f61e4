"""Exact diagonals and blocks equal those of the dense GGN and gradient covariance, over families of models and losses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from families import BY_NAME, FAMILIES, Family, features, labels
from theodolite.errors import CostWarning, OperatorError
from theodolite.operators import EKFAC, GGN, KFAC, GradientCovariance
from theodolite.operators.cotangents import curvature_roots, sampled_roots
from theodolite.operators.diagonal import GGNBlocks, GGNDiagonal, ggn_diagonal
from theodolite.problem import Problem
from theodolite.problem.criteria import recognise

EXACT = 1e-10
all_families = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
criterion_families = pytest.mark.parametrize(
    "family", [family for family in FAMILIES if family.criterion is not None], ids=lambda family: family.name
)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def masked(dense: Tensor, problem: Problem) -> Tensor:
    """The diagonal blocks of the layers, zero elsewhere."""
    kept = torch.zeros_like(dense)
    for where in problem.layout.layer_slices.values():
        kept[where, where] = dense[where, where]
    return kept


@criterion_families
def test_diagonal_and_blocks_are_those_of_the_dense_ggn(family: Family) -> None:
    problem = family.problem()
    dense = GGN(problem).dense()
    assert relative(ggn_diagonal(problem), dense.diagonal()) < EXACT
    assert relative(GGNBlocks(problem).dense(), masked(dense, problem)) < EXACT


@all_families
def test_empirical_diagonal_and_blocks_are_those_of_the_dense_gradient_covariance(family: Family) -> None:
    problem = family.problem()
    dense = GradientCovariance(problem).dense()
    assert relative(ggn_diagonal(problem, kind="empirical"), dense.diagonal()) < EXACT
    assert relative(GGNBlocks(problem, kind="empirical").dense(), masked(dense, problem)) < EXACT


@pytest.mark.parametrize(
    ("criterion", "targets"),
    [
        (nn.BCEWithLogitsLoss(pos_weight=torch.tensor([0.5, 2.0, 1.0])), lambda: torch.rand(9, 3)),
        (nn.HuberLoss(delta=10.0), lambda: torch.randn(9, 3)),
        (nn.PoissonNLLLoss(), lambda: torch.rand(9, 3)),
        (nn.CrossEntropyLoss(), lambda: torch.rand(9, 3).softmax(1)),
        (lambda out, y: ((out.sum(1) - y.sum(1)) ** 2 + 0.1 * out.logsumexp(1)).mean(), lambda: torch.randn(9, 3)),
    ],
    ids=["bce", "huber", "poisson", "soft targets", "own"],
)
def test_any_convex_criterion_has_an_exact_diagonal(criterion: object, targets: object) -> None:
    model, _ = BY_NAME["mlp"].model_and_data()
    batches = [(features((9,), 5)[0], targets().double())]
    problem = Problem(model, criterion, batches)
    assert relative(ggn_diagonal(problem), GGN(problem).dense().diagonal()) < EXACT


@pytest.mark.parametrize("name", ["mlp-weighted", "mlp-squared", "own"])
def test_random_roots_have_the_curvature_for_covariance(name: str) -> None:
    """Over 40,000 samples with the same outputs, every entry within five standard errors."""
    g, draws = torch.Generator().manual_seed(0), 40_000
    logits = torch.tensor([[0.3, -1.2, 1.0]], dtype=torch.float64).expand(draws, 3)
    if name == "own":
        loss, targets = recognise(lambda out, y: (out.sum(1).square() + out.logsumexp(1)).mean()), logits
    else:
        loss = recognise(BY_NAME[name].criterion)
        targets = torch.full((draws,), 2) if name == "mlp-weighted" else logits
    u = sampled_roots(loss, logits, targets, generator=g, memory=2**30)
    exact = torch.stack([loss.curvature(logits[:2], targets[:2])(torch.eye(3).double()[[i, i]])[0] for i in range(3)])
    products = u[:, :, None] * u[:, None]
    error = products.std(0) / draws**0.5
    assert float(((products.mean(0) - exact).abs() / error.clamp_min(1e-12)).max()) < 5


def test_monte_carlo_diagonal_is_unbiased() -> None:
    problem = BY_NAME["mlp-squared"].problem()
    exact, mean = ggn_diagonal(problem), ggn_diagonal(problem, kind="mc", draws=30)
    # The last biases see u² = 2ε² alone: the mean of 30 × 17 draws has the relative error √(2/510).
    assert relative(mean[-3:], exact[-3:]) < 4 * (2 / 510) ** 0.5
    assert relative(mean, exact) < 0.3


def test_the_same_seed_draws_the_same() -> None:
    problem = BY_NAME["mlp"].problem()
    first, again = (ggn_diagonal(problem, kind="mc", draws=2, seed=3) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, ggn_diagonal(problem, kind="mc", draws=2, seed=4))


def test_a_sure_model_has_its_diagonal_from_a_few_draws() -> None:
    """Of labels drawn as predicted none but the likeliest would come: a diagonal a million times too small."""
    torch.manual_seed(0)
    model = nn.Linear(3, 4).double()
    with torch.no_grad():
        model.bias.copy_(torch.tensor([16.0, 1.0, 0.5, 0.0]))
    problem = Problem(model, nn.CrossEntropyLoss(), [(torch.randn(20, 3).double(), torch.zeros(20).long())])
    exact = float(ggn_diagonal(problem).sum())
    assert float(ggn_diagonal(problem, kind="mc", draws=4).sum()) == pytest.approx(exact, rel=1e-2)


def test_large_vocabularies_are_sampled() -> None:
    torch.manual_seed(0)
    problem = Problem(
        nn.Linear(2, 5000).double(), nn.CrossEntropyLoss(), [(torch.ones(3, 2).double(), torch.arange(3))]
    )
    # Inputs (1, 1) and the bias: each class has its p(1 − p) three times, and every draw the sum of them all.
    p = problem.model(torch.ones(2).double()).softmax(0).detach()
    found = ggn_diagonal(problem, kind="mc", draws=2, seed=1)
    assert float(found.sum()) == pytest.approx(3 * float(1 - p.square().sum()), rel=1e-10)
    with pytest.raises(OperatorError, match=r"at most 4096 outputs that the criterion couples.*kind='mc'"):
        ggn_diagonal(problem)


def test_cuts_into_batches_do_not_change_it() -> None:
    family = BY_NAME["convnet"]
    model, batches = family.model_and_data()
    reference = ggn_diagonal(family.problem_of(model, batches))
    assert relative(ggn_diagonal(family.problem_of(model, batches, microbatch=5)), reference) < EXACT
    assert relative(ggn_diagonal(family.problem_of(model, batches[::-1])), reference) < EXACT


def test_the_operator_has_the_functions_of_its_entries() -> None:
    problem = BY_NAME["mlp"].problem()
    A, entries = GGNDiagonal(problem), ggn_diagonal(problem)
    v = torch.randn(problem.n, dtype=torch.float64)
    assert relative(A @ v, entries * v) < EXACT
    assert relative(A.inverse(damping=0.1) @ v, v / (entries + 0.1)) < EXACT
    assert A.trace() == pytest.approx(float(entries.sum()))
    assert A.cost.gradients == pytest.approx(2.0)  # three classes: softmax leaves one direction flat
    assert set(A.forms.values()) == {"exact diagonal"}


class Scaled(nn.Module):
    """Logits times one learnt number, as contrastive models have them."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(3, 2), nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.layer(x)


def test_a_parameter_without_dimensions_has_a_block() -> None:
    problem = Problem(Scaled().double(), nn.MSELoss(), [(torch.randn(5, 3).double(), torch.randn(5, 2).double())])
    dense = GGN(problem).dense()
    assert relative(GGNBlocks(problem).dense(), masked(dense, problem)) < 1e-10
    assert relative(GGNDiagonal(problem).dense(), dense.diagonal().diag()) < 1e-10
    where = problem.layout.slices["scale"]
    for factored in (KFAC(problem), EKFAC(problem)):
        assert relative(factored.dense()[where, where], dense[where, where]) < 1e-10


def test_a_long_wait_is_announced() -> None:
    loss, wide = recognise(nn.MSELoss()), torch.zeros(2, 1100)
    with pytest.warns(CostWarning, match=r"1,100 sites with 1 directions each takes 1,100 backward passes"):
        next(curvature_roots(loss, wide, wide, memory=2**40))


def test_refusals_show_the_scene() -> None:
    model, _ = BY_NAME["mlp"].model_and_data()
    batches = [(features((6,), 5)[0], labels((6,), 3)[0])]
    problem = Problem(model, nn.CrossEntropyLoss(), batches)
    with pytest.raises(OperatorError, match=r"one of 'exact', 'mc', 'empirical', found 'true'"):
        ggn_diagonal(problem, kind="true")
    with pytest.raises(OperatorError, match="found draws=0"):
        ggn_diagonal(problem, kind="mc", draws=0)
    concave = Problem(model, lambda out, y: -out.square().mean(), batches)
    with pytest.raises(OperatorError, match=r"convex in the outputs, found the eigenvalue -"):
        ggn_diagonal(concave)
    wide = Problem(nn.Linear(5, 1000).double(), nn.CrossEntropyLoss(), batches)
    with pytest.raises(OperatorError, match=r"at most 4096 parameters for dense blocks, found 5,000 in weight"):
        GGNBlocks(wide)
    with pytest.raises(OperatorError, match="the model's outputs"):
        ggn_diagonal(BY_NAME["from-loss"].problem())


def test_a_curvature_of_many_classes_beyond_the_memory_is_refused_before_it_is_made() -> None:
    data = [(torch.randn(32, 2), torch.randint(300, (32,)))]
    problem = Problem(nn.Linear(2, 300), nn.CrossEntropyLoss(), data, memory=2**20)
    with pytest.raises(
        OperatorError, match=r"found 88 MiB for 32 samples with 1 sites of 300 .*above 1 MiB.*kind='mc'"
    ):
        ggn_diagonal(problem)
    assert ggn_diagonal(problem, kind="mc").isfinite().all()
