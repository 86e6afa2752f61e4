"""Critical cells of surfaces: closed forms, Betti numbers level by level, Euler's identity, stability, and what errors leave."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from scipy import ndimage
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from theodolite.records import Plane
from theodolite.records.topology import topology

EIGHT = np.ones((3, 3))
surfaces = npst.arrays(
    np.float64, npst.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=6), elements=st.integers(0, 6).map(float)
)


def betti(kept: np.ndarray) -> tuple[int, int]:
    """Parts of a set of cells that touch at sides or corners, and holes in it."""
    return ndimage.label(kept, EIGHT)[1], ndimage.label(np.pad(~kept, 1, constant_values=True))[1] - 1


def alive(diagram: np.ndarray, level: float) -> int:
    return int(((diagram[:, 0] <= level) & (diagram[:, 1] > level)).sum())


@settings(max_examples=40)
@given(surfaces, st.data())
def test_parts_and_rings_of_every_level_are_those_counted(values: np.ndarray, data: st.DataObject) -> None:
    holes = data.draw(npst.arrays(bool, values.shape))
    values = np.where(holes, np.nan, values)
    found = topology(values)
    for level in range(7):
        expected = betti(np.nan_to_num(values, nan=np.inf) <= level)
        assert (alive(found.diagram(0), level), alive(found.diagram(1), level)) == expected
    parts, rings = betti(~holes)
    assert found.euler == parts - rings
    assert found.above(1.5).euler == found.euler
    assert all(one.persistence > 1.5 for one in found.above(1.5).minima)


@settings(max_examples=40)
@given(surfaces)
def test_minima_are_lowest_and_merge_with_lower_ones(values: np.ndarray) -> None:
    for one in topology(values).minima:
        site = one.site
        around = values[max(site.row - 1, 0) : site.row + 2, max(site.column - 1, 0) : site.column + 2]
        assert site.loss == around.min() == values[site.row, site.column]
        if one.saddle is not None and one.elder is not None:
            assert one.persistence == one.saddle.loss - site.loss == one.certain
            assert one.elder.loss <= site.loss < one.saddle.loss
            labels = ndimage.label(values < one.saddle.loss, EIGHT)[0]
            assert labels[site.row, site.column] != labels[one.elder.row, one.elder.column]
            labels = ndimage.label(values <= one.saddle.loss, EIGHT)[0]
            assert labels[site.row, site.column] == labels[one.elder.row, one.elder.column]


def two_wells() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(x² − 1)² + x/10 + y²: wells near x = ±1, a saddle near 0, all at roots of 4x³ − 4x + 1/10."""
    x, y = np.linspace(-1.6, 1.6, 321), np.linspace(-1.0, 1.0, 21)
    return x, y, (x[:, None] ** 2 - 1) ** 2 + x[:, None] / 10 + y[None] ** 2


def test_two_wells_and_their_saddle_are_found_where_they_are() -> None:
    x, y, values = two_wells()
    roots = np.sort(np.roots([4, 0, -4, 0.1]).real)
    heights = (roots**2 - 1) ** 2 + roots / 10
    found = topology(values, alphas=x, betas=y)
    lasting = found.above(1e-3)
    assert [one.site.alpha for one in lasting.minima] == pytest.approx(roots[[0, 2]], abs=0.005)
    assert lasting.minima[1].saddle is not None
    assert lasting.minima[1].saddle.alpha == pytest.approx(roots[1], abs=0.005)
    assert lasting.minima[1].persistence == pytest.approx(heights[1] - heights[2], abs=1e-4)
    assert not any(one.site.border for one in lasting.minima)
    assert (found.euler, len(found.maxima), found.rings) == (1, 0, ())
    assert str(found).startswith("2 minima, 1 saddle, 0 maxima, the longest of finite persistence 0.9")


def test_a_peak_has_the_ring_that_closes_around_it() -> None:
    x = np.linspace(-2, 2, 41)
    radius = np.hypot(x[:, None], x[None])
    found = topology((radius**2 - 1) ** 2 + 0.1 * x[:, None], alphas=x, betas=x)
    assert len(found.maxima) == 1 == found.euler
    top = found.maxima[0]
    assert (top.site.beta, top.site.loss) == (0.0, pytest.approx(1.0, abs=0.01))
    assert top.saddle is not None
    assert top.saddle.alpha == pytest.approx(1.0, abs=0.2)
    exploded = topology(np.where(radius < 0.5, np.inf, (radius**2 - 1) ** 2 + 0.1 * x[:, None]))
    assert (len(exploded.maxima), len(exploded.rings), exploded.euler) == (0, 1, 0)


def bottleneck(first: np.ndarray, second: np.ndarray) -> float:
    """Distance of two diagrams by a perfect matching at every candidate."""
    ends = [each[:, 1][:, None] for each in (first, second)]
    with np.errstate(invalid="ignore"):
        apart = np.abs(ends[0] - ends[1].T)
    apart = np.where(np.isinf(ends[0]) & np.isinf(ends[1].T), 0.0, apart)
    costs = np.maximum(np.abs(first[:, :1] - second[:, 0]), apart)
    n, m = costs.shape
    whole = np.zeros((n + m, n + m))
    whole[:n, :m] = costs
    whole[:n, m:] = ((first[:, 1] - first[:, 0]) / 2)[:, None]
    whole[n:, :m] = ((second[:, 1] - second[:, 0]) / 2)[None]
    for limit in np.unique(whole):
        matched = maximum_bipartite_matching(csr_array(whole <= limit))
        if (matched >= 0).all():
            return float(limit)
    return math.inf


@pytest.mark.parametrize("seed", range(3))
def test_diagrams_move_no_farther_than_the_surface(seed: int) -> None:
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=(16, 16)), 1.5) * 5
    noise = rng.uniform(-0.2, 0.2, size=smooth.shape)
    before, after = topology(smooth), topology(smooth + noise)
    for dimension in (0, 1):
        distance = bottleneck(before.diagram(dimension), after.diagram(dimension))
        assert 0 < distance <= np.abs(noise).max() + 1e-12


@pytest.mark.parametrize("seed", range(3))
def test_every_surface_within_the_band_has_what_is_certain(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = ndimage.gaussian_filter(rng.normal(size=(14, 14)), 1.2) * 4
    slack = rng.uniform(0.0, 0.15, size=values.shape)
    found = topology(values, slack=slack)
    sure = [sum(one.certain > 0 for one in each) for each in (found.minima, found.maxima)]
    assert 1 < sure[0] < len(found.minima)
    assert sure[0] == len(found.certain)
    for _ in range(10):
        other = topology(values + slack * rng.choice([-1.0, 1.0], size=values.shape))
        assert len(other.minima) >= sure[0]
        assert len(other.maxima) >= sure[1]
        assert all(one.persistence >= one.certain for one in (*found.minima, *found.maxima))


def test_noise_alone_is_not_taken_for_minima() -> None:
    rng = np.random.default_rng(0)
    wrong = [
        len(topology(rng.normal(size=(7, 7)) * 0.3, stderrs=np.full((7, 7), 0.3), level=0.9).certain) > 1
        for _ in range(100)
    ]
    assert np.mean(wrong) <= 0.1 + 3 * math.sqrt(0.1 * 0.9 / 100)
    _, _, values = two_wells()
    noisy = values[::8] + rng.normal(size=values[::8].shape) * 0.04
    found = topology(noisy, stderrs=np.full(noisy.shape, 0.04))
    assert len(found.minima) > 4
    assert len(found.certain) == 2


def test_unknown_errors_leave_nothing_certain_and_say_so() -> None:
    found = topology(np.array([[0.0, 2.0, 1.0]]), stderrs=np.full((1, 3), np.nan))
    assert len(found.minima) == 2
    assert found.certain == ()
    assert "errors not known" in str(found)
    with pytest.raises(ValueError, match="between 0 and 1"):
        topology(np.zeros((2, 2)), level=1.0)
    with pytest.raises(ValueError, match="dimension 0"):
        topology(np.zeros((2, 2))).diagram(2)


def test_planes_leave_out_what_exploded_and_count_every_error() -> None:
    x, y, values = two_wells()
    values = values[::16, ::2]
    errors = np.where(values == values[10, 5], 0.0, 0.01)
    plane = Plane(
        alphas=x[::16],
        betas=y[::2],
        losses=np.where(values > 2, 2.5, values),
        stderrs=errors,
        direction_norms=(1.0, 1.0),
        cosine=0.0,
        name="given",
        parameter_norm=1.0,
        cap=2.0,
        context={"chunks": 400},
    )
    found = plane.topology()
    assert [one.site.alpha for one in found.minima] == pytest.approx([-0.96, 0.96], abs=0.1)
    assert len(found.certain) == 2
    assert found.euler == 1
    reach = found.reach[2, 2]
    evaluated = np.zeros(values.shape, dtype=bool)
    coarse = plane.replace(evaluated=evaluated, interpolation_error=0.5, precision_error=0.1).topology()
    extent = np.ptp(values[values <= 2])
    assert coarse.reach[2, 2] == pytest.approx(reach + 0.6 * extent)
    assert len(coarse.certain) == 1
    few = plane.replace(context={"chunks": 3}).topology()
    assert few.reach[2, 2] > 10 * reach
