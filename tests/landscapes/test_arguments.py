"""Arguments of landscapes that are of the wrong type or place are named, with what to write instead."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jaxtyping
import pytest

from families import BY_NAME
from theodolite.errors import ProblemError
from theodolite.landscapes import line, plane, volume

Survey = Callable[..., Any]


@pytest.fixture(autouse=True)
def as_users_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the checker of the tests."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.mark.parametrize(
    ("survey", "options", "message"),
    [
        *((each, {"span": 1.0}, r"a span of two numbers.*found the float 1\.0") for each in (line, plane, volume)),
        *((each, {"span": "wide"}, r"a span of two numbers.*found the str 'wide'") for each in (line, plane, volume)),
        *(
            (each, {"points": "51"}, r"points to be a whole number, found the str '51'")
            for each in (line, plane, volume)
        ),
        *(
            (each, {"points": 3.5}, r"points to be a whole number, found the float 3\.5")
            for each in (line, plane, volume)
        ),
        *((each, {"seed": None}, "seed to be a whole number, found None") for each in (line, plane, volume)),
        (line, {"points": (3, 3)}, r"points to be a whole number, found the tuple \(3, 3\)"),
        (line, {"span": ("a", 1)}, "first position of span to be a number, found the str 'a'"),
        (plane, {"points": (3, 3, 3)}, r"one number of points or two, found \(3, 3, 3\)"),
        (plane, {"interpolate": -1}, r"between 0 and 1, such as 0\.001, found -1"),
        (plane, {"interpolate": True}, "interpolate to be a number, found the bool True"),
        (volume, {"points": (3, 3)}, r"three of each, found \(3, 3\)"),
    ],
)
def test_what_is_no_grid_is_refused(survey: Survey, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        survey(BY_NAME["mlp"].problem(), **options)


def test_lists_are_as_good_as_tuples() -> None:
    problem = BY_NAME["mlp"].problem()
    assert plane(problem, points=[3, 2], span=[[-1, 1], [0, 1]]).losses.shape == (3, 2)  # type: ignore[arg-type, list-item]
    assert line(problem, points=3, span=[-1, 1]).alphas.tolist() == [-1, 0, 1]  # type: ignore[arg-type]


@pytest.mark.parametrize("survey", [plane, volume])
def test_a_store_is_no_file(survey: Survey, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("")
    with pytest.raises(ProblemError, match=r"Expected store to be a folder.*found the file"):
        survey(BY_NAME["mlp"].problem(), points=3, store=tmp_path / "kept")
