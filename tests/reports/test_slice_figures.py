"""Figures of slices, paths and surfaces: every number of a record in its place, on any readings."""

from __future__ import annotations

import json

import numpy as np
import pytest

from reports import runs_by_hand
from reports.marks import labelled, marks
from theodolite.records import Atlas, Connectivity, Path
from theodolite.reports.figures import (
    Band,
    Contour,
    Heat,
    Line,
    Surface,
    Zone,
    atlas,
    connectivity,
    plane,
    profiles,
    ridgelines,
    surface,
)
from theodolite.reports.matplotlib_backend import render
from theodolite.reports.plotly_backend import specification
from theodolite.reports.sections import sections

X = np.linspace(-0.1, 0.1, 5)


def slices(**changes) -> Atlas:
    names = ("gradient", "update", "random", "random")
    curvatures = np.array([4.0, 1.0, 0.2, 0.4])
    values = {
        "names": names, "positions": X, "losses": 1 + 2 * curvatures[:, None] * X**2, "stderrs": np.full((4, 5), 0.01),
        "slopes": np.zeros(4), "slope_stderrs": np.full(4, 0.1), "curvatures": curvatures,
        "curvature_stderrs": np.full(4, 0.3), "norms": np.array([3.0, 0.1, 2.0, 2.0]), "center": 1.0, "parameter_norm": 2.0,
    }  # fmt: skip
    return Atlas(**(values | changes))


def between(**changes) -> Path:
    ts = np.linspace(0, 1, 5)
    values = {
        "ts": ts, "profiles": ("linear", "aligned"), "losses": np.array([[1, 2, 3, 2, 1.0], [1, 1, 1, 1, 1]]),
        "stderrs": np.full((2, 5), 0.1), "height_stderrs": np.full((2, 4), 0.2), "distances": np.array([7.0, 5.0]),
        "predicted": 4 * ts * (1 - ts), "predicted_stderrs": np.full(5, 0.1),
    }  # fmt: skip
    return Path(**(values | changes))


def pairs(barriers: np.ndarray) -> Connectivity:
    count = len(barriers)
    heights = np.repeat(barriers[:, :, None], 4, axis=2)
    return Connectivity(
        names=tuple("abcdefghijkl"[:count]),
        losses=np.ones(count),
        heights=heights,
        height_stderrs=np.full_like(heights, 0.1),
        distances=np.ones((count, count)),
        profile="linear",
        points=11,
    )


def drawn(figure) -> None:
    json.dumps(specification(figure), allow_nan=False)
    assert render(figure, format="png", scale=0.4)[:4] == b"\x89PNG"


def test_a_slice_stands_beside_the_parabola_of_its_derivatives() -> None:
    record = slices()
    figure = atlas(record)
    gradient = labelled(figure, Line, "gradient 4.00 ± 0.30")
    np.testing.assert_array_equal(gradient.y, record.losses[0])
    dashed = [mark for mark in marks(figure, Line) if mark.dash and mark.color == gradient.color]
    np.testing.assert_allclose(dashed[0].y, 1 + 0.5 * 4.0 * (X * 2) ** 2)


def test_draws_are_the_band_between_them_with_the_error_of_their_mean() -> None:
    figure = atlas(slices())
    band = labelled(figure, Band, "random ×2 0.30 ± 0.10")
    np.testing.assert_allclose(band.high - band.low, 2 * (0.4 - 0.2) * X**2)
    assert "spread of the draws" in figure.caption


def test_the_ring_of_an_update_is_where_it_ends() -> None:
    near, far = (atlas(slices(norms=np.array([3.0, length, 2.0, 2.0]))) for length in (0.1, 9.0))
    hovers = [mark for mark in near.panels[0].marks if getattr(mark, "hover", ())]
    assert [mark.x.tolist() for mark in hovers] == [[0.05]]
    assert not [mark for mark in far.panels[0].marks if getattr(mark, "hover", ())]


@pytest.mark.parametrize("value", [np.nan, np.inf, -1e300, 1e300])
def test_atlases_of_any_readings_can_be_drawn(value: float) -> None:
    losses = slices().losses.copy()
    losses[:2, 0] = value
    with np.errstate(all="ignore"):
        figure = atlas(slices(losses=losses, curvatures=np.array([value, 1, 1, 1]), stderrs=np.full((4, 5), np.nan)))
        drawn(figure)
    assert ("2 losses are not finite" in figure.caption) == (not np.isfinite(value))
    assert "not known" in figure.caption


def test_ridges_share_one_scale_and_stand_on_their_steps() -> None:
    records = [
        runs_by_hand.line(step=step, seed=seed, scale=scale) for step, scale in ((0, 9.0), (10, 1.0)) for seed in (0, 1)
    ]
    figure = ridgelines(records)
    (panel,) = figure.panels
    assert panel.y.names == ("0", "10")
    lower, upper = sorted(marks(figure, Line), key=lambda mark: float(mark.y.min()))
    finite = np.concatenate([record.losses for record in records])
    np.testing.assert_allclose(
        (lower.y - upper.y + 1) / 2.2,
        np.log(records[0].losses / records[2].losses) / np.log(finite.max() / finite.min()),
        atol=1e-12,
    )
    drawn(figure)


def test_ridges_of_one_step_or_of_several_kinds_are_refused() -> None:
    first = runs_by_hand.line(step=0)
    with pytest.raises(ValueError, match="two steps or more, found 1 among 2 lines"):
        ridgelines([first, first])
    with pytest.raises(ValueError, match="lines of one name on the same positions, found 'gaussian'"):
        ridgelines([first, runs_by_hand.line(step=1).replace(name="gaussian")])


def test_profiles_carry_their_barriers_and_the_definition_is_named() -> None:
    record = between()
    figure = profiles(record)
    linear = labelled(figure, Line, "linear 2.00 ± 0.20")
    np.testing.assert_array_equal(linear.y, record.losses[0])
    np.testing.assert_allclose(labelled(figure, Line, "predicted").y, 1 + record.predicted)
    assert "max over t of L(t) − (1−t)·L(0) − t·L(1)" in figure.caption
    assert "above the larger end" in figure.caption
    with np.errstate(all="ignore"):
        drawn(profiles(between(losses=np.full((2, 5), np.nan), stderrs=np.full((2, 5), np.nan))))


def test_barriers_of_pairs_are_written_into_their_cells() -> None:
    figure = connectivity(pairs(np.array([[0, 0.5, np.nan], [0.5, 0, 2.0], [np.nan, 2.0, 0]])))
    (heat,) = marks(figure, Heat)
    assert heat.high == 2.0
    assert heat.texts[1] == ("0.5", "", "2")
    assert np.isnan(heat.z[[0, 1, 2], [0, 1, 2]]).all()
    assert "1 pairs are not finite" in figure.caption
    drawn(figure)
    many = connectivity(pairs(np.zeros((12, 12))))
    assert marks(many, Heat)[0].texts == ()


def test_a_surface_has_the_heights_of_its_contours_and_holes_where_they_are_masked() -> None:
    record = runs_by_hand.plane(broken=True, points=21)
    (mark,), (contour,) = marks(surface(record), Surface), marks(plane(record), Contour)
    np.testing.assert_array_equal(mark.z, contour.z)
    np.testing.assert_array_equal(np.isnan(mark.z), ~np.isfinite(record.losses.T))
    assert "Holes are what is masked" in surface(record).caption
    (trace,) = specification(surface(record))["data"]
    assert [[cell is None for cell in row] for row in trace["z"]] == np.isnan(mark.z).tolist()


def test_a_large_surface_is_thinned_to_the_ends_and_said() -> None:
    figure = surface(runs_by_hand.plane(points=150))
    (mark,) = marks(figure, Surface)
    assert mark.z.shape == (51, 51)
    assert (mark.x[0], mark.x[-1]) == (-1.0, 1.0)
    assert "51 × 51 of 150 × 150 points are drawn" in figure.caption


def test_a_level_may_run_where_the_error_of_the_data_reaches_it() -> None:
    record = runs_by_hand.plane(context={"chunks": 9})
    figure = plane(record)
    (contour,) = marks(figure, Contour)
    low, high = record.band(0.9)
    half = (high - low).T / 2
    zones = marks(figure, Zone)
    assert len(zones) == 3
    for zone, level in zip(zones, contour.levels[4:-1:4], strict=True):
        within = np.abs(contour.z - level) <= half
        np.testing.assert_array_equal(np.abs(zone.z) <= 1, within & (half > 0))
    assert not marks(plane(record.replace(stderrs=np.full_like(record.losses, np.nan))), Zone)


def test_the_ring_is_where_the_quadratic_model_holds() -> None:
    record = runs_by_hand.plane().replace(
        slopes=(0.0, 0.0),
        bends=np.eye(2),
        quadratic_radii=np.array([0.1, 0.2, 0.4]),
        quadratic_errors=np.array([0.01, 0.1, 0.2]),
    )
    ring = labelled(plane(record), Line, "quadratic model within 10 %")
    np.testing.assert_allclose(np.hypot(ring.x, ring.y), 0.2)
    assert "within 10 % up to 0.2 from the centre" in plane(record).caption


def test_cells_above_the_cap_of_a_record_or_read_in_part_are_masked() -> None:
    record = runs_by_hand.plane(points=11)
    partial = np.zeros(record.losses.shape, dtype=bool)
    partial[0, 3] = True
    (contour,) = marks(plane(record.replace(cap=2.0, partial=partial)), Contour)
    np.testing.assert_array_equal(contour.masked, ((record.losses > 2.0) | partial).T)


def test_the_page_shows_every_landscape_once() -> None:
    records = (
        slices(),
        runs_by_hand.plane(points=9),
        *(runs_by_hand.line(step=step) for step in (0, 10, 20)),
        between(),
        pairs(np.zeros((3, 3))),
    )
    (section,) = sections(records)
    names = [block.figure.name for block in section.blocks if block.figure is not None]
    assert names == [
        "atlas", "plane-filter", "surface-filter", "line-filter", "ridgelines-filter", "path-linear-aligned",
        "connectivity-linear",
    ]  # fmt: skip
    assert all(block.tables for block in section.blocks if block.figure.name.startswith(("atlas", "path", "conn")))
