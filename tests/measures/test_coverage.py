"""Stated errors are honest: over 200 seeds 95 % intervals cover the truth in 90 to 98 %, on problems with known answers."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from theodolite.measures import density, spectrum, trace
from theodolite.operators import Hessian
from theodolite.problem import Problem
from theodolite.records import Estimate, Spectrum

SEEDS = 200


def softmax_regression(seed: int = 0, *, features: int = 16, classes: int = 4, samples: int = 120) -> Problem:
    """Its Hessian has the size of features times classes, here 64, and a wide positive spectrum with zeros."""
    g = torch.Generator().manual_seed(seed)
    scales = torch.tensor([1.0 / (1 + j) ** 0.5 for j in range(features)], dtype=torch.float64)
    inputs = torch.randn(samples, features, generator=g, dtype=torch.float64) * scales
    model = nn.Linear(features, classes, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.randn(classes, features, generator=g, dtype=torch.float64))
    targets = torch.randint(classes, (samples,), generator=g)
    return Problem(model, nn.CrossEntropyLoss(), list(zip(inputs.split(30), targets.split(30), strict=True)))


def two_layers(seed: int = 0) -> Problem:
    """An MLP of 182 parameters, whose Hessian has both signs and two layers of very different trace."""
    torch.manual_seed(seed)
    inputs, targets = torch.randn(80, 8, dtype=torch.float64), torch.randint(6, (80,))
    model = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 6)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    return Problem(model, nn.CrossEntropyLoss(), [(inputs, targets)])


def regression(variances: list[float], *, samples: int, chunks: int, seed: int) -> Problem:
    """Squared error of a linear model: the Hessian of the distribution is 2·diag(variances)."""
    g = torch.Generator().manual_seed(seed)
    scales = torch.tensor(variances, dtype=torch.float64).sqrt()
    inputs = torch.randn(samples, len(variances), generator=g, dtype=torch.float64) * scales
    targets = torch.zeros(samples, 1, dtype=torch.float64)
    size = samples // chunks
    model = nn.Linear(len(variances), 1, bias=False).double()
    return Problem(model, nn.MSELoss(), list(zip(inputs.split(size), targets.split(size), strict=True)))


def coverage(found: list[Estimate], truth: float) -> float:
    inside = [low <= truth <= high for low, high in (each.interval(0.95) for each in found)]
    return float(np.mean(inside))


def holds(found: list[Estimate], truth: float) -> bool:
    """Between 90 and 98 %, each end widened by 1.5 standard errors of a share from that many seeds."""
    low, high = (end + sign * 1.5 * math.sqrt(end * (1 - end) / len(found)) for end, sign in ((0.90, -1), (0.98, 1)))
    share = coverage(found, truth)
    print(f"covered {share:.1%}")
    return low <= share <= high


def covers(found: list[Estimate], truth: float) -> bool:
    """At least 90 %: the error of a share also holds what the distance of the nodes leaves open, which one spectrum may not use."""
    return coverage(found, truth) >= 0.90 - 1.5 * math.sqrt(0.09 / len(found))


PROBLEMS: dict[str, Callable[[], Problem]] = {"softmax": softmax_regression, "mlp": two_layers}


@pytest.mark.slow
@pytest.mark.parametrize("name", PROBLEMS)
def test_trace_layers_norm_and_shares_of_one_run(name: str) -> None:
    problem = PROBLEMS[name]()
    exact = torch.linalg.eigvalsh(Hessian(problem).dense())
    found = [spectrum(problem, k=2, probes=12, steps=16, complete=False, seed=seed) for seed in range(SEEDS)]
    assert holds([each.trace_estimate for each in found], float(exact.sum()))
    assert holds([Estimate(each.frobenius, each.frobenius_stderr, 11) for each in found], float(exact.norm()))
    H = Hessian(problem).dense()
    for layer, where in problem.layout.layer_slices.items():
        assert holds([each.by_layer[layer] for each in found], float(H[where, where].trace()))
    threshold = 0.1 * float(exact[-1])
    assert covers([each.mass(threshold, math.inf) for each in found], float((exact >= threshold).double().mean()))
    damping = 0.3 * float(exact[-1])
    positive = exact.clamp(min=0)
    truth = float((positive / (positive + damping)).sum())
    # One probe of 64 dimensions is not quite normal: 84 to 97 % were covered.
    assert coverage([each.effective_dimension(damping) for each in found], truth) > 0.8


@pytest.mark.slow
@pytest.mark.parametrize("name", PROBLEMS)
def test_trace_and_layers_of_hutchinson(name: str) -> None:
    problem = PROBLEMS[name]()
    H = Hessian(problem).dense()
    found = [trace(problem, probes=12, seed=seed) for seed in range(SEEDS)]
    assert holds([each.estimate for each in found], float(H.trace()))
    for layer, where in problem.layout.layer_slices.items():
        assert holds([each.by_layer[layer] for each in found], float(H[where, where].trace()))


@pytest.mark.slow
@pytest.mark.parametrize(("probes", "steps"), [(1, 30), (8, 20)])
def test_mass_of_a_density(probes: int, steps: int) -> None:
    problem = two_layers()
    exact = torch.linalg.eigvalsh(Hessian(problem).dense())
    found = [density(problem, probes=probes, steps=steps, seed=seed) for seed in range(SEEDS)]
    for threshold in (0.05, 0.2):
        at = threshold * float(exact[-1])
        assert covers([each.mass(at, math.inf) for each in found], float((exact >= at).double().mean()))
    assert holds([each.trace for each in found], float(exact.sum()))


SEPARATE = [4.0, 1.0, 0.5] + [0.1] * 5
DECAYING = [1 / (1 + j) ** 0.5 for j in range(40)]
CROWDED = [2.0] + [1.0] * 80


def sharpness(variances: list[float], *, samples: int, seed: int, halves: bool = True) -> Spectrum:
    problem = regression(variances, samples=samples, chunks=16, seed=seed)
    return spectrum(problem, k=1, tol=1e-4, halves=halves, complete=False, seed=seed)


@pytest.mark.slow
@pytest.mark.parametrize("variances", [SEPARATE, DECAYING], ids=["separate", "decaying"])
def test_sharpness_of_the_distribution(variances: list[float]) -> None:
    found = [sharpness(variances, samples=512, seed=seed) for seed in range(SEEDS)]
    assert holds([each.sharpness for each in found], 2 * max(variances))


@pytest.mark.slow
def test_without_halves_a_crowded_sharpness_is_biased_upwards() -> None:
    """The plain jackknife misses the bias of λ₁; the halves take it out, and the interval is wider than it must be."""
    found = [sharpness(CROWDED, samples=512, seed=seed) for seed in range(SEEDS // 2)]
    plain = [Estimate(each.max, float(each.data_stderr[0]), each.data_degrees) for each in found]
    assert coverage(plain, 4.0) < 0.7
    assert coverage([each.sharpness for each in found], 4.0) > 0.9
    bias = np.mean([each.sharpness.value for each in found]) - 4.0
    assert abs(bias) < 0.3 * (np.mean([each.max for each in found]) - 4.0)


@pytest.mark.slow
def test_the_data_error_of_a_trace() -> None:
    truth, found, whole = 2 * sum(SEPARATE), [], []
    for seed in range(SEEDS):
        problem = regression(SEPARATE, samples=480, chunks=16, seed=seed)
        found.append(trace(problem, probes=64, seed=seed).data_estimate)
        record = spectrum(problem, k=1, probes=2, steps=problem.n, complete=False, seed=seed)
        whole.append(Estimate(record.trace, record.trace_data_stderr, record.data_degrees))
    assert holds(whole, truth)
    assert coverage(found, truth) > 0.85  # 64 probes leave an error of their own


def test_coverage_counts_what_it_should() -> None:
    rng = np.random.default_rng(0)
    means: Tensor = torch.from_numpy(rng.standard_normal((SEEDS, 8)))
    exact = [Estimate(float(row.mean()), float(row.std()) / math.sqrt(8), 7) for row in means]
    assert holds(exact, 0.0)
    assert not holds([Estimate(each.value, each.stderr / 2, 7) for each in exact], 0.0)
    assert not holds([Estimate(each.value, each.stderr * 4, 7) for each in exact], 0.0)
