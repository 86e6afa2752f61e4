"""Planes of two processes that divide the data, or the points."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from distributed.worker import message_of
from families import BY_NAME
from theodolite.landscapes import plane
from theodolite.problem import Problem
from theodolite.records import Plane

OPTIONS: dict[str, Any] = {"points": 5, "scalars": ("accuracy", "gradient norm"), "groups": "targets"}


def problem_on(rank: int | None) -> Problem:
    """All batches, or those of one of two ranks."""
    family = BY_NAME["mlp"]
    data = [*family.batches(), *family.batches()[:1]]
    data[3] = (data[3][0] + 0.5, data[3][1])
    if rank is None:
        return family.problem_of(family.model_and_data()[0], [*data[0::2], *data[1::2]], group=None)
    return family.problem_of(family.model_and_data()[0], data[rank::2])


def arrays(found: Plane) -> dict[str, torch.Tensor]:
    named = {"losses": found.losses, "stderrs": found.stderrs}
    named |= {name: found.scalars[name] for name in found.scalars}
    named |= {f"error of {name}": found.scalar_stderrs[name] for name in found.scalars}
    return {name: torch.tensor(values) for name, values in named.items()}


def planes(rank: int) -> dict[str, Any]:
    """The plane of halves of the data, that of halves of the points, and the same again from a folder that is half full."""
    divided, whole = problem_on(rank), problem_on(None)
    found: dict[str, Any] = {"data": arrays(plane(divided, **OPTIONS))}
    found["points"] = arrays(plane(whole, divide="auto", **OPTIONS))
    (folder,) = set(divided.ranks.texts(tempfile.mkdtemp())[:1])
    taken: list[int] = []
    stopped = message_of(
        lambda: plane(whole, divide="auto", store=folder, on_point=stop_first if rank else None, **OPTIONS)
    )
    again = plane(whole, divide="auto", store=folder, on_point=lambda done, total: taken.append(done), **OPTIONS)
    found |= {"stopped": stopped, "resumed": arrays(again), "taken": taken}
    divided.ranks.texts("both have read")
    found["files"] = len(list(Path(folder).iterdir()))
    found["both divided"] = message_of(lambda: plane(divided, divide="auto", points=3))
    found["recalibrated"] = message_of(lambda: plane(norms_on(rank), batchnorm="recalibrated", points=3))
    return found


def stop_first(done: int, total: int) -> None:
    raise InterruptedError(f"after {done} of {total}")


def norms_on(rank: int) -> Problem:
    family = BY_NAME["convnet"]
    return family.problem_of(family.model_and_data()[0], family.batches()[rank : rank + 1])
