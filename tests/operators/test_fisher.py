"""The Fisher is the second moment of gradients at targets that the model predicts, exactly or within stated errors."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from families import BY_NAME, FAMILIES, Family
from operators.oracles import BINARY, PIXELS, by_class, outputs_and_jacobian, rows_by_class
from operators.plain import relative
from theodolite.errors import NonFiniteError, OperatorError
from theodolite.operators import GGN, Fisher, GradientCovariance, Hessian
from theodolite.problem import Problem
from theodolite.problem.predictive import predictive

EXACT = 1e-10
WITH_DENSITY = [*(family for family in FAMILIES if family.criterion is not None), BINARY, PIXELS]
with_density = pytest.mark.parametrize("family", WITH_DENSITY, ids=lambda family: family.name)


def position_weights(criterion: nn.Module, targets: Tensor) -> Tensor:
    """How often each observed class target counts."""
    flat = targets.reshape(-1)
    weight, smoothing = criterion.weight, criterion.label_smoothing
    if weight is None:
        return (flat != criterion.ignore_index).double()
    weight = weight.double()
    return (1 - smoothing) * weight[flat] + smoothing * weight.mean()


def enumerated(family: Family) -> Tensor:
    """Σ_y p(y) ∇ℓ_y ∇ℓ_yᵀ over all targets y, by gradients of log-probabilities, over the weight of the problem."""
    z, J, targets = outputs_and_jacobian(family)
    criterion = family.criterion
    assert isinstance(criterion, nn.Module)
    if isinstance(criterion, nn.CrossEntropyLoss):
        logits, J = by_class(z).requires_grad_(), rows_by_class(J, z)
        log_p = F.log_softmax(logits, dim=1)
        counts = position_weights(criterion, targets)
        total = torch.zeros(J.shape[-1], J.shape[-1], dtype=torch.float64)
        for c in range(logits.shape[1]):
            (score,) = torch.autograd.grad(log_p[:, c].sum(), logits, retain_graph=True)
            gradients = torch.einsum("tc,tcn->tn", score, J)
            total += torch.einsum("t,tn,tm->nm", counts * log_p[:, c].detach().exp(), gradients, gradients)
        flat, weight = targets.reshape(-1), criterion.weight
        valid = flat[flat != criterion.ignore_index]
        return total / (len(valid) if weight is None else float(weight.double()[valid].sum()))
    if isinstance(criterion, nn.BCEWithLogitsLoss):
        assert criterion.weight is not None
        assert criterion.pos_weight is not None
        counts = criterion.weight.double() * (1 + (criterion.pos_weight.double() - 1) * targets)
        variance = z.sigmoid() * (1 - z.sigmoid()) ** 2 + (1 - z.sigmoid()) * z.sigmoid() ** 2
        return J.T @ ((counts * variance).reshape(-1, 1) * J) / z.numel()
    # A Gaussian of variance ½ has the moments of ±√½, and ∂(z − y)²/∂z = 2(z − y).
    mean_square = sum((2 * sign * math.sqrt(0.5)) ** 2 for sign in (1, -1)) / 2
    return mean_square * J.T @ J / (z.numel() if criterion.reduction == "mean" else 1)


@with_density
def test_exact_is_the_mean_over_all_targets(family: Family) -> None:
    assert relative(Fisher(family.problem()).dense(), enumerated(family)) < EXACT


@with_density
def test_exact_is_the_ggn(family: Family) -> None:
    problem = family.problem()
    assert relative(Fisher(problem).dense(), GGN(problem).dense()) < EXACT


@with_density
def test_sampled_targets_make_gradients_of_the_criterion(family: Family) -> None:
    """One draw, one batch: the matrix is that of the criterion's own gradients at targets drawn with the same numbers."""
    model, batches = family.model_and_data()
    problem = family.problem_of(model, batches[:1])
    one = Family(family.name, family.model, family.criterion, lambda: batches[:1])
    z, J, targets = outputs_and_jacobian(one)
    loss = problem.objective.loss
    drawn = predictive(loss, z, targets).sample(torch.Generator().manual_seed(3 * 1_000_003))
    point = z.clone().requires_grad_()
    criterion = family.criterion
    if isinstance(criterion, nn.CrossEntropyLoss):
        plain = F.cross_entropy(point, drawn, reduction="sum", ignore_index=criterion.ignore_index)
        (score,) = torch.autograd.grad(plain, point)
        gradients = torch.einsum("tc,tcn->tn", by_class(score), rows_by_class(J, z))
        gradients = gradients * position_weights(criterion, targets).sqrt()[:, None]
    elif isinstance(criterion, nn.BCEWithLogitsLoss):
        plain = F.binary_cross_entropy_with_logits(point, drawn, reduction="sum")
        (score,) = torch.autograd.grad(plain, point)
        counts = criterion.weight.double() * (1 + (criterion.pos_weight.double() - 1) * targets)
        gradients = (score * counts.sqrt()).reshape(-1, 1) * J
    else:
        (score,) = torch.autograd.grad((point - drawn).square().sum(), point)
        gradients = score.reshape(-1, 1) * J
    _, weights = problem.totals()
    expected = gradients.T @ gradients / problem.total_weight(weights)
    assert relative(Fisher(problem, kind="mc", draws=1, seed=3).dense(), expected) < EXACT


@with_density
def test_sampled_is_symmetric_positive_and_fixed(family: Family) -> None:
    problem = family.problem()
    sampled = Fisher(problem, kind="mc", draws=3, seed=1)
    dense = sampled.dense()
    assert relative(dense, dense.T) < EXACT
    eigenvalues = torch.linalg.eigvalsh(dense)
    assert eigenvalues[0] > -1e-12 * eigenvalues[-1]
    torch.rand(5)  # draws do not follow the global generator
    assert relative(sampled.dense(), dense) < 1e-12
    assert relative(Fisher(problem.replace(memory=1), kind="mc", draws=3, seed=1).dense(), dense) < 1e-12
    assert relative(Fisher(problem, kind="mc", draws=3, seed=2).dense(), dense) > 1e-2
    v = torch.randn(problem.n, dtype=torch.float64)
    assert sampled.quadratic(v).value == pytest.approx(float(v @ dense @ v), rel=1e-12)
    name = problem.layout.names[-1]
    where = problem.layout.slices[name]
    assert relative(sampled.block(name).dense(), dense[where, where]) < EXACT


WEIGHT = torch.tensor([0.5, 1.0, 2.0, 0.1], dtype=torch.float64)
SMALL = {
    "classes": (nn.CrossEntropyLoss(), lambda: torch.randint(4, (12,))),
    "weighted classes": (nn.CrossEntropyLoss(weight=WEIGHT, ignore_index=1), lambda: torch.randint(4, (12,))),
    "bits": (nn.BCEWithLogitsLoss(pos_weight=WEIGHT), lambda: torch.rand(12, 4, dtype=torch.float64).round()),
    "numbers": (nn.MSELoss(), lambda: torch.randn(12, 4, dtype=torch.float64)),
}


@pytest.mark.parametrize("name", SMALL)
def test_moments_of_scores_are_those_in_closed_form(name: str) -> None:
    """Over 4000 draws: mean 0, second moment the curvature, and the stated spread of squares, within five standard errors."""
    criterion, targets = SMALL[name]
    z, y, draws = torch.randn(12, 4, dtype=torch.float64), targets(), 4000
    problem = Problem(nn.Linear(3, 4).double(), criterion, [(torch.randn(12, 3, dtype=torch.float64), y)])
    loss = problem.objective.loss
    predicted, g = predictive(loss, z, y), torch.Generator().manual_seed(0)
    scores = torch.stack([predicted.score(predicted.sample(g)) for _ in range(draws)])
    u = torch.randn(12, 4, dtype=torch.float64)
    forms = torch.stack([predicted.per_target(score * u) for score in scores])
    expected = predicted.per_target(u * loss.curvature(z, y)(u))
    assert bool((forms.mean(0).abs() <= 5 * (expected / draws).sqrt() + 1e-15).all())
    spread = predicted.spread(u)
    assert bool(((forms.square().mean(0) - expected).abs() <= 5 * (spread / draws).sqrt() + 1e-12).all())
    assert relative(forms.square().var(0), spread) < 0.25


@pytest.mark.slow
@pytest.mark.parametrize("draws", [1, 8])
@pytest.mark.parametrize("name", SMALL)
def test_the_standard_error_is_honest(name: str, draws: int) -> None:
    """Over 200 seeds the error has mean 0 and the stated size; 95 % intervals cover the exact value in 90 to 99 %."""
    criterion, targets = SMALL[name]
    model = nn.Linear(3, 4).double()
    problem = Problem(model, criterion, [(torch.randn(12, 3, dtype=torch.float64), targets())])
    v = torch.randn(problem.n, dtype=torch.float64)
    exact = Fisher(problem).quadratic(v)
    assert exact.stderr == 0.0
    found = [Fisher(problem, kind="mc", draws=draws, seed=seed).quadratic(v) for seed in range(200)]
    values, error = torch.tensor([estimate.value for estimate in found]), found[0].stderr
    assert abs(float(values.mean()) - exact.value) < 4 * error / 200**0.5
    assert float(values.std()) == pytest.approx(error, rel=0.25)
    if draws > 1:  # a single draw of a dozen targets is far from normal
        assert 0.9 <= float(((values - exact.value).abs() < 1.96 * error).double().mean()) <= 0.99


@pytest.mark.parametrize("name", ["mlp", "mlp-weighted", "mlp-squared", "transformer", "from-loss"])
def test_empirical_is_the_gradient_covariance(name: str) -> None:
    problem = BY_NAME[name].problem()
    assert relative(Fisher(problem, kind="empirical").dense(), GradientCovariance(problem).dense()) < EXACT


def test_the_trace_of_softmax_regression_is_that_of_its_hessian() -> None:
    """tr H = E_x Σ_y p_y ‖∇ log p_y‖²: without layers below, the curvature is that of the criterion alone."""
    model = nn.Linear(4, 5).double()
    x = torch.randn(20, 4, dtype=torch.float64)
    problem = Problem(
        model, nn.CrossEntropyLoss(), [(x[:13], torch.randint(5, (13,))), (x[13:], torch.randint(5, (7,)))]
    )
    p = model(x).softmax(1).detach()
    # ∂ℓ_y/∂(W, b) = (p − e_y) ⊗ (x, 1), of squared norm ‖p − e_y‖² (‖x‖² + 1).
    gaps = (p[:, None, :] - torch.eye(5, dtype=torch.float64)).square().sum(2)
    expected = float(((p * gaps).sum(1) * (x.square().sum(1) + 1)).mean())
    assert float(Fisher(problem).dense().trace()) == pytest.approx(expected, rel=1e-12)
    assert float(Hessian(problem).dense().trace()) == pytest.approx(expected, rel=1e-12)


def coupled() -> Problem:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    return Problem(model, nn.CrossEntropyLoss(), [(torch.randn(8, 3), torch.randint(2, (8,)))], mode="train")


def robust() -> Problem:
    return Problem(nn.Linear(3, 2), nn.SmoothL1Loss(), [(torch.randn(8, 3), torch.randn(8, 2))])


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no density": (robust, {}, r"negative logarithm of a known density.*found SmoothL1Loss.*Use GGN\(problem\)"),
    "no density, sampled": (robust, {"kind": "mc"}, "negative logarithm of a known density"),
    "no outputs": (BY_NAME["from-loss"].problem, {}, r"Problem.from_loss.*Use Problem\(model, criterion, batches\)"),
    "no draws": (robust, {"draws": 0}, "at least 1 draw of each target, found draws=0"),
    "coupled samples": (coupled, {"kind": "empirical"}, r"not defined with BatchNorm on batch statistics.*mode='eval'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_fisher_is_refused(case: str) -> None:
    make, options, message = REFUSED[case]
    with pytest.raises(OperatorError, match=message):
        Fisher(make(), **options)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(OperatorError, match=r"one of 'exact', 'mc', 'empirical', found 'observed'"):
        # Past the type checker of the tests, which users do not run and which would refuse it first.
        inspect.unwrap(Fisher.__init__)(object.__new__(Fisher), robust(), kind="observed")


@pytest.mark.parametrize("kind", ["exact", "mc"])
def test_a_form_of_what_is_no_vector_of_it_is_refused(kind: str) -> None:
    """The quadratic form checks its vector as a product does, whichever way it is computed."""
    model = nn.Linear(3, 2)
    fisher = Fisher(Problem(model, nn.CrossEntropyLoss(), [(torch.randn(8, 3), torch.randint(2, (8,)))]), kind=kind)
    with pytest.raises(OperatorError, match=r"multiplies vectors of shape \(8,\)"):
        fisher.quadratic(torch.ones(9))
    with pytest.raises(OperatorError, match="float64"):
        fisher.quadratic(torch.ones(8, dtype=torch.float64))
    with pytest.raises(NonFiniteError, match="finite"):
        fisher.quadratic(torch.full((8,), torch.nan))


def test_batch_statistics_leave_the_exact_fisher_the_ggn() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).double()
    data = [(torch.randn(8, 3, dtype=torch.float64), torch.randint(2, (8,)))]
    problem = Problem(model, nn.CrossEntropyLoss(), data, mode="train")
    assert relative(Fisher(problem).dense(), GGN(problem).dense()) < 1e-10
