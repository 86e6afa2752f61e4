"""Two processes draw the plane of one, whether they divide its data or its points."""

from __future__ import annotations

import functools
from typing import Any

import torch

from distributed.landscapes import OPTIONS, arrays, planes, problem_on
from distributed.worker import on_two_ranks
from theodolite.landscapes import plane


@functools.cache
def both_ranks() -> list[Any]:
    return on_two_ranks(planes)


def test_two_ranks_draw_the_plane_of_one() -> None:
    expected = arrays(plane(problem_on(None), **OPTIONS))
    assert {"accuracy", "gradient norm", "loss of 0", "error of loss of 2"} <= set(expected)
    for rank in both_ranks():
        for name, values in expected.items():
            torch.testing.assert_close(rank["data"][name], values, rtol=1e-9, atol=1e-12, equal_nan=True)


def test_ranks_that_divide_points_give_the_bytes_of_one() -> None:
    expected = arrays(plane(problem_on(None), **OPTIONS))
    for rank in both_ranks():
        for drawn in (rank["points"], rank["resumed"]):
            for name, values in expected.items():
                assert drawn[name].numpy().tobytes() == values.numpy().tobytes(), name


def test_a_rank_that_fails_is_known_to_both_and_the_plane_resumes() -> None:
    first, second = both_ranks()
    assert "InterruptedError: after 2 of 25" in second["stopped"]
    assert first["stopped"].startswith("RankError")
    assert "rank 1 failing there with InterruptedError" in first["stopped"]
    assert first["files"] == 2
    for rank in (first, second):
        assert len(rank["taken"]) in (12, 13)


def test_what_cannot_be_divided_is_refused() -> None:
    for rank in both_ranks():
        assert "ProblemError: Expected a problem with all its data on every rank" in rank["both divided"]
        assert "Expected all data on one process to recalibrate BatchNorm, found 2 ranks" in rank["recalibrated"]
