import math

import numpy as np
import pytest

from records.record_samples import spectrum
from theodolite.records import Estimate


def of(*eigenvalues, **changes):
    """A spectrum of given eigenvalues."""
    count = len(eigenvalues)
    values = {"residuals": np.zeros(count), "converged": np.ones(count, bool), "data_stderr": np.full(count, np.nan)}
    return spectrum(eigenvalues=np.array(eigenvalues, dtype=float), **(values | changes))


def test_the_extremes_and_the_largest_learning_rate():
    record = spectrum()
    assert (record.max, record.min) == (12.34, -1.234)
    assert record.max_learning_rate.value == 2 / 12.34
    # d(2/λ) = 2 dλ / λ²
    assert record.max_learning_rate.stderr == pytest.approx(2 * 0.5 / 12.34**2)
    assert of(-1.0, -2.0).max_learning_rate.value == math.inf
    assert math.isnan(of(4.0).max_learning_rate.stderr)


@pytest.mark.parametrize(
    ("eigenvalues", "re"),
    [((4.0, 2.0, -1.0), 0.25), ((2.0, 1.0, 0.5), 0.0), ((-0.5, -1.0, -2.0), math.inf), ((3.0, 0.0), 0.0)],
)
def test_re_is_signed(eigenvalues, re):
    assert of(*eigenvalues).re == re


def test_an_end_that_was_not_computed_is_refused():
    record = spectrum(which="largest")
    assert record.max == 12.34
    for name in ("min", "re"):
        with pytest.raises(
            ValueError, match=r"which='largest' and does not know the smallest; measure it with which='both'"
        ):
            getattr(record, name)
    with pytest.raises(ValueError, match="does not know the largest"):
        spectrum(which="smallest").max_learning_rate
    with pytest.raises(ValueError, match="holds 0 eigenvalues"):
        of().max
    assert "λₙ = -1.23" in repr(spectrum(which="smallest"))


def test_the_error_of_the_algorithm_is_the_residual_norm():
    # Dense oracle: a residual vector of a perturbed eigenvector bounds the distance to the nearest eigenvalue.
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((20, 20))
    matrix = matrix + matrix.T
    exact, vectors = np.linalg.eigh(matrix)
    vector = vectors[:, -1] + 0.01 * rng.standard_normal(20)
    vector /= np.linalg.norm(vector)
    value = vector @ matrix @ vector
    norm = np.linalg.norm(matrix @ vector - value * vector)
    record = of(value, residuals=np.array([norm / value]))
    assert record.error == pytest.approx([norm])
    assert np.abs(exact - value).min() <= record.error[0]


def test_small_eigenvalues_have_errors_relative_to_the_largest():
    record = of(100.0, 1e-9, residuals=np.array([1e-3, 1e-2]))
    np.testing.assert_allclose(record.error, [0.1, 1e-2 * 0.1])
    assert of().error.shape == (0,)


def test_the_radius_of_the_run_is_the_scale_of_small_residuals():
    record = of(0.5, 1e-9, residuals=np.array([1e-2, 1e-2]), radius=1000.0)
    np.testing.assert_allclose(record.error, [1e-2, 1e-2])


def test_all_converged_means_all():
    assert spectrum().all_converged
    assert not spectrum(converged=np.array([True, True, False])).all_converged
    assert isinstance(spectrum().max_learning_rate, Estimate)


def with_rules(*eigenvalues, k, **changes):
    """The k largest eigenvalues of a spectrum that is known whole."""
    values = np.sort(np.array(eigenvalues, dtype=float))[::-1]
    count = len(values)
    rules = {"nodes": values[None], "weights": np.full((1, count), 1 / count), "deflated": count, "size": count}
    sums = {"trace": values.sum(), "trace_stderr": 0.0, "frobenius": np.linalg.norm(values), "frobenius_stderr": 0.0}
    return of(*values[:k], **({"which": "largest", "probes": 1} | rules | sums | changes))


def test_criteria_of_lla_by_hand():
    # Spec A2: diag(−1, 2, 4) with equal weights.
    record = of(4.0, 2.0, -1.0, krylov_nodes=np.array([-1.0, 2.0, 4.0]), krylov_weights=np.full(3, 1 / 3))
    assert (record.re, record.re_unsigned) == (0.25, 0.25)
    assert record.Kh(0.5).value == pytest.approx(0.2928932188)
    assert (of(2.0, 1.0, 0.5).re_unsigned, of(0.0, -1.0).re_unsigned) == (0.25, math.inf)
    convex = of(2.0, krylov_nodes=np.array([1.0, 2.0]), krylov_weights=np.array([0.5, 0.5]))
    assert convex.Kh().value == 0
    with pytest.raises(ValueError, match="Measure it without start="):
        of(1.0).Kh()


def test_what_was_not_measured_is_named():
    record = of(2.0, 1.0)
    for name in ("negative_mass", "density", "conditioning", "effective_rank", "bulk", "type", "by_layer"):
        with pytest.raises(ValueError, match=r"holds eigenpairs alone.*measure it with probes=12"):
            getattr(record, name)
    assert math.isnan(record.trace_estimate.value)


def test_effective_rank_counts_equal_eigenvalues():
    assert with_rules(3.0, 3.0, 3.0, 0.0, 0.0, k=2).effective_rank.value == pytest.approx(3)
    noisy = with_rules(2.0, 1.0, k=1, trace_stderr=0.3, frobenius_stderr=0.0, probes=5)
    assert noisy.effective_rank.stderr == pytest.approx(2 * (9 / 5) * 0.1)
    assert noisy.effective_rank.degrees == 4


def test_a_zero_operator_has_no_effective_rank_and_a_zero_trace_has_one():
    zero = with_rules(0.0, 0.0, 0.0, k=2, trace=0.0, trace_stderr=0.0, frobenius=0.0, frobenius_stderr=0.0, probes=4)
    assert math.isnan(zero.effective_rank.value)
    assert math.isnan(zero.effective_rank.stderr)
    level = with_rules(
        1.0, 0.0, -1.0, k=2, trace=0.0, trace_stderr=0.1, frobenius=2**0.5, frobenius_stderr=0.1, probes=4
    )
    assert level.effective_rank.value == 0
    usual = with_rules(
        2.0, 1.0, 1.0, k=2, trace=4.0, trace_stderr=0.4, frobenius=6**0.5, frobenius_stderr=0.1, probes=4
    )
    assert usual.effective_rank.stderr == pytest.approx(2 * 16 / 6 * (0.1 + 0.1 / 6**0.5))


def test_outliers_stand_above_the_bulk():
    rng = np.random.default_rng(0)
    bulk = 0.01 * rng.standard_normal(500)
    record = with_rules(*bulk, 5.0, 4.0, 3.0, k=6)
    np.testing.assert_array_equal(record.outliers(), [5.0, 4.0, 3.0])
    assert record.gap() == 3
    assert record.decay(3) == pytest.approx(5.0 / np.sort(bulk)[-1])
    assert record.conditioning == pytest.approx(5.0 / record.median_magnitude)
    with pytest.raises(ValueError, match=r"All 2 largest eigenvalues lie more than 10 scales .*larger k than 2"):
        with_rules(*bulk, 5.0, 4.0, 3.0, k=2).outliers()
    with pytest.raises(ValueError, match=r"decay\(6\) needs the 7 largest eigenvalues; this spectrum holds 6"):
        record.decay(6)
    with pytest.raises(ValueError, match=r"gap.*needs two positive"):
        of(1.0, -1.0).gap()


def test_gaps_among_rounding_or_unconverged_eigenvalues_do_not_count():
    assert of(9.0, 8.0, 7.0, 1e-9, 1e-17, which="largest").gap() == 3
    assert of(9.0, 8.0, 1.0, 0.9, 1e-4, converged=np.array([True] * 4 + [False]), which="largest").gap() == 2
    assert of(9.0, 8.0, 1.0, 0.9, 1e-4, which="largest").gap(4) == 2
    with pytest.raises(ValueError, match="holds 1 that converged"):
        of(9.0, 1.0, converged=np.array([True, False]), which="largest").gap()


def test_the_upper_end_of_both():
    np.testing.assert_array_equal(of(5.0, 4.0, 3.0, -1.0, -2.0, which="both").top, [5.0, 4.0, 3.0])
    assert of(-1.0, which="smallest").top.size == 0


def test_sharpness_is_a_third_of_the_way_to_the_halves():
    record = spectrum(split_half=10.34, context={"chunks": 5})
    assert record.sharpness.value == pytest.approx((2 * 12.34 + 10.34) / 3)
    assert record.sharpness.stderr == pytest.approx(math.hypot(0.5, 2 / 3))
    assert record.sharpness.degrees == 4
    assert record.max_learning_rate.value == pytest.approx(2 / record.sharpness.value)
    lower = of(-1.0, -3.0, which="smallest", split_half=-1.5)
    assert lower.extreme.value == pytest.approx(-2.5)
    assert spectrum().sharpness == Estimate(12.34, 0.5, None)


def test_subspaces_are_compared_by_principal_angles():
    angle = 0.3
    first = of(2.0, 1.0, eigenvectors=np.eye(3)[:2], size=3)
    turned = np.array([[1.0, 0.0, 0.0], [0.0, math.cos(angle), math.sin(angle)]])
    second = of(2.0, 1.0, eigenvectors=turned, size=3)
    np.testing.assert_allclose(first.angles(second), [0.0, angle], atol=1e-7)
    assert first.overlap(second) == pytest.approx((1 + math.cos(angle) ** 2) / 2)
    assert first.overlap(of(2.0, 1.0, eigenvectors=turned[::-1], size=3)) == pytest.approx(first.overlap(second))
    with pytest.raises(ValueError, match="holds no eigenvectors"):
        first.overlap(of(1.0))
    with pytest.raises(ValueError, match="other parameters, 3 and 4"):
        first.overlap(of(1.0, eigenvectors=np.eye(4)[:1], size=4))


def test_layers_have_their_traces():
    record = of(
        1.0, layers=("a", "b"), layer_traces=np.array([2.0, 1.0]), layer_trace_stderrs=np.array([0.2, 0.1]), probes=4
    )
    assert record.by_layer == {"a": Estimate(2.0, 0.2, 3), "b": Estimate(1.0, 0.1, 3)}


def test_the_density_of_a_spectrum_keeps_its_place():
    record = with_rules(3.0, 1.0, k=1, step=7, seed=2)
    density = record.density
    assert (density.step, density.seed, density.size, density.deflated) == (7, 2, 2, 2)
    assert density.trace == Estimate(4.0, 0.0)
    assert "tr = 4 (exact)" in repr(record)
