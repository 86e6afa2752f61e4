"""Two processes with half of the data each measure what one process measures on all of it, or say why they cannot."""

from __future__ import annotations

import functools
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distributed.worker import (
    batches,
    everything_on,
    measured,
    model_size,
    net,
    on_two_ranks,
    problem_of,
    vectors,
)
from theodolite.landscapes import plane
from theodolite.measures import gradients
from theodolite.operators import Hessian
from theodolite.problem import Problem

EXACT = 1e-10


@functools.cache
def both_ranks() -> list[Any]:
    return on_two_ranks(everything_on)


def test_two_ranks_equal_one() -> None:
    first, second = (dict(rank["measured"]) for rank in both_ranks())
    model, whole = net(), [*batches()[0::2], *batches()[1::2]]
    problem = problem_of(model, whole)
    expected = measured(problem)
    for found in (first, second):
        for name, value in expected.items():
            close(found.pop(name), value, name)
        close(found["wrapped"], Hessian(problem) @ vectors(model_size(model), 1)[:, 0], "wrapped")
        summed = Problem(model, nn.CrossEntropyLoss(reduction="sum"), whole)
        close(found["summed"], summed.gradient(), "summed")
        close(found["microbatched"], expected["loss"], "microbatched")
        close(found["of halves"], expected["gradient"], "of halves")
        assert found["parts"][0] in (8, 9)  # each rank rounds its share up
        assert sum(found["parts"][1:3]) == problem.samples == 20
        assert found["parts"][3] == found["parts"][0]
        close(found["surveyed"][1], gradients(problem).norm, "surveyed")
        close(found["surveyed"][2], torch.tensor(plane(problem, points=3).losses), "plane")
        assert found["surveyed"][0] == 2  # the first rank wrote, once
    assert first["digest"] == second["digest"] != problem.digest()
    assert (first["monitored"], second["monitored"]) == ([0, 1, 2, 3], [0, 2])  # neither waits for the other
    assert float(second["buffers"][0]) == 0.1  # the model's own statistics are not written to


def close(found: object, expected: object, name: str) -> None:
    if isinstance(expected, Tensor):
        assert isinstance(found, Tensor)
        assert found.shape == expected.shape, name
        assert float((found - expected).norm() / expected.norm()) < EXACT, name
    else:
        assert found == pytest.approx(expected, rel=EXACT), name


def test_ranks_that_disagree_say_so_and_do_not_hang() -> None:
    first, second = (rank["said"] for rank in both_ranks())
    for said in (first, second):
        expect(said["calls"], r"RankError: .*same calls, found rank 0 at losses, rank 1 at gradient")
        expect(
            said["vectors"], r"RankError: Expected the vectors .* equal on all ranks at a product of hessian with 1 vec"
        )
        expect(
            said["numbers of vectors"],
            r"RankError: .*rank 0 at a product of hessian with 1 .*rank 1 at .* with 2 vectors",
        )
        expect(
            said["data"],
            r"RankError: Expected the first batch to differ from rank to rank.*batches\[rank::world_size\]",
        )
        expect(
            said["seeds"], r"RankError: Expected the seed of the problem to be equal .* found 0 on rank 0, 1 on rank 1"
        )
        expect(
            said["selections"],
            r"RankError: Expected the number of parameters to be equal .* found 116 on rank 0, 28 on rank 1",
        )
        expect(said["parameters"], r"RankError: Expected the parameters .* to be equal on all ranks at gradient")
        expect(said["alone"], r"RankError: .*combines what 2 ranks find .* one part alone. Pass group=None")
        for name in ("rows", "groups"):
            expect(said[name], r"OperatorError: .*rows of every sample, found it sharded over 2 ranks.*group=None")
        expect(said["synchronised"], r"ProblemError: .*found SyncBatchNorm in mode='train'")
        assert said["after all"] == ""
        assert said["one rank alone"] == ""
    expect(
        first["failing"],
        r"RankError: Expected all ranks to get through losses, found rank 1 failing there with IndexError",
    )
    expect(first["overflow"], r"RankError: .*rank 1 failing there with NonFiniteError: Expected a finite loss")
    expect(second["overflow"], r"NonFiniteError: Expected a finite loss at the current parameters, found inf")
    expect(first["lost"], r"RankError: Lost the other ranks at losses: .*One of them has ended")


def expect(said: str, pattern: str) -> None:
    assert re.search(pattern, said), said
