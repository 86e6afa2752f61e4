"""Influence functions against dense solves and against retraining."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from families import BY_NAME
from theodolite.errors import NonFiniteError, OperatorError, ProblemError
from theodolite.measures import influence
from theodolite.measures.subject import OPERATORS
from theodolite.problem import Problem


@pytest.mark.parametrize("operator", ["ggn", "hessian"])
@pytest.mark.parametrize("name", ["mlp", "mlp-weighted", "mlp-squared", "transformer", "lstm"])
def test_scores_equal_a_dense_solve(name: str, operator: str) -> None:
    family = BY_NAME[name]
    model, batches = family.model_and_data()
    problem, queries = family.problem_of(model, batches), family.problem_of(model, batches[2:])
    H = OPERATORS[operator](problem).dense()
    damping = 0.05 + max(0.0, -1.1 * float(torch.linalg.eigvalsh(H)[0]))
    G, Q = per_sample(problem), per_sample(queries)
    expected = -Q @ torch.linalg.solve(H + damping * torch.eye(problem.n), G.T)
    found = influence(problem, queries, damping=damping, operator=operator, tol=1e-10)
    np.testing.assert_allclose(found.scores, expected.numpy(), atol=1e-7 * float(expected.abs().max()))
    assert found.converged.all()
    torch.testing.assert_close(G.mean(0), problem.gradient())
    given = influence(problem, Q, damping=damping, operator=operator, tol=1e-10)
    np.testing.assert_allclose(given.scores, found.scores, rtol=1e-6, atol=1e-9)


def per_sample(problem: Problem) -> Tensor:
    """Gradients of single samples, scaled so that their mean is the gradient of the problem."""
    rows = []
    for chunk in problem.chunks():
        for index in range(chunk.samples):
            sample = tuple(tensor[index : index + 1] for tensor in chunk.batch)
            total, _ = problem.objective.evaluate(problem.model, sample)
            grads = torch.autograd.grad(total, list(problem.model.parameters()), materialize_grads=True)
            rows.append(torch.cat([grad.reshape(-1) for grad in grads]))
    return torch.stack(rows) * problem.samples / float(problem.totals()[1].sum())


def ridge(weights: Tensor, inputs: Tensor, targets: Tensor, decay: float) -> Tensor:
    """The minimum of Σ w (xθ − y)²/N + δ/2·‖θ‖², in closed form."""
    count = len(inputs)
    A = 2 / count * (inputs.T * weights) @ inputs + decay * torch.eye(inputs.shape[1], dtype=torch.float64)
    return torch.linalg.solve(A, 2 / count * (inputs.T * weights) @ targets)


def test_leaving_one_out_of_a_ridge_regression_is_exact_to_first_order() -> None:
    torch.manual_seed(0)
    count, decay = 40, 0.1
    inputs, targets = torch.randn(count, 5, dtype=torch.float64), torch.randn(count, dtype=torch.float64)
    tests = torch.randn(3, 5, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    model = nn.Linear(5, 1, bias=False).double()
    theta = ridge(torch.ones(count, dtype=torch.float64), inputs, targets, decay)
    with torch.no_grad():
        model.weight.copy_(theta[None])
    batches = [(part, y[:, None]) for part, y in zip(inputs.split(16), targets.split(16), strict=True)]
    problem = Problem(model, nn.MSELoss(), batches)
    queries = Problem(model, nn.MSELoss(), [(tests[0], tests[1][:, None])])
    found = influence(problem, queries, damping=decay, operator="hessian", tol=1e-12)

    def losses(weights: Tensor) -> Tensor:
        return (tests[0] @ ridge(weights, inputs, targets, decay) - tests[1]).square()

    for sample in range(count):
        change = 1e-4
        more, less = torch.ones(count, dtype=torch.float64), torch.ones(count, dtype=torch.float64)
        more[sample], less[sample] = 1 + change, 1 - change
        # A weight of 1 + N·ε in the mean is ε more of the sample.
        slope = (losses(more) - losses(less)) / (2 * change / count)
        np.testing.assert_allclose(found.scores[:, sample], slope.numpy(), rtol=1e-5, atol=1e-8)
        without = torch.ones(count, dtype=torch.float64)
        without[sample] = 0.0
        moved = (losses(without) - losses(torch.ones(count, dtype=torch.float64))).numpy()
        leverage = 2 / count * float(inputs[sample] @ torch.linalg.solve(hessian(inputs, decay), inputs[sample]))
        # Left out whole, the minimum moves by the first order over 1 − leverage, and the loss by its square besides.
        step = tests[0] @ torch.linalg.solve(hessian(inputs, decay), inputs[sample])
        shift = step * 2 / count * float(targets[sample] - inputs[sample] @ theta) / (1 - leverage)
        exact = found.left_out[:, sample] / (1 - leverage) + shift.square().numpy()
        np.testing.assert_allclose(moved, exact, rtol=1e-6, atol=1e-10)


def hessian(inputs: Tensor, decay: float) -> Tensor:
    return 2 / len(inputs) * inputs.T @ inputs + decay * torch.eye(inputs.shape[1], dtype=torch.float64)


def test_the_most_helpful_sample_is_the_query_itself() -> None:
    torch.manual_seed(1)
    inputs = torch.randn(30, 4, dtype=torch.float64)
    targets = (inputs[:, 0] > 0).long()
    targets[3] = 1 - targets[3]
    model = nn.Linear(4, 2).double()
    problem = Problem(model, nn.CrossEntropyLoss(), [(inputs, targets)])
    found = influence(problem, problem, damping=1e-3)
    assert all(found.scores[query, query] < 0 for query in range(30))
    assert found.helpful(3, 1).tolist() == [int(found.scores[3].argmin())]
    assert found.harmful(3, 2).tolist() == np.argsort(-found.scores[3])[:2].tolist()


def test_what_cannot_be_inverted_is_refused() -> None:
    problem = BY_NAME["mlp"].problem()
    with pytest.raises(OperatorError, match=r"hessian \+ 1e-09·I to be positive, found a direction"):
        influence(problem, problem, damping=1e-9, operator="hessian")
    with pytest.raises(ProblemError, match="positive damping, found 0"):
        influence(problem, problem, damping=0.0)
    with pytest.raises(ProblemError, match="queries of the same parameters, found 15"):
        influence(problem, problem.select("4.*"), damping=0.1)


def test_a_criterion_that_is_not_convex_is_not_sent_to_the_ggn_that_it_has() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(20, 4, dtype=torch.float64)
    model = nn.Linear(4, 3).double()

    def bounded(outputs: Tensor, targets: Tensor) -> Tensor:
        return (1 - outputs.softmax(1).gather(1, targets[:, None])).mean()

    problem = Problem(model, bounded, [(inputs, torch.randint(3, (20,)))])
    with pytest.raises(OperatorError, match=r"ggn \+ 1e-06·I to be positive") as raised:
        influence(problem, problem, damping=1e-6)
    assert "operator='ggn') finds, or a criterion that is convex in the outputs" in str(raised.value)


def test_a_solve_that_is_cut_off_says_so() -> None:
    problem = BY_NAME["mlp"].problem()
    found = influence(problem, problem, damping=1e-4, tol=1e-10, max_products=3)
    assert not found.converged.all()
    assert "NOT CONVERGED" in repr(found)
    assert math.isfinite(found.residuals.max())


def test_coupled_samples_have_no_influence_of_their_own() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()
    data = [(torch.randn(8, 3, dtype=torch.float64), torch.arange(8) % 2)]
    problem = Problem(model, nn.CrossEntropyLoss(), data, mode="train")
    with pytest.raises(OperatorError, match=r"found them coupled by BatchNorm .*mode='train'"):
        influence(problem, problem, damping=0.1)


def test_queries_of_another_model_or_of_the_wrong_kind_are_refused() -> None:
    family = BY_NAME["mlp"]
    problem, copy = family.problem(), family.problem()
    same = influence(problem, copy, damping=0.1)
    assert same.scores.shape == (17, 17)
    assert influence(problem, copy.replace(dtype=torch.float32), damping=0.1).converged.all()
    with torch.no_grad():
        copy.model[2].bias[0] += 1e-3
    with pytest.raises(ProblemError, match=r"same model at the same weights, found other values of 2\.bias"):
        influence(problem, copy, damping=0.1)
    unchecked = inspect.unwrap(influence)
    with pytest.raises(
        ProblemError, match="queries as a Problem, or as a tensor of gradients, one a row, found a list"
    ):
        unchecked(problem, [1, 2], damping=0.1)
    for shape in ((3, problem.n - 1), (problem.n,), (0, problem.n)):
        with pytest.raises(ProblemError, match=rf"in the shape \(q, {problem.n}\), one a row, found \({shape[0]},"):
            unchecked(problem, torch.zeros(shape), damping=0.1)
    rows = torch.zeros(3, problem.n)
    rows[1, 5] = math.nan
    with pytest.raises(NonFiniteError, match="NaN or infinity in 1 of 3, the first at place 1"):
        influence(problem, rows, damping=0.1)


def test_the_message_does_not_grow_with_the_queries() -> None:
    problem = BY_NAME["mlp"].problem()
    with pytest.raises(OperatorError, match=r"and 47 more of 50 columns") as raised:
        influence(problem, torch.randn(50, problem.n, dtype=torch.float64), damping=1e-9, operator="hessian")
    assert len(str(raised.value)) < 600
