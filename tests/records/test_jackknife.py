"""The delete-m jackknife against its published form, closed forms, and the truth by Monte Carlo."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from records.published_jackknife import published
from theodolite.records import Estimate
from theodolite.records.jackknife import jackknife_stderr, means_without


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), chunks=st.integers(2, 6), axes=st.integers(0, 2))
def test_it_is_the_published_form(seed, chunks, axes):
    rng = np.random.default_rng(seed)
    left_out, whole = rng.standard_normal((chunks, *(3, 2)[:axes])), rng.standard_normal((3, 2)[:axes])
    weights = rng.uniform(0.1, 10, chunks)
    found = jackknife_stderr(left_out, whole=np.asarray(whole), weights=weights)
    np.testing.assert_allclose(found, published(left_out, whole, weights), rtol=1e-9)


def test_equal_weights_give_the_textbook_form_for_a_linear_statistic():
    values = np.random.default_rng(0).standard_normal((7, 4))
    left_out = (values.sum(0) - values) / 6
    found = jackknife_stderr(left_out, whole=values.mean(0), weights=np.full(7, 3.0))
    np.testing.assert_allclose(found, np.sqrt(6 / 7 * np.square(left_out - left_out.mean(0)).sum(0)), rtol=1e-12)


def test_too_few_chunks_know_no_error_and_weightless_ones_do_not_count():
    left_out, whole = np.array([1.0, 2.0, 4.0]), np.array(2.5)
    weights = np.array([1.0, 2.0, 4.0])
    two = jackknife_stderr(left_out[:2], whole=whole, weights=weights[:2])
    padded = jackknife_stderr(left_out, whole=whole, weights=np.array([1.0, 2.0, 0.0]))
    assert padded == two
    assert math.isnan(jackknife_stderr(left_out, whole=whole, weights=np.array([1.0, 0.0, 0.0])))
    assert jackknife_stderr(np.ones((1, 2)), whole=np.ones(2), weights=np.ones(1)).shape == (2,)
    assert math.isnan(jackknife_stderr(np.array([1.0, np.inf]), whole=np.array(np.inf), weights=np.ones(2)))


@pytest.mark.parametrize("sizes", [(200, 1), (100, 100, 5), (50, 50, 2)])
def test_variance_and_coverage_of_a_mean_are_right_whatever_the_sizes(sizes):
    repeats, rng, weights = 4000, np.random.default_rng(1), np.array(sizes, dtype=float)
    ends = np.cumsum(sizes)[:-1]
    squares, naive, covered = np.empty(repeats), np.empty(repeats), 0
    for index in range(repeats):
        samples = rng.standard_normal(sum(sizes))
        totals = np.array([part.sum() for part in np.split(samples, ends)])
        left_out = (totals.sum() - totals) / (weights.sum() - weights)
        stderr = float(jackknife_stderr(left_out, whole=np.array(samples.mean()), weights=weights))
        lower, upper = Estimate(float(samples.mean()), stderr, len(sizes) - 1).interval(0.9)
        squares[index], covered = stderr**2, covered + (lower <= 0 <= upper)
        naive[index] = (len(sizes) - 1) * np.var(left_out)
    true = 1 / sum(sizes)
    assert abs(squares.mean() - true) < 4 * squares.std() / math.sqrt(repeats)
    assert abs(covered / repeats - 0.9) < 4 * math.sqrt(0.09 / repeats)
    assert naive.mean() > 1.2 * true


def test_means_without_a_chunk_keep_the_share_of_their_denominator() -> None:
    totals, weights = np.array([[2.0, 6.0], [3.0, 3.0], [1.0, 4.0]]), np.array([2.0, 3.0, 1.0])
    averaged = means_without(totals, weights=weights, divisor=6.0)
    np.testing.assert_allclose(averaged, [[4 / 4, 7 / 4], [3 / 3, 10 / 3], [5 / 5, 9 / 5]])
    np.testing.assert_allclose(means_without(totals, weights=weights, divisor=1.0), 6 * averaged)
    assert np.isnan(means_without(totals[:1], weights=weights[:1], divisor=2.0)).all()
    assert np.isnan(means_without(totals, weights=np.zeros(3), divisor=0.0)).all()
