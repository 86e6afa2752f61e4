"""The trace from drawn labels is the trace of the Gauss-Newton matrix, with honest errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from families import BY_NAME, FAMILIES, Family
from theodolite.errors import OperatorError, ProblemError
from theodolite.linalg import hutchinson
from theodolite.measures.fisher_trace import fisher_trace
from theodolite.operators import GGN
from theodolite.problem import Problem

CRITERIA = [family for family in FAMILIES if family.criterion is not None]


@pytest.mark.parametrize("name", ["mlp", "transformer", "mlp-squared", "mlp-weighted"])
def test_the_trace_and_its_layers_are_those_of_the_ggn(name: str) -> None:
    problem = BY_NAME[name].problem()
    if name == "mlp-weighted":
        problem = Problem(
            problem.model, nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 2.5]).double()), problem.batches
        )
    G = GGN(problem).dense()
    found = fisher_trace(problem, draws=40)
    assert abs(found.value - float(G.trace())) < 4 * found.stderr
    assert found.stderr < 0.1 * found.value
    for (layer, where), estimate in zip(problem.layout.layer_slices.items(), found.by_layer.values(), strict=True):
        assert abs(estimate.value - float(G[where, where].trace())) < 4 * estimate.stderr + 1e-12, layer
    assert found.layer_values.sum() == pytest.approx(found.value, rel=1e-10)


def softmax_regression(samples: int, *, seed: int = 0) -> Problem:
    g = torch.Generator().manual_seed(seed)
    model = nn.Linear(3, 4).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=g, dtype=torch.float64))
    inputs = torch.randn(samples, 3, generator=g, dtype=torch.float64)
    return Problem(model, nn.CrossEntropyLoss(), [(inputs, torch.randint(4, (samples,), generator=g))])


def test_the_golden_identity_of_softmax_regression() -> None:
    """Σ_y p_y ‖∇log p_y‖² = tr ∇²(−Σ_y p_y log p_y at fixed p)."""
    problem = softmax_regression(1)
    model = problem.model
    (x, _) = problem.batches.first()
    p = model(x).softmax(1)[0].detach()

    def squared(label: int) -> float:
        parts = torch.autograd.grad(F.log_softmax(model(x), 1)[0, label], list(model.parameters()))
        return float(sum(part.square().sum() for part in parts))

    expected = sum(float(p[label]) * squared(label) for label in range(4))

    def likelihood(weight: Tensor, bias: Tensor) -> Tensor:
        return -(p * F.log_softmax(x @ weight.T + bias, 1)[0]).sum()

    blocks = torch.autograd.functional.hessian(likelihood, tuple(q.detach() for q in model.parameters()))
    trace = blocks[0][0].reshape(12, 12).trace() + blocks[1][1].trace()
    assert expected == pytest.approx(float(trace), rel=1e-12)
    # One layer: ‖Jᵀu‖² is ‖u‖²(1 + ‖x‖²), and u has its expected length at every draw.
    assert fisher_trace(problem, draws=2).value == pytest.approx(expected, rel=1e-12)


def sure_network(scale: float, *, positions: int = 1, dtype: torch.dtype = torch.float64) -> Problem:
    """Logits so far apart that labels drawn as predicted are always the likeliest."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv1d(3, 6, 1), nn.Tanh(), nn.Conv1d(6, 5, 1)).to(dtype)
    with torch.no_grad():
        model[2].bias.copy_(scale * torch.tensor([3.0, 0.5, 0.3, 0.0, -1.0]))
    inputs, targets = torch.randn(12, 3, positions).to(dtype), torch.zeros(12, positions, dtype=torch.int64)
    return Problem(model, nn.CrossEntropyLoss(), [(inputs, targets)])


@pytest.mark.parametrize("positions", [1, 4])
@pytest.mark.parametrize("scale", [3.0, 8.0])
def test_intervals_cover_the_truth_where_the_model_is_sure(scale: float, positions: int) -> None:
    """At scale 8 the likeliest class leaves 3e-9, and drawn as predicted none of a billion labels is another."""
    problem = sure_network(scale, positions=positions)
    exact, covered = float(GGN(problem).dense().trace()), 0
    for seed in range(12):
        found = fisher_trace(problem, seed=seed)
        lower, upper = found.estimate.interval(0.99)
        covered += lower <= exact <= upper
        assert found.value == pytest.approx(exact, rel=0.5)
        assert found.stderr > 1e-3 * exact
    assert covered >= 10


def test_a_sure_model_in_single_precision_has_its_trace() -> None:
    """p rounds to 1 in float32; what it leaves is the sum of the other classes."""
    double = sure_network(8.0)
    single = Problem(
        double.model.float(), nn.CrossEntropyLoss(), [(double.batches.first()[0].float(), torch.zeros(12, 1).long())]
    )
    assert fisher_trace(single, draws=8).value == pytest.approx(
        fisher_trace(sure_network(8.0), draws=8).value, rel=1e-3
    )


def test_the_error_is_the_spread_over_seeds() -> None:
    problem = sure_network(1.0)
    exact = float(GGN(problem).dense().trace())
    found = [fisher_trace(problem, draws=3, seed=seed) for seed in range(20)]
    values, squared = np.array([each.value for each in found]), np.array([each.stderr**2 for each in found])
    assert abs(values.mean() - exact) < 4 * values.std(ddof=1) / math.sqrt(20)
    spread = math.hypot(squared.std(ddof=1) / math.sqrt(20), values.var(ddof=1) * math.sqrt(2 / 19))
    assert abs(squared.mean() - values.var(ddof=1)) < 4 * spread


@pytest.mark.slow
def test_intervals_over_seeds_cover_the_truth() -> None:
    problem = sure_network(1.0)
    exact, covered = float(GGN(problem).dense().trace()), 0
    for seed in range(200):
        lower, upper = fisher_trace(problem, draws=8, seed=seed).estimate.interval(0.95)
        covered += lower <= exact <= upper
    assert 0.90 <= covered / 200 <= 0.98


def test_the_error_from_the_data_is_the_spread_over_fresh_samples() -> None:
    g = torch.Generator().manual_seed(0)
    model = softmax_regression(1).model
    values, errors = [], []
    for _ in range(30):
        data = [(torch.randn(16, 3, generator=g, dtype=torch.float64), torch.zeros(16, dtype=torch.int64))]
        found = fisher_trace(
            Problem(model, nn.CrossEntropyLoss(), data), draws=2, seed=int(torch.randint(10**6, (1,), generator=g))
        )
        values.append(found.value)
        errors.append(found.data_stderr**2)
    assert np.mean(errors) == pytest.approx(np.var(values, ddof=1), rel=0.6)
    assert found.data_degrees == 15


def test_gold_labels_are_not_used() -> None:
    problem = sure_network(1.0)
    other = Problem(problem.model, nn.CrossEntropyLoss(), [(problem.batches.first()[0], torch.full((12, 1), 2))])
    assert fisher_trace(problem).value == fisher_trace(other).value
    assert fisher_trace(problem, seed=1).value != fisher_trace(problem).value


@pytest.mark.parametrize("family", CRITERIA, ids=lambda family: family.name)
def test_any_family_with_a_density_has_one(family: Family) -> None:
    found = fisher_trace(family.problem(), draws=2)
    assert found.value > 0
    assert found.probes == 2 * family.problem().samples


def test_a_model_of_transformers_is_read_through_its_labels() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=9, n_positions=6, n_embd=4, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0
    )
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config).double()
    tokens = torch.randint(9, (5, 6))
    labels = tokens.clone()
    labels[1:3, 3:] = -100
    batches = [{"input_ids": tokens[:3], "labels": labels[:3]}, {"input_ids": tokens[3:], "labels": labels[3:]}]
    problem = Problem.from_loss(model, lambda model, batch: model(**batch).loss, batches)
    exact = hutchinson(GGN(problem), probes=40)
    found = fisher_trace(problem, draws=12)
    assert abs(found.value - exact.value) < 4 * math.hypot(found.stderr, exact.stderr)
    assert found.stderr < 0.15 * found.value


def test_what_has_no_density_or_too_few_draws_is_refused() -> None:
    problem = softmax_regression(4)
    with pytest.raises(ProblemError, match="at least 2 draws of the labels, for the error, found draws=1"):
        fisher_trace(problem, draws=1)
    with pytest.raises(OperatorError, match="negative logarithm of a known density"):
        fisher_trace(Problem(problem.model, nn.MultiMarginLoss(), problem.batches))


def test_each_sample_spends_a_degree_on_its_own_mean() -> None:
    found = fisher_trace(softmax_regression(7), draws=3)
    assert found.probes == 21
    assert found.estimate.degrees == found.mean_eigenvalue.degrees == 14
