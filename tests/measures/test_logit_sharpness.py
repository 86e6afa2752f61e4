"""The closed form is the maximum over the box, and its slope at 0 the dual norm of the gradient in the logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from torch import nn

from families import BY_NAME
from theodolite.errors import OperatorError, ProblemError
from theodolite.measures.logit_sharpness import logit_sharpness
from theodolite.problem import Problem


def identity_problem(logits: torch.Tensor, targets: torch.Tensor) -> Problem:
    model = nn.Linear(logits.shape[1], logits.shape[1], bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.eye(logits.shape[1]))
    return Problem(model, nn.CrossEntropyLoss(), [(logits, targets)])


def test_no_point_of_the_box_is_higher_and_a_solver_finds_the_same() -> None:
    g = torch.Generator().manual_seed(0)
    for _ in range(5):
        z, target = 3 * torch.randn(1, 4, generator=g, dtype=torch.float64), torch.randint(4, (1,), generator=g)
        found = logit_sharpness(identity_problem(z, target), radius=0.2)
        reach = 0.2 * (z.abs() + 1)
        here = float(F.cross_entropy(z, target))
        for _ in range(50):
            inside = z + (2 * torch.rand(z.shape, generator=g, dtype=torch.float64) - 1) * reach
            assert float(F.cross_entropy(inside, target)) - here <= found.rises[0] + 1e-12
        solved = minimize(
            lambda x, target=target: -float(F.cross_entropy(torch.tensor(x)[None], target)),
            z[0].numpy(),
            bounds=list(zip((z - reach)[0].tolist(), (z + reach)[0].tolist(), strict=True)),
            method="L-BFGS-B",
        )
        assert -solved.fun - here == pytest.approx(found.rises[0], rel=1e-4)


def test_small_boxes_give_the_dual_norm_of_the_gradient() -> None:
    g = torch.Generator().manual_seed(1)
    z, targets = torch.randn(6, 3, generator=g, dtype=torch.float64), torch.randint(3, (6,), generator=g)
    point = z.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(point, targets), point)
    slope = float((gradient.abs() * (z.abs() + 1)).sum())
    found = logit_sharpness(identity_problem(z, targets), radius=[1e-6, 1e-5])
    assert found.rises == pytest.approx([1e-6 * slope, 1e-5 * slope], rel=1e-4)
    assert found.relative[0] == pytest.approx(100 * found.rises[0] / (1 + found.loss))
    assert found.name == "logits"


def test_ignored_tokens_do_not_count_and_errors_are_over_chunks() -> None:
    problem = BY_NAME["transformer"].problem()
    found = logit_sharpness(problem)
    assert found.loss == pytest.approx(problem.loss(), rel=1e-12)
    per_token = []
    for tokens, targets in problem.batches:
        with torch.no_grad(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            logits = problem.model.eval()(tokens)
        box = 1e-3 * (logits.abs() + 1)
        for b, t in (targets != -100).nonzero().tolist():
            sign = torch.ones(logits.shape[1], dtype=torch.float64)
            sign[targets[b, t]] = -1
            z, moved = logits[b, :, t], logits[b, :, t] + sign * box[b, :, t]
            per_token.append(float(F.cross_entropy(moved, targets[b, t]) - F.cross_entropy(z, targets[b, t])))
    assert found.rises[1] == pytest.approx(np.mean(per_token), rel=1e-9)
    assert found.stderrs[1] > 0
    assert found.estimates[1].degrees == 2


def test_other_criteria_and_radii_are_refused() -> None:
    with pytest.raises(OperatorError, match="without class weights and label smoothing, found CrossEntropy"):
        logit_sharpness(BY_NAME["mlp-weighted"].problem())
    with pytest.raises(OperatorError, match="found SquaredError"):
        logit_sharpness(BY_NAME["mlp-squared"].problem())
    with pytest.raises(ProblemError, match=r"positive radii, found radius=-1\.0"):
        logit_sharpness(BY_NAME["mlp"].problem(), radius=-1.0)
