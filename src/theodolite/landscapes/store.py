"""Readings kept on disk as they are taken, so that a grid that was interrupted resumes where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
from jaxtyping import Float
from torch import Tensor

from theodolite.landscapes.readings import Reading
from theodolite.problem import Problem
from theodolite.problem.arrays import to_numpy

Position = tuple[float, ...]


@final
class PointStore:
    """The readings of one problem along given directions, in a file of one line each, with every bit of every number.

    What another process, killed in the middle of a line, left torn is dropped; complete lines are never changed.

    Args:
        folder: made if it does not exist; it may hold the readings of many grids.
        problem: what is read.
        directions: k of them.
    """

    def __init__(
        self, folder: str | os.PathLike[str], problem: Problem, directions: Sequence[Float[Tensor, " n"]]
    ) -> None:
        content = hashlib.sha256(problem.digest().encode())
        for direction in directions:
            content.update(to_numpy(direction).tobytes())
        self.path = Path(folder) / f"points-{content.hexdigest()[:20]}.jsonl"
        self._held = _read(self.path)

    def get(self, position: Position) -> Reading | None:
        """The reading at a position, if it was taken."""
        return self._held.get(position)

    def add(self, position: Position, reading: Reading) -> None:
        """Keep a reading; the line is handed to the system whole before this returns."""
        self._held[position] = reading
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="ascii") as file:
            file.write(_line(position, reading))


def _line(position: Position, reading: Reading) -> str:
    content = {
        "at": [value.hex() for value in position],
        "loss": reading.loss.hex(),
        "totals": [value.hex() for value in reading.totals.tolist()],
        "weights": [value.hex() for value in reading.weights.tolist()],
        "divisor": reading.divisor.hex(),
    }
    return json.dumps(content, separators=(",", ":")) + "\n"


def _read(path: Path) -> dict[Position, Reading]:
    """All complete lines; a torn one at the end is cut off, so that the next begins a line of its own."""
    if not path.exists():
        return {}
    content = path.read_bytes()
    whole = content.rpartition(b"\n")[0] + b"\n" if b"\n" in content else b""
    if whole != content:
        os.truncate(path, len(whole))
    return dict(_parsed(json.loads(line)) for line in whole.splitlines())


def _parsed(line: dict[str, Any]) -> tuple[Position, Reading]:
    reading = Reading(
        loss=float.fromhex(line["loss"]),
        totals=np.array([float.fromhex(value) for value in line["totals"]]),
        weights=np.array([float.fromhex(value) for value in line["weights"]]),
        divisor=float.fromhex(line["divisor"]),
    )
    return tuple(float.fromhex(value) for value in line["at"]), reading
