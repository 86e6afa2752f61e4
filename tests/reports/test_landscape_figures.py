import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from reports import runs_by_hand
from reports.marks import labelled, marks
from theodolite.reports.figures import Band, Contour, Path, Rule, line, plane
from theodolite.reports.plotly_backend import specification

cells = arrays(
    np.float64, (6, 5), elements=st.floats(-1e8, 1e8) | st.sampled_from([np.nan, np.inf, -np.inf, 1e-9, 1e15])
)


def of(losses, **changes):
    record = runs_by_hand.plane()
    rows, columns = losses.shape
    return record.replace(
        alphas=np.linspace(-1, 1, rows),
        betas=np.linspace(-1, 1, columns),
        losses=losses,
        stderrs=np.full(losses.shape, np.nan),
        **changes,
    )


@given(cells)
def test_masked_cells_are_those_not_finite_or_above_the_cap_and_counted(losses):
    figure = plane(of(losses), cap=1e7)
    (contour,) = marks(figure, Contour)
    lost, capped = ~np.isfinite(losses), np.isfinite(losses) & (losses > 1e7)
    np.testing.assert_array_equal(contour.masked, (lost | capped).T)
    np.testing.assert_array_equal(contour.z[~contour.masked], losses.T[~contour.masked])
    assert (f"{lost.sum()} cells not finite" in figure.caption) == lost.any()
    assert (f"{capped.sum()} cells above" in figure.caption) == capped.any()
    specification(figure)


@given(cells)
@example(np.pad([[5e-324]], ((0, 5), (0, 4))))
def test_every_shown_loss_lies_strictly_within_the_levels(losses):
    (contour,) = marks(plane(of(losses)), Contour)
    shown = contour.z[~contour.masked]
    assert np.all(np.diff(contour.levels) > 0)
    assert np.all((shown > contour.levels[0]) & (shown < contour.levels[-1]))


def test_losses_over_decades_have_logarithmic_levels():
    (contour,) = marks(plane(runs_by_hand.plane(scale=40.0)), Contour)
    assert contour.scale == "log"
    np.testing.assert_allclose(np.diff(np.log(contour.levels)), np.log(contour.levels[1] / contour.levels[0]))


def test_negative_losses_have_linear_levels():
    (contour,) = marks(plane(of(np.linspace(-5, 100, 30).reshape(6, 5))), Contour)
    assert contour.scale == "linear"


def test_an_explosion_is_capped_and_said():
    losses = np.full((6, 5), 0.5)
    losses[0, 0] = 1e12
    figure = plane(of(losses))
    assert marks(figure, Contour)[0].masked.sum() == 1
    assert "1 cells above 5 × 10⁵" in figure.caption or "1 cells above 500,000" in figure.caption


def test_equal_lengths_are_equal_distances():
    panel = plane(runs_by_hand.plane(points=5).replace(direction_norms=(2.0, 6.0))).panels[0]
    assert panel.aspect == pytest.approx(3.0)
    assert "‖d₁‖ = 2" in panel.x.label
    assert "‖d₂‖ = 6" in panel.y.label


def test_an_elongated_plane_says_that_its_scales_differ():
    figure = plane(runs_by_hand.plane(points=5).replace(direction_norms=(1.0, 40.0)))
    assert figure.panels[0].aspect is None
    assert "different scales" in figure.caption


def test_the_path_carries_the_losses_of_the_checkpoints_on_the_scale_of_the_contours():
    record = runs_by_hand.trajectory()
    figure = plane(record)
    (path,), (contour,) = marks(figure, Path), marks(figure, Contour)
    np.testing.assert_array_equal(path.values, record.path_losses)
    np.testing.assert_array_equal(path.levels, contour.levels)
    np.testing.assert_array_equal(np.stack([path.x, path.y], axis=1), record.path)
    assert "91.2 % of the variance" in figure.panels[0].x.label
    assert "6.4 % of the variance" in figure.panels[0].y.label
    assert "step 50" in path.hover[1]
    assert "random walks" in figure.limits


def test_the_caption_states_cosine_points_and_the_error_of_the_data():
    figure = plane(runs_by_hand.plane())
    assert "cosine between the axes 0.004" in figure.caption
    assert "41 × 41 points" in figure.caption
    assert "Standard error of a difference from the centre" in figure.caption
    assert "not known (a single chunk)" in plane(runs_by_hand.trajectory()).caption


def test_a_plane_without_a_finite_loss_can_be_drawn():
    figure = plane(of(np.full((6, 5), np.nan)))
    assert "No loss is finite" in figure.caption
    assert "30 cells not finite" in figure.caption
    specification(figure)


def test_a_line_shows_its_error_as_a_band():
    record = runs_by_hand.line()
    figure = line(record)
    (band,) = marks(figure, Band)
    np.testing.assert_allclose(band.high - record.losses, record.stderrs, atol=1e-12)
    assert [rule.at for rule in marks(figure, Rule)] == [0.0]


def test_a_line_leaves_gaps_where_the_loss_is_not_finite():
    record = runs_by_hand.line(broken=True)
    figure = line(record)
    assert "3 points are not finite" in figure.caption
    assert labelled(figure, Band, "±").x.shape == record.alphas.shape
    specification(figure)


def test_a_line_without_known_error_has_no_band():
    record = runs_by_hand.line()
    figure = line(record.replace(stderrs=np.full_like(record.losses, np.nan)))
    assert not marks(figure, Band)
    assert "not known (a single chunk)" in figure.caption
