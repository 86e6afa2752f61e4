from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from linalg.matrices import SPECTRA, Counted, Explodes, rotation, with_spectrum
from theodolite.errors import NonFiniteError, OperatorError
from theodolite.linalg import Dense, Diagonal, Quadrature, integrate, lanczos, slq
from theodolite.linalg.krylov import Krylov
from theodolite.linalg.probes import Distribution, Probes


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 2e-5)])
@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
@pytest.mark.parametrize("name", SPECTRA)
def test_moments_below_twice_the_steps_are_exact(
    name: str, distribution: Distribution, dtype: torch.dtype, tolerance: float
) -> None:
    A = with_spectrum(SPECTRA[name], dtype=dtype)
    steps, probes = 6, 4
    rule = slq(A, probes=probes, steps=steps, seed=3, distribution=distribution)
    V = Probes(A, seed=3, distribution=distribution).draw(probes).T.double()
    V, matrix = V / V.norm(dim=0), A.matrix.double()
    radius = max(float(np.abs(SPECTRA[name]).max()), 1e-300)
    nodes = rule.nodes.nan_to_num(0.0)
    power = V
    for degree in range(2 * steps):
        moments = (rule.weights * nodes**degree).sum(dim=1)
        np.testing.assert_allclose(moments, (V * power).sum(dim=0), atol=(degree + 1) * tolerance * radius**degree)
        power = matrix @ power


def test_the_steps_are_those_of_single_vector_lanczos() -> None:
    A = with_spectrum(SPECTRA["geometric"])
    rule = slq(A, probes=3, steps=30, seed=1)
    for row, start in enumerate(Probes(A, seed=1).draw(3)):
        run = Krylov(A, start=start, draw=lambda start=start: start, capacity=30)
        for _ in range(30):
            run.advance()
        np.testing.assert_allclose(rule.nodes[row], run.ritz().values, atol=1e-12)
        np.testing.assert_allclose(rule.weights[row], run.ritz().coordinates[0] ** 2, atol=1e-10)


def test_no_ghost_copies_in_single_precision() -> None:
    A = with_spectrum(np.concatenate([1e4 * 0.9 ** np.arange(6), np.linspace(-1, 1, 194)]), dtype=torch.float32)
    rule = slq(A, probes=3, steps=100)
    # With a single pass of Gram-Schmidt one of these probes has 16 nodes above the bulk.
    assert (rule.nodes > 2).sum(dim=1).tolist() == [6, 6, 6]
    assert (rule.nodes.abs() < 1.01).sum(dim=1).tolist() == [94, 94, 94]


def test_each_step_is_one_block_product() -> None:
    A = Counted(with_spectrum(SPECTRA["geometric"]))
    rule = slq(A, probes=5, steps=8)
    assert A.blocks == [5] * 8
    assert rule.products == 40


def test_memory_changes_the_groups_and_not_the_rule() -> None:
    A = Counted(with_spectrum(SPECTRA["geometric"]))
    free = slq(A, probes=5, steps=8, seed=2)
    A.blocks.clear()
    capped = slq(A, probes=5, steps=8, seed=2, memory=2 * (8 + 4) * 120 * 8)
    assert A.blocks == [2] * 16 + [1] * 8
    torch.testing.assert_close(capped.nodes, free.nodes, atol=1e-12, rtol=0)
    torch.testing.assert_close(capped.weights, free.weights, atol=1e-12, rtol=0)
    first = slq(A, probes=2, steps=8, seed=2)
    torch.testing.assert_close(first.nodes, free.nodes[:2], atol=1e-12, rtol=0)


def test_a_space_that_closes_early_is_padded_and_exact() -> None:
    A = Counted(with_spectrum(SPECTRA["low rank"]))
    rule = slq(A, probes=3, steps=10)
    assert rule.products == A.products == 12
    np.testing.assert_allclose(rule.nodes[:, :4], np.tile([0, 1, 2, 3], (3, 1)), atol=1e-12)
    assert rule.nodes[:, 4:].isnan().all()
    assert (rule.weights[:, 4:] == 0).all()
    np.testing.assert_allclose(rule.weights.sum(dim=1), 1)


def test_probes_that_close_early_leave_the_block() -> None:
    # A probe of four signs either is an eigenvector of swapping its halves, and closes at once, or it is not.
    swap = torch.zeros(4, 4, dtype=torch.float64)
    swap[[0, 1, 2, 3], [2, 3, 0, 1]] = 1.0
    A = Counted(Dense(swap))
    rule = slq(A, probes=8, steps=4, distribution="rademacher")
    lengths = (~rule.nodes.isnan()).sum(dim=1)
    assert set(lengths.tolist()) == {1, 2}
    assert A.blocks == [8, int((lengths == 2).sum())]
    assert rule.products == int(lengths.sum())
    np.testing.assert_allclose(rule.nodes[lengths == 2][:, :2], [[-1, 1]] * A.blocks[1], atol=1e-14)


def test_no_more_than_n_steps_are_taken() -> None:
    rule = slq(with_spectrum([1.0, 2.0]), probes=3, steps=50)
    assert rule.nodes.shape == (3, 2)
    np.testing.assert_allclose(rule.nodes, [[1, 2]] * 3, atol=1e-13)


def test_traces_of_functions_lie_within_their_error() -> None:
    spectrum = np.linspace(0.5, 4, 100)
    A = with_spectrum(spectrum)
    z = []
    for seed in range(60):
        mean, stderr, _ = integrate(slq(A, probes=8, steps=20, seed=seed), torch.log)
        z.append((mean - np.log(spectrum).sum()) / stderr)
    # t with 7 degrees of freedom: standard deviation 1.18, and the mean of 60 has error 0.15.
    assert abs(np.mean(z)) < 4 * 0.15
    assert 0.8 < np.std(z) < 1.7


def test_integrate_knows_its_padding_and_its_error() -> None:
    rule = Quadrature(
        nodes=torch.tensor([[1.0, 2.0], [3.0, torch.nan]], dtype=torch.float64),
        weights=torch.tensor([[0.5, 0.5], [1.0, 0.0]], dtype=torch.float64),
        size=10,
        products=3,
    )
    assert integrate(rule, lambda x: x)[:2] == (22.5, pytest.approx(7.5))
    assert math.isnan(integrate(rule, lambda x: x).bias)
    single = Quadrature(nodes=rule.nodes[:1], weights=rule.weights[:1], size=10, products=2)
    assert integrate(single, lambda x: x)[0] == 15
    assert math.isnan(integrate(single, lambda x: x).stderr)
    # A vector uniform on the sphere: 10·√(2·Var/12) with Var = 0.25.
    uniform = replace(single, uniform=True)
    assert integrate(uniform, lambda x: x).stderr == pytest.approx(10 * math.sqrt(2 * 0.25 / 12))
    # One eigenvalue of ten at 100 decides: the weight of a single one is anything.
    lopsided = replace(
        uniform, nodes=torch.tensor([[0.0, 100.0]]).double(), weights=torch.tensor([[0.9, 0.1]]).double()
    )
    assert math.isnan(integrate(lopsided, lambda x: x).stderr)
    # Five known eigenvalues leave five to the rules.
    known = replace(rule, known=torch.arange(5.0, dtype=torch.float64))
    assert integrate(known, lambda x: x)[:2] == (10 + 5 * 2.25, pytest.approx(5 * 0.75))
    with pytest.raises(OperatorError, match=r"elementwise function: 3 nodes went in, a tensor of shape \(\)"):
        integrate(rule, torch.sum)


def test_nonsense_is_refused_with_the_scene() -> None:
    A = with_spectrum([1.0, 2.0])
    with pytest.raises(OperatorError, match="needs a symmetric operator, <Dense: 3×3"):
        slq(Dense(rotation(3)), probes=1, steps=1)
    with pytest.raises(OperatorError, match="at least one probe and one step, found probes=0, steps=2"):
        slq(A, probes=0, steps=2)
    with pytest.raises(OperatorError, match="keep 96 bytes for each probe, found memory=50 bytes"):
        slq(A, probes=1, steps=2, memory=50)
    with pytest.raises(NonFiniteError, match=r"Product 6 with <Explodes.* has 2 of 18 entries"):
        slq(Explodes(9, at=5), probes=2, steps=8)


def test_known_pairs_leave_the_error_of_the_rest() -> None:
    spectrum = np.concatenate([[200.0, 90.0, 50.0, 20.0, 10.0], np.linspace(0, 1, 115)])
    A = Counted(with_spectrum(spectrum))
    pairs = lanczos(A, k=5, tol=1e-6)
    A.blocks.clear()
    z, errors = [], []
    for seed in range(60):
        value, stderr, bias = integrate(slq(A, probes=4, steps=10, seed=seed, deflate=pairs), torch.sqrt)
        z.append((value - np.sqrt(spectrum).sum()) / stderr)
        errors.append(stderr)
        assert bias < stderr
    assert A.products == 60 * 40
    plain = integrate(slq(A, probes=4, steps=10), torch.sqrt).stderr
    assert np.mean(errors) < plain / 3
    # t with 3 degrees of freedom: standard deviation 1.73, and the median of 60 has error 0.18.
    assert abs(np.median(z)) < 4 * 0.18
    assert 0.90 <= np.mean(np.abs(z) < 3.18) <= 1


def test_all_pairs_known_take_no_products() -> None:
    A = Counted(with_spectrum([1.0, 2.0, 3.0]))
    pairs = lanczos(A.operator, k=3)
    rule = slq(A, probes=2, steps=2, deflate=pairs)
    assert A.products == 0
    assert integrate(rule, torch.log) == (pytest.approx(math.log(6)), 0, 0)
    with pytest.raises(OperatorError, match="deflated by eigenpairs of its own size, found 3"):
        slq(with_spectrum([1.0, 2.0]), probes=1, steps=1, deflate=pairs)


def test_the_bias_falls_with_the_steps_and_bounds_the_error() -> None:
    spectrum = np.linspace(0.001, 1, 200)
    A = Diagonal(torch.from_numpy(spectrum))
    biases = []
    for steps in (4, 8, 16, 32):
        rule = slq(A, probes=400, steps=steps)
        value, stderr, bias = integrate(rule, lambda x: (x + 0.001).log())
        exact = np.log(spectrum + 0.001).sum()
        assert abs(value - exact) < 4 * stderr + bias
        biases.append(bias)
    assert biases == sorted(biases, reverse=True)
    assert biases[-1] < biases[0] / 10
