import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from theodolite.records import Estimate


@pytest.mark.parametrize(
    ("value", "stderr", "text"),
    [
        (1.2345, 0.04, "1.23 ± 0.04"),
        (1.2345, 0.014, "1.234 ± 0.014"),  # two digits of an error that starts with 1
        (12.34, 0.5, "12.3 ± 0.5"),
        (12345.0, 678.0, "12300 ± 700"),
        (0.0, 2.0, "0 ± 2"),
        (-3.0, 30.0, "0 ± 30"),
        (1.5e9, 2e7, "(1.50 ± 0.02)e+09"),
        (1.5e-7, 2e-9, "(1.50 ± 0.02)e-07"),
        (2.0, 0.0, "2 ± 0"),
        (2.0, 3e-12, "2 ± 3e-12"),
        (2.5, math.nan, "2.5 ± ?"),
        (math.nan, 1.0, "nan ± 1"),
        (math.inf, math.nan, "inf ± ?"),
        (1.0, math.inf, "1 ± inf"),
    ],
)
def test_a_value_is_rounded_to_its_error(value, stderr, text):
    assert str(Estimate(value, stderr)) == text


@settings(deadline=None)
@given(value=st.floats(), stderr=st.floats(min_value=0) | st.just(math.nan))
def test_every_number_can_be_written(value, stderr):
    assert "±" in str(Estimate(value, stderr))


@settings(deadline=None)
@given(value=st.floats(-1e4, 1e4), stderr=st.floats(1e-3, 1e4))
def test_what_is_written_is_within_half_an_error(value, stderr):
    written, error = (float(part) for part in str(Estimate(value, stderr)).split(" ± "))
    assert abs(written - value) <= 0.501 * stderr
    assert error == pytest.approx(stderr, rel=0.5)


def test_the_interval_is_that_of_the_normal_distribution():
    lower, upper = Estimate(10.0, 2.0).interval(0.95)
    assert (lower, upper) == pytest.approx((10 - 3.919928, 10 + 3.919928), abs=1e-6)
    assert Estimate(10.0, 2.0).interval(0.6826894921) == pytest.approx((8, 12), abs=1e-8)
    assert all(map(math.isnan, Estimate(1.0, math.nan).interval()))


def test_an_error_from_few_degrees_of_freedom_has_the_interval_of_student():
    # Student's t at 0.975, from any table.
    for degrees, quantile in ((1, 12.7062), (4, 2.7764), (30, 2.0423)):
        lower, upper = Estimate(10.0, 2.0, degrees).interval(0.95)
        assert (lower, upper) == pytest.approx((10 - 2 * quantile, 10 + 2 * quantile), abs=2e-4)
    assert Estimate(0.0, 1.0, 10**9).interval() == pytest.approx(Estimate(0.0, 1.0).interval(), rel=1e-6)
    assert all(map(math.isnan, Estimate(1.0, math.nan, 1).interval()))


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0])
def test_a_level_is_a_probability(level):
    with pytest.raises(ValueError, match=f"expects a coverage between 0 and 1, for example 0.95; found {level}"):
        Estimate(1.0, 1.0).interval(level)
