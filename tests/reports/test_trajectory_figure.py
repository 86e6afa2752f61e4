"""The figure of a trajectory: every number of the record in its place, on any readings."""

import numpy as np
import pytest

from theodolite.records import Trajectory
from theodolite.reports.figures.description import Line
from theodolite.reports.figures.trajectories import trajectory
from theodolite.reports.matplotlib_backend import render


def record(**changes):
    values = {
        "coordinates": np.array([[1.0, 2.0], [0.5, 1.0], [0.0, 0.0]]), "distances": np.array([3.0, 1.0, 0.0]),
        "displacements": np.array([5.0, 2.0, 0.0]), "losses": np.array([9.0, 4.0, 1.0]), "stderrs": np.ones(3),
        "plane_losses": np.array([8.0, 3.0, 1.0]), "center": 1.0, "steps": np.array([0, 10, 20]), "explained": (0.7, 0.2),
        "shares": np.array([0.7, 0.2, 0.1]), "direction_norms": (2.0, 1.0), "cosine": 0.0, "name": "principal",
        "parameter_norm": 1.0,
    }  # fmt: skip
    return Trajectory(**(values | changes))


def test_losses_and_distances_stand_over_the_steps():
    figure = trajectory(record())
    losses, distances = figure.panels
    shown, true = (mark for mark in losses.marks if isinstance(mark, Line))
    np.testing.assert_array_equal(true.y, [9, 4, 1])
    np.testing.assert_array_equal(shown.y, [8, 3, 1])
    np.testing.assert_array_equal(true.x, [0, 10, 20])
    np.testing.assert_array_equal(distances.marks[0].y, [0.6, 0.5, 0])
    assert losses.x == distances.x
    assert "70" in figure.caption
    assert "off the true loss by up to 1" in figure.caption


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"losses": np.array([np.nan, np.inf, 1e30]), "plane_losses": np.array([1.0, -1.0, np.nan])},
        {"steps": None, "stderrs": np.full(3, np.nan)},
        {"losses": np.full(3, np.nan), "plane_losses": np.full(3, np.nan)},
    ],
    ids=["plain", "not finite", "without steps or errors", "nothing finite"],
)
def test_any_readings_can_be_drawn(changes):
    figure = trajectory(record(**changes))
    assert render(figure, format="png", scale=0.5)[:4] == b"\x89PNG"
    if changes.get("steps", 0) is None:
        assert figure.panels[0].x.label == "checkpoint"
        assert "not known" in figure.caption
