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
