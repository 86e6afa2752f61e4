import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from theodolite.reports.figures.thinning import thin

curves = arrays(np.float64, st.integers(1, 400), elements=st.floats(-1e6, 1e6) | st.sampled_from([np.nan, -np.inf]))


@given(curves, st.integers(5, 60))
def test_thinning_keeps_ends_extremes_and_gaps(curve, limit):
    kept = thin(curve, limit=limit)
    assert len(kept) <= max(limit, 5)
    assert kept[0] == 0
    assert kept[-1] == len(curve) - 1
    assert np.all(np.diff(kept) > 0)
    finite = curve[np.isfinite(curve)]
    if finite.size:
        assert np.nanmax(np.where(np.isfinite(curve[kept]), curve[kept], np.nan)) == finite.max()
        assert np.nanmin(np.where(np.isfinite(curve[kept]), curve[kept], np.nan)) == finite.min()
    if finite.size < curve.size:
        assert not np.isfinite(curve[kept]).all()
        assert np.argmax(~np.isfinite(curve)) in kept


def test_a_short_curve_stays_whole():
    np.testing.assert_array_equal(thin(np.arange(7.0), limit=7), np.arange(7))


def test_every_stretch_keeps_its_own_extremes():
    curve = np.sin(np.arange(3000) / 5)
    kept = thin(curve, limit=300)
    for stretch in np.array_split(np.arange(3000), 99):
        assert curve[stretch].max() in curve[np.intersect1d(kept, stretch)]


def test_a_limit_too_small_is_refused():
    with pytest.raises(ValueError, match="limit must be >= 5, found 3"):
        thin(np.zeros(10), limit=3)
