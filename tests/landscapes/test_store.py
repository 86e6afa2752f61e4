"""A plane that was interrupted resumes, to the bytes of one that was not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from families import BY_NAME
from theodolite.landscapes import plane
from theodolite.records import Plane

SCRIPT = """
import sys, time
import torch
from families import BY_NAME
from theodolite.landscapes import plane

plane(BY_NAME["mlp"].problem(), points=9, store=sys.argv[1], on_point=lambda done, total: time.sleep(0.05))
"""


def same(one: Plane, other: Plane) -> bool:
    return one.losses.tobytes() == other.losses.tobytes() and one.stderrs.tobytes() == other.stderrs.tobytes()


@pytest.mark.parametrize(("interpolate", "points"), [(None, 11), (0.05, 19)])
def test_an_interrupted_plane_resumes_to_the_same_bytes(tmp_path: Path, interpolate: float | None, points: int) -> None:
    def stop(done: int, total: int) -> None:
        if done == total // 2:
            raise KeyboardInterrupt

    problem = BY_NAME["mlp"].problem()
    with pytest.raises(KeyboardInterrupt):
        plane(problem, points=points, interpolate=interpolate, store=tmp_path, on_point=stop)
    (file,) = tmp_path.iterdir()
    taken = len(file.read_text().splitlines())
    assert taken > 50
    resumed = plane(problem, points=points, interpolate=interpolate, store=tmp_path)
    assert same(resumed, plane(problem, points=points, interpolate=interpolate))
    again = len(file.read_text().splitlines())
    assert same(plane(problem, points=points, interpolate=interpolate, store=tmp_path), resumed)
    assert len(file.read_text().splitlines()) == again  # nothing was read twice


def test_a_killed_plane_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path)], env=environment)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and sum(len(file.read_bytes()) for file in tmp_path.iterdir()) < 4000:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    (file,) = tmp_path.iterdir()
    kept = file.read_bytes()
    assert 0 < kept.count(b"\n") < 80
    file.write_bytes(kept + b'{"at":["0x1.8p-1"')  # as if it had been killed in the middle of a line
    resumed = plane(BY_NAME["mlp"].problem(), points=9, store=tmp_path)
    assert same(resumed, plane(BY_NAME["mlp"].problem(), points=9))
    assert file.read_bytes().startswith(kept)


def test_readings_of_another_problem_or_other_directions_are_not_taken(tmp_path: Path) -> None:
    problem = BY_NAME["mlp"].problem()
    plane(problem, points=3, store=tmp_path)
    other = plane(problem, points=3, seed=1, store=tmp_path)
    assert same(other, plane(problem, points=3, seed=1))
    fewer = problem.replace(microbatch=2)
    np.testing.assert_allclose(
        plane(fewer, points=3, store=tmp_path).losses, plane(problem, points=3).losses, rtol=1e-12
    )
    assert len(list(tmp_path.iterdir())) >= 2
