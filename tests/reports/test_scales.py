import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from theodolite.reports.figures.scales import (
    TINY,
    ends_of,
    fitted_axis,
    from_symlog,
    log_ticks,
    symlog_ticks,
    to_symlog,
)

readings = arrays(np.float64, st.integers(1, 40), elements=st.floats(-1e12, 1e12) | st.sampled_from([np.nan, np.inf]))


@given(readings)
def test_an_axis_holds_every_finite_reading(values):
    axis = fitted_axis("loss", values)
    finite = values[np.isfinite(values)]
    assert axis.limits[0] < axis.limits[1]
    assert np.all(((finite >= axis.limits[0]) & (finite <= axis.limits[1])) | (np.abs(finite) < TINY))
    assert axis.scale != "log" or axis.limits[0] > 0


@pytest.mark.parametrize(
    ("values", "scale"),
    [([1.0, 2.0], "linear"), ([1e-3, 1.0], "log"), ([-1e3, 1.0, 2.0, 3.0, 1e3], "symlog"), ([0.0, 1.0], "linear")],
)
def test_the_scale_follows_the_decades(values, scale):
    assert fitted_axis("x", np.array(values)).scale == scale


@given(arrays(np.float64, 20, elements=st.floats(-1e9, 1e9)), st.sampled_from([1e-3, 1.0, 10.0]))
def test_symlog_positions_are_monotone_and_invertible(values, threshold):
    positions = to_symlog(values, threshold=threshold)
    np.testing.assert_allclose(from_symlog(positions, threshold=threshold), values, rtol=1e-9, atol=1e-12)
    order = np.argsort(values)
    assert np.all(np.diff(positions[order]) >= 0)


def test_ticks_lie_within_their_axis():
    signed = fitted_axis("trace", np.array([-1e5, -3.0, 2.0, 5.0, 1e6]))
    ticks = symlog_ticks(signed)
    assert signed.scale == "symlog"
    assert 3 <= len(ticks) <= 10
    assert 0.0 in ticks
    positive = fitted_axis("loss", np.array([1e-3, 1e7]))
    for axis, marked in ((signed, ticks), (positive, log_ticks(positive))):
        assert np.all((marked >= axis.limits[0]) & (marked <= axis.limits[1]))


def test_a_short_logarithmic_axis_has_ticks_too():
    axis = fitted_axis("loss", np.array([0.9, 35.0]))
    assert axis.scale == "log"
    assert set(log_ticks(axis)) == {1.0, 2.0, 5.0, 10.0, 20.0}


def test_a_single_position_has_two_ends():
    assert ends_of(np.array([3.0])) == (2.5, 3.5)
