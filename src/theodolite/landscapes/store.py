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

from theodolite.errors import ProblemError
from theodolite.landscapes.reading import Reading
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
        key: of what is read at every point, and how.
        rank: of this process where several share the points; each writes a file of its own and reads all.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        problem: Problem,
        directions: Sequence[Float[Tensor, " n"]],
        *,
        key: str = "",
        rank: int = 0,
    ) -> None:
        if Path(folder).is_file():
            raise ProblemError(
                f"Expected store to be a folder, which is made where it is missing, found the file {Path(folder)}. Name another."
            )
        content = hashlib.sha256((problem.digest() + key).encode())
        for direction in directions:
            content.update(to_numpy(direction).tobytes())
        name = f"points-{content.hexdigest()[:20]}"
        self.path = Path(folder) / (f"{name}.{rank}.jsonl" if rank else f"{name}.jsonl")
        self._held: dict[Position, Reading] = {}
        for path in sorted(Path(folder).glob(f"{name}*.jsonl")):
            self._held |= _read(path, mend=path == self.path)

    def get(self, position: Position) -> Reading | None:
        """The reading at a position, if it was taken."""
        return self._held.get(position)

    def add(self, position: Position, reading: Reading) -> None:
        """Keep a reading; the line is handed to the system whole before this returns."""
        self._held[position] = reading
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="ascii") as file:
            file.write(written(position, reading) + "\n")


def written(position: Position, reading: Reading) -> str:
    """A reading and where it was taken as one line, with every bit of every number."""
    return json.dumps({"at": [value.hex() for value in position]} | _content(reading), separators=(",", ":"))


def parsed(line: str | bytes) -> tuple[Position, Reading]:
    """What ``written`` wrote."""
    content = json.loads(line)
    return tuple(float.fromhex(value) for value in content["at"]), _reading(content)


def _content(reading: Reading) -> dict[str, Any]:
    found: dict[str, Any] = {
        "loss": reading.loss.hex(),
        "totals": [value.hex() for value in reading.totals.tolist()],
        "weights": [value.hex() for value in reading.weights.tolist()],
        "divisor": reading.divisor.hex(),
    }
    if reading.scalars:
        found["scalars"] = {name: _content(scalar) for name, scalar in reading.scalars.items()}
    if reading.partial:
        found["partial"] = True
    if reading.without is not None:
        found["without"] = [value.hex() for value in reading.without.tolist()]
    return found


def _reading(content: dict[str, Any]) -> Reading:
    return Reading(
        loss=float.fromhex(content["loss"]),
        totals=_numbers(content["totals"]),
        weights=_numbers(content["weights"]),
        divisor=float.fromhex(content["divisor"]),
        scalars={name: _reading(scalar) for name, scalar in content.get("scalars", {}).items()},
        partial=content.get("partial", False),
        without=_numbers(content["without"]) if "without" in content else None,
    )


def _numbers(values: list[str]) -> Float[np.ndarray, " c"]:
    return np.array([float.fromhex(value) for value in values])


def _read(path: Path, *, mend: bool) -> dict[Position, Reading]:
    """All complete lines; a torn one at the end of one's own file is cut off, so that the next begins a line of its own."""
    if not path.exists():
        return {}
    content = path.read_bytes()
    whole = content.rpartition(b"\n")[0] + b"\n" if b"\n" in content else b""
    if mend and whole != content:
        os.truncate(path, len(whole))
    return dict(parsed(line) for line in whole.splitlines())
