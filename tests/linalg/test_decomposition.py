from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import torch

from linalg.matrices import SPECTRA, Counted, Explodes, vector, with_spectrum
from theodolite.errors import NonFiniteError, OperatorError
from theodolite.linalg import Decomposition, Dense, Diagonal, decompose, hutchinson, integrate, lanczos

MODELS = {
    "outliers": np.concatenate([7.2 * 0.8 ** np.arange(20), 0.01 * np.random.default_rng(0).exponential(size=280)]),
    "flat bulk": np.concatenate([6.6 * np.arange(1, 31) ** -0.8, 0.5 * np.random.default_rng(0).normal(size=270)]),
    "indefinite": np.linspace(-3, 3.5, 300),
}
PARTS = [slice(0, 100), slice(100, 300)]
STEPS = {"outliers": 30, "flat bulk": 16, "indefinite": 16}
SEEDS = 200


@cache
def runs(name: str) -> list[Decomposition]:
    """The same question with 200 seeds, after Lanczos steps that leave a good part to the probes."""
    A = with_spectrum(MODELS[name])
    return [decompose(A, k=1, tol=1.0, steps=STEPS[name], probes=12, parts=PARTS, seed=seed) for seed in range(SEEDS)]


SEEDED = [pytest.param("outliers", marks=pytest.mark.slow), "flat bulk", "indefinite"]


def holds(interval: tuple[float, float], exact: float) -> bool:
    return interval[0] <= exact <= interval[1]


@pytest.mark.parametrize("name", SEEDED)
def test_intervals_of_the_trace_cover_as_often_as_they_say(name: str) -> None:
    share = np.mean([holds(run.trace.interval(), MODELS[name].sum()) for run in runs(name)])
    assert 0.90 <= share <= 0.98


@pytest.mark.parametrize("name", SEEDED)
def test_intervals_of_the_frobenius_norm_cover_as_often_as_they_say(name: str) -> None:
    share = np.mean([holds(run.square.interval(), (MODELS[name] ** 2).sum()) for run in runs(name)])
    assert 0.90 <= share <= 0.98


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("name", SEEDED)
def test_intervals_of_block_traces_cover_as_often_as_they_say(name: str, part: int) -> None:
    exact = float(with_spectrum(MODELS[name]).matrix.diagonal()[PARTS[part]].sum())
    share = np.mean([holds(run.trace.part_intervals()[part], exact) for run in runs(name)])
    assert 0.90 <= share <= 0.98
    mean = np.mean([float(run.trace.parts[part]) for run in runs(name)])
    spread = np.std([float(run.trace.parts[part]) for run in runs(name)])
    assert abs(mean - exact) < 4 * spread / math.sqrt(SEEDS)


@pytest.mark.parametrize("name", SEEDED)
def test_traces_of_functions_lie_within_their_errors(name: str) -> None:
    exact = np.log(np.maximum(MODELS[name], 0) + 0.1).sum()
    found = [run.log_det(0.1) for run in runs(name)]
    claimed = [one for one in found if not math.isnan(one.stderr)]
    assert len(claimed) >= (0.3 if name == "outliers" else 1) * SEEDS  # 30 steps leave some outliers half resolved
    share = np.mean([abs(one.value - exact) <= 1.96 * one.stderr + one.bias for one in claimed])
    assert 0.90 <= share <= 1  # the bias is a bound from above


def test_resolved_outliers_add_no_error_to_traces_of_functions() -> None:
    values = np.log(np.maximum(MODELS["outliers"], 0) + 0.1)
    undeflated = math.sqrt(2 * len(values)) * values.std()
    for seed in range(10):
        value, stderr, bias = decompose(with_spectrum(MODELS["outliers"]), k=5, steps=60, seed=seed).log_det(0.1)
        assert stderr < 0.15 * undeflated
        assert bias < 0.01
        assert abs(value - values.sum()) < 4 * stderr + bias


def test_blocks_add_up_to_the_trace() -> None:
    for run in runs("flat bulk")[:20]:
        assert float(run.trace.parts.sum()) == pytest.approx(run.trace.value, abs=1e-9)


def test_it_costs_its_steps_and_its_probes_and_gives_the_pairs_of_lanczos() -> None:
    A = Counted(with_spectrum(MODELS["outliers"]))
    found = decompose(A, k=5, steps=40, probes=12, memory=2**30)
    assert A.blocks == [1] * 40 + [12]
    assert found.products == A.products == 52
    assert found.pairs.products == 40
    alone = lanczos(A.operator, k=5, tol=1e-9)
    np.testing.assert_allclose(found.pairs.values, alone.values, rtol=1e-8)


@pytest.mark.parametrize("name", SPECTRA)
def test_everything_is_exact_when_the_basis_spans_the_space(name: str) -> None:
    A, spectrum = with_spectrum(SPECTRA[name]), SPECTRA[name]
    n = len(spectrum)
    found = decompose(A, k=1, steps=n, parts=[slice(0, (n + 1) // 2)])
    assert found.products == found.pairs.products == n
    assert found.trace.value == pytest.approx(spectrum.sum(), abs=1e-10)
    assert found.trace.stderr == 0 == found.square.stderr
    assert found.trace.interval() == (found.trace.value, found.trace.value)
    assert found.square.value == pytest.approx((spectrum**2).sum(), abs=1e-8)
    assert found.frobenius[0] == pytest.approx(math.sqrt((spectrum**2).sum()), abs=1e-10)
    assert float(found.trace.parts[0]) == pytest.approx(float(A.matrix.diagonal()[: (n + 1) // 2].sum()), abs=1e-10)
    value, stderr, bias = found.log_det(0.3)
    assert value == pytest.approx(np.log(np.maximum(spectrum, 0) + 0.3).sum(), abs=1e-8)
    assert stderr == bias == 0


def test_a_low_rank_is_exact_long_before() -> None:
    spectrum = np.concatenate([[9.0, 5.0, 3.0, 2.0, 1.0], np.zeros(295)])
    found = decompose(with_spectrum(spectrum), k=2, steps=100)
    assert found.products < 40
    assert found.trace.value == pytest.approx(20, abs=1e-9)
    assert found.trace.stderr < 1e-9
    assert found.quadrature is not None
    np.testing.assert_allclose(found.quadrature.known, [1, 2, 3, 5, 9], atol=1e-9)
    np.testing.assert_allclose(found.quadrature.nodes, [[0]], atol=1e-9)
    assert found.log_det(1.0).value == pytest.approx(np.log1p(spectrum).sum(), abs=1e-8)


@pytest.mark.parametrize("rows", [12, 20])
def test_a_restarted_basis_is_as_exact(rows: int) -> None:
    A = with_spectrum(MODELS["outliers"])
    exact, parts = MODELS["outliers"].sum(), A.matrix.diagonal()[:100].sum()
    found = [
        decompose(A, k=6, tol=1e-11, steps=60, probes=12, parts=PARTS, seed=seed, memory=rows * 300 * 8)
        for seed in range(30)
    ]
    assert all(run.pairs.restarts > 0 for run in found)
    z = [(run.trace.value - exact) / run.trace.stderr for run in found]
    z_part = [float((run.trace.parts[0] - parts) / run.trace.part_stderrs[0]) for run in found]
    # t with 11 degrees of freedom: standard deviation 1.11, and the mean of 30 has error 0.2.
    for scores in (z, z_part):
        assert abs(np.mean(scores)) < 4 * 0.2
        assert 0.7 < np.std(scores) < 1.7
    for run in found[:5]:
        assert run.quadrature is not None
        assert run.quadrature.nodes.shape[1] + len(run.quadrature.known) == rows


def test_an_eigenvalue_counted_too_rarely_is_noticed() -> None:
    # One vector sees 200 once; as one eigenvalue among 300 it would miss two thirds of the trace, without a word.
    spectrum = np.concatenate([[200.0] * 3, np.linspace(-1, 1, 297)])
    A = with_spectrum(spectrum)
    for seed in range(20):
        run = decompose(A, k=1, steps=30, seed=seed)
        assert holds(run.trace.interval(0.9999), 600)
        found = run.integrate(lambda values: values)
        assert math.isnan(found.stderr) or abs(found.value - 600) < 4 * found.stderr


def test_copies_that_fresh_vectors_found_are_counted() -> None:
    spectrum = np.concatenate([[5.0] * 3, np.linspace(-1, 1, 297)])
    run = decompose(with_spectrum(spectrum), k=3, steps=60, verify=True)
    assert run.quadrature is not None
    np.testing.assert_allclose(run.quadrature.known[run.quadrature.known > 2], [5, 5, 5], rtol=1e-6)


def test_a_warm_start_does_not_pose_as_a_random_one() -> None:
    A = with_spectrum(MODELS["flat bulk"])
    before = decompose(A, k=5, steps=40)
    warm = decompose(A, k=5, steps=0, start=before.pairs.vectors)
    assert warm.products < before.products
    assert holds(warm.trace.interval(0.999), MODELS["flat bulk"].sum())
    assert warm.quadrature is None
    with pytest.raises(OperatorError, match="needs a random start vector, this run was given start="):
        warm.log_det(1.0)


def test_after_a_spectrum_the_trace_takes_a_quarter_of_hutchinsons_products() -> None:
    spectrum = np.concatenate([7.2 * 0.8 ** np.arange(20), 0.002 * np.random.default_rng(0).exponential(size=480)])
    A = with_spectrum(spectrum)

    def error(values: list[float]) -> float:
        return math.sqrt(np.mean([(value / spectrum.sum() - 1) ** 2 for value in values]))

    ours = [decompose(A, k=10, steps=0, probes=12, seed=seed) for seed in range(30)]
    products = max(run.products for run in ours)
    assert products <= 40
    assert error([run.trace.value for run in ours]) < 0.01
    assert error([hutchinson(A, probes=8 * products, seed=seed).value for seed in range(30)]) > 0.01


def test_memory_changes_the_blocks_of_probes_and_not_the_estimates() -> None:
    A = Counted(with_spectrum(MODELS["flat bulk"]))
    free = decompose(A, k=1, steps=6, tol=1.0, probes=12, parts=PARTS)
    A.blocks.clear()
    capped = decompose(A, k=1, steps=6, tol=1.0, probes=12, parts=PARTS, memory=30 * 300 * 8)
    assert A.blocks[7:] == [3, 3, 3, 3]  # beside seven rows of thirty
    assert capped.trace.value == pytest.approx(free.trace.value, rel=1e-12)
    torch.testing.assert_close(capped.trace.parts, free.trace.parts)


def test_single_precision_agrees_with_double() -> None:
    single = decompose(with_spectrum(MODELS["outliers"], dtype=torch.float32), k=5, steps=100, parts=PARTS)
    double = decompose(with_spectrum(MODELS["outliers"]), k=5, steps=100, parts=PARTS)
    assert single.trace.value == pytest.approx(double.trace.value, rel=1e-4)
    torch.testing.assert_close(single.trace.parts, double.trace.parts, rtol=1e-3, atol=1e-3)
    assert single.frobenius[0] == pytest.approx(double.frobenius[0], rel=1e-5)
    # No ghosts: each outlier once, although 100 steps in single precision without reorthogonalisation copy λ₁ many times.
    assert single.quadrature is not None
    known = single.quadrature.known.numpy()
    np.testing.assert_allclose(known[known > 0.12][::-1], MODELS["outliers"][:19], rtol=1e-4)
    assert float((single.quadrature.nodes > 0.12).sum()) == 0


def test_the_same_seed_gives_the_same_numbers() -> None:
    A = with_spectrum(MODELS["indefinite"])
    one, two, other = (decompose(A, k=2, tol=0.1, steps=20, seed=seed) for seed in (1, 1, 2))
    assert one.trace.value == two.trace.value != other.trace.value
    assert one.log_det(1.0) == two.log_det(1.0)


def test_probes_do_not_depend_on_the_start() -> None:
    # With the diagonal operator the first probe and the start vector would else share their random bits.
    A = Diagonal(torch.linspace(0, 1, 300, dtype=torch.float64))
    estimates = [decompose(A, k=1, tol=1.0, steps=5, probes=2, seed=seed).trace.value for seed in range(200)]
    assert abs(np.mean(estimates) - 150) < 4 * np.std(estimates) / math.sqrt(200)


def test_nonsense_is_refused_with_the_scene() -> None:
    A = with_spectrum(SPECTRA["indefinite"])
    with pytest.raises(OperatorError, match="at least one probe, found probes=0"):
        decompose(A, k=1, probes=0)
    with pytest.raises(OperatorError, match="needs a symmetric operator"):
        decompose(Dense(vector(4, columns=4)), k=1)
    with pytest.raises(OperatorError, match="needs a damping δ > 0, found 0"):
        decompose(A, k=1).log_det(0.0)
    with pytest.raises(NonFiniteError, match="Product 14 with <Explodes"):
        decompose(Explodes(30, at=14), k=1, steps=10, tol=1.0, probes=4)


def test_one_probe_gives_a_trace_of_unknown_error() -> None:
    run = decompose(with_spectrum(MODELS["indefinite"]), k=1, tol=1.0, steps=10, probes=1)
    assert math.isnan(run.trace.stderr)
    assert all(math.isnan(end) for end in run.trace.interval())
    assert run.quadrature is not None
    assert integrate(run.quadrature, torch.exp).stderr > 0
