"""Films: one frame for all planes, the same levels and axes, the way so far."""

import io

import jaxtyping
import numpy as np
import pytest

from theodolite.records import Plane
from theodolite.reports.figures.description import Contour, Line, Scatter
from theodolite.reports.figures.frames import frames
from theodolite.reports.films import save_film


def planes(*, count=3, **changes):
    """A bowl that moves along a path while it deepens, on grids that differ inside but not at their ends."""
    path = np.array([[-1.0, 1.0], [0.2, 0.5], [0.0, 0.0]])[:count]
    found = []
    for index, (a, b) in enumerate(path):
        alphas, betas = np.array([-2.0, a, 1.0, 2.0]), np.array([-1.0, b, 2.0])
        losses = 10.0**-index * (0.1 + (alphas[:, None] - a) ** 2 + (betas - b) ** 2)
        values = {
            "alphas": alphas, "betas": betas, "losses": losses, "stderrs": np.zeros_like(losses), "step": 100 * index,
            "direction_norms": (1.0, 1.0), "cosine": 0.0, "name": "frame", "parameter_norm": 1.0, "path": path[: index + 1],
            "path_losses": np.ones(index + 1), "path_distances": np.zeros(index + 1), "explained": (0.8, 0.1),
        }  # fmt: skip
        found.append(Plane(**(values | changes)))
    return found


def contours(figures):
    return [next(mark for mark in figure.panels[0].marks if isinstance(mark, Contour)) for figure in figures]


def test_axes_levels_and_size_are_the_same_in_all_frames():
    figures = frames(planes())
    drawn = contours(figures)
    every = np.concatenate([plane.losses.ravel() for plane in planes()])
    for figure, contour in zip(figures, drawn, strict=True):
        assert figure.panels[0].x.limits == (-2, 2)
        assert figure.panels[0].y.limits == (-1, 2)
        assert (figure.width, figure.height) == (figures[0].width, figures[0].height)
        assert contour.scale == "log"
        np.testing.assert_array_equal(contour.levels, drawn[0].levels)
        assert contour.levels[0] < every.min()
        assert contour.levels[-1] > every.max()
    assert [figure.title.rpartition(" · ")[2] for figure in figures] == ["step 0", "step 100", "step 200"]
    assert len({figure.name for figure in figures}) == 3


def test_the_way_so_far_ends_where_the_training_is():
    for index, figure in enumerate(frames(planes())):
        way, here = figure.panels[0].marks[1:]
        assert isinstance(way, Line)
        assert isinstance(here, Scatter)
        assert len(way.x) == index + 1
        assert (here.x[0], here.y[0]) == tuple(planes()[index].path[-1])


def test_one_cap_for_all_frames_and_no_words_that_come_and_go():
    film = planes()
    exploded = film[1].losses.copy()
    exploded[0, 0], exploded[3, 2] = np.inf, 1e12
    film[1] = film[1].replace(losses=exploded)
    drawn = contours(frames(film))
    assert [int(contour.masked.sum()) for contour in drawn] == [0, 2, 0]
    assert all(not contour.masked_label for contour in drawn)
    assert [int(c.masked.sum()) for c in contours(frames(film, cap=0.5))] == [
        int((~np.isfinite(plane.losses) | (plane.losses > 0.5)).sum()) for plane in film
    ]


def test_planes_without_a_finite_loss_or_a_path():
    figures = frames(planes(count=1, losses=np.full((4, 3), np.nan), path=None, path_losses=None, path_distances=None))
    assert contours(figures)[0].masked.all()
    assert len(figures[0].panels[0].marks) == 1


def test_a_film_has_a_frame_for_every_plane(tmp_path):
    images = pytest.importorskip("PIL.Image")
    (gif,) = save_film(planes(), tmp_path / "film.gif", seconds=0.2, scale=0.5)
    with images.open(gif) as film:
        assert (film.format, film.n_frames) == ("GIF", 3)
        sizes, durations, looks = set(), [], set()
        for index in range(3):
            film.seek(index)
            sizes.add(film.size)
            durations.append(film.info["duration"])
            looks.add(film.convert("RGB").tobytes())
    assert len(sizes) == 1
    assert durations == [200, 200, 1000]
    assert len(looks) == 3
    pictures = save_film(planes(count=2), tmp_path / "film.png", scale=0.5)
    assert [file.name for file in pictures] == ["film-0000.png", "film-0001.png"]
    assert {images.open(io.BytesIO(file.read_bytes())).size for file in pictures} == sizes


def drawn(angle, **changes):
    """The second of two planes whose directions are orthonormal, one of them turned."""
    pairs = [(np.array([np.cos(a), 0.0, np.sin(a)]), np.array([0.0, 1.0, 0.0])) for a in (0.0, angle)]
    film = [each.replace(directions=pair) for each, pair in zip(planes(count=2), pairs, strict=True)]
    film[1] = film[1].replace(**changes)
    return film


def test_planes_of_other_directions_or_axes_are_no_film():
    """Directions of one length and angle may still be others: entries are compared, or names and seeds where there are none."""
    assert len(frames(drawn(1e-9))) == 2
    with pytest.raises(
        ValueError, match=r"same directions, found d₁ at a distance of 0\.0\d+ in frame 2 and of length 1 in the"
    ):
        frames(drawn(1e-2))
    assert len(frames(drawn(1e-2, directions=None))) == 2  # named alike
    with pytest.raises(
        ValueError, match=r"found 'frame' with seed 3 in frame 2 and 'frame' with seed None in the first"
    ):
        frames(drawn(0.0, directions=None, seed=3))
    with pytest.raises(ValueError, match=r"found those of 4 parameters in frame 2 and 3 parameters"):
        frames(drawn(0.0, directions=(np.eye(4)[0], np.eye(4)[1])))
    with pytest.raises(ValueError, match=r"same axes, found spans \[\(-4\.0, 4\.0\), \(-1\.0, 2\.0\)\] in frame 2"):
        frames(drawn(0.0, alphas=np.array([-4.0, 0.0, 1.0, 4.0])))
    one = planes(count=1)[0]
    finer = one.replace(alphas=np.array([-2.0, 2.0]), losses=one.losses[:2], stderrs=one.stderrs[:2])
    with pytest.raises(ValueError, match=r"same axes, found 2 × 3 points in frame 2 and 4 × 3 points in the first"):
        frames([one, finer])


def test_refusals(tmp_path, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users run without the checker of the tests
    with pytest.raises(ValueError, match=r"several planes, in the order of the film, found a Plane"):
        save_film(planes()[0], tmp_path / "film.gif")
    with pytest.raises(ValueError, match=r"planes to make a film of, found a str in frame 1"):
        save_film(["film"], tmp_path / "film.gif")
    with pytest.raises(ValueError, match="found none"):
        frames(())
    with pytest.raises(ValueError, match=r"same directions, found lengths and cosine \(2\.0, 1\.0, 0\.0\) in frame 2"):
        frames([planes()[0], planes()[1].replace(direction_norms=(2.0, 1.0))])
    with pytest.raises(ValueError, match=r"\.gif, or a \.png for one file a frame, found 'film\.mp4'"):
        save_film(planes(), tmp_path / "film.mp4")
