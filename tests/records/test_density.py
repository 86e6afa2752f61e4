import math

import numpy as np
import pytest

from theodolite.records import Density

# Exact quadrature of diag(-1, 2, 4) with weights by hand, two probes.
TWO = Density(
    nodes=np.array([[-1.0, 2.0, 4.0], [-1.0, 2.0, 4.0]]), weights=np.array([[0.2, 0.3, 0.5], [0.4, 0.1, 0.5]]), size=3
)


def lanczos_rules(matrix, probes, steps, seed):
    """Nodes and weights of Lanczos with full reorthogonalisation from random sign vectors, in plain numpy."""
    rng, n = np.random.default_rng(seed), len(matrix)
    nodes, weights = np.full((probes, steps), np.nan), np.zeros((probes, steps))
    for row in range(probes):
        basis = [rng.choice([-1.0, 1.0], n) / np.sqrt(n)]
        for _ in range(steps - 1):
            vector = matrix @ basis[-1]
            for _ in range(2):
                vector = vector - np.array(basis).T @ (np.array(basis) @ vector)
            basis.append(vector / np.linalg.norm(vector))
        q = np.array(basis)
        values, vectors = np.linalg.eigh(q @ matrix @ q.T)
        nodes[row], weights[row] = values, vectors[0] ** 2
    return Density(nodes=nodes, weights=weights, size=n)


@pytest.fixture(scope="module")
def oracle():
    rng = np.random.default_rng(1)
    matrix = rng.standard_normal((60, 60)) / 8
    matrix = matrix + matrix.T + np.diag(rng.uniform(0, 2, 60))
    return matrix, lanczos_rules(matrix, probes=200, steps=12, seed=2)


def within(estimate, truth, errors=4.0):
    assert estimate.stderr > 0
    assert abs(estimate.value - truth) <= errors * estimate.stderr


def test_means_and_errors_by_hand():
    assert TWO.moment(1).value == pytest.approx((2.4 + 1.8) / 2)
    assert TWO.moment(1).stderr == pytest.approx(abs(2.4 - 1.8) / 2)  # std(ddof=1)/√2 of two values
    assert TWO.trace.value == pytest.approx(3 * 2.1)
    assert TWO.trace.stderr == pytest.approx(3 * 0.3)
    assert TWO.negative_mass.value == pytest.approx(0.3)
    assert TWO.mass(-1.0, 4.0).value == pytest.approx(0.5)  # from lower inclusive to upper exclusive
    assert TWO.mass(2.0, math.inf).value == pytest.approx(0.7)
    second = (0.2 + 1.2 + 8 + 0.4 + 0.4 + 8) / 2
    assert TWO.frobenius.value == pytest.approx(math.sqrt(3 * second))
    assert (TWO.probes, TWO.lanczos_steps) == (2, 3)


def test_a_single_probe_knows_no_error():
    one = Density(nodes=np.array([[1.0, 2.0]]), weights=np.array([[0.5, 0.5]]), size=10)
    assert one.trace.value == 15
    assert math.isnan(one.trace.stderr)
    assert np.isnan(one.evaluate(one.grid(5))[1]).all()


def test_trace_moments_and_norm_agree_with_the_dense_matrix(oracle):
    matrix, density = oracle
    eigenvalues = np.linalg.eigvalsh(matrix)
    within(density.trace, np.trace(matrix))
    for p in (2, 3, 4):
        within(density.moment(p), np.mean(eigenvalues**p))
    within(density.frobenius, np.linalg.norm(matrix))
    within(density.K(1.0), -eigenvalues[eigenvalues < 0].sum() / eigenvalues[eigenvalues > 0].sum())


def test_the_smoothed_density_integrates_to_one_and_to_the_smoothed_spectrum(oracle):
    matrix, density = oracle
    grid = density.grid(2001)
    values, errors = density.evaluate(grid)
    assert np.trapezoid(values, grid) == pytest.approx(1, abs=1e-3)
    assert (errors >= 0).all()
    width = 0.5
    wide = np.linspace(-8, 8, 41)
    values, errors = density.evaluate(wide, width=width)
    kernels = np.exp(-0.5 * ((wide[:, None] - np.linalg.eigvalsh(matrix)) / width) ** 2) / (
        width * math.sqrt(2 * math.pi)
    )
    assert (np.abs(values - kernels.mean(axis=1)) <= 4.5 * errors + 1e-4).all()


def test_the_grid_covers_the_nodes():
    grid = TWO.grid(101)
    assert len(grid) == 101
    assert grid[0] < -1 < 4 < grid[-1]
    flat = Density(nodes=np.full((2, 2), 3.0), weights=np.full((2, 2), 0.5), size=2)
    values, _ = flat.evaluate(flat.grid(1001))
    assert np.trapezoid(values, flat.grid(1001)) == pytest.approx(1, abs=1e-3)


def test_criteria_by_hand():
    # Kh_n of LLA: (Σ_{λ<0}(|λ|w)ⁿ) / (Σ_{λ>0}(λw)ⁿ) per probe, then the mean.
    first = math.sqrt(0.2) / (math.sqrt(0.6) + math.sqrt(2.0))
    second = math.sqrt(0.4) / (math.sqrt(0.2) + math.sqrt(2.0))
    assert TWO.Kh(0.5).value == pytest.approx((first + second) / 2)
    assert TWO.Kh(0.5).stderr == pytest.approx(abs(first - second) / 2)
    assert TWO.K(1.0).value == pytest.approx((0.2 + 0.4) / (2.6 + 2.2))
    assert TWO.K(0.5).value == pytest.approx(0.6 / ((0.3 + 0.1) * math.sqrt(2) + 2.0))
    assert TWO.K(1.0).stderr > 0


def test_the_error_of_a_ratio_is_that_of_repeated_surveys(oracle):
    matrix, _ = oracle
    ratios = [lanczos_rules(matrix, probes=10, steps=12, seed=seed).K(1.0) for seed in range(100, 160)]
    spread = np.std([ratio.value for ratio in ratios], ddof=1)
    # The standard deviation of 60 values has a relative error of 1/√118 = 9 %; four of them.
    assert np.mean([ratio.stderr for ratio in ratios]) == pytest.approx(spread, rel=0.37)


@pytest.mark.parametrize(
    ("nodes", "expected"), [([0.5, 1.0, 2.0], 0.0), ([-2.0, -1.0, -0.5], math.inf), ([0.0, 0.0, 0.0], 0.0)]
)
def test_criteria_of_one_signed_spectra(nodes, expected):
    density = Density(nodes=np.array([nodes, nodes]), weights=np.full((2, 3), 1 / 3), size=3)
    assert density.Kh(0.5).value == expected
    assert density.K(1.0).value == expected


def test_rounding_around_zero_is_not_negative():
    density = Density(nodes=np.array([[-1e-9, 1e-9, 1.0]]), weights=np.array([[0.4, 0.4, 0.2]]), size=5)
    assert density.negative_mass.value == 0


def test_padding_changes_nothing():
    padded = Density(
        nodes=np.pad(TWO.nodes, ((0, 0), (0, 2)), constant_values=np.nan),
        weights=np.pad(TWO.weights, ((0, 0), (0, 2))),
        size=3,
    )
    for name in ("trace", "frobenius", "negative_mass"):
        assert getattr(padded, name) == getattr(TWO, name)
    assert padded.Kh(0.5) == TWO.Kh(0.5)
    np.testing.assert_array_equal(padded.grid(11), TWO.grid(11))
    np.testing.assert_allclose(padded.evaluate(TWO.grid(11))[0], TWO.evaluate(TWO.grid(11))[0], rtol=1e-14)


def test_a_node_that_is_nan_with_weight_is_not_padding():
    density = Density(nodes=np.array([[math.nan, 1.0]]), weights=np.array([[0.5, 0.5]]), size=3)
    assert math.isnan(density.trace.value)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"expects lower ≤ upper; found 2.0 and 1.0"):
        TWO.mass(2.0, 1.0)
    with pytest.raises(ValueError, match=r"expects a positive kernel width, found 0.0"):
        TWO.evaluate(TWO.grid(5), width=0.0)
