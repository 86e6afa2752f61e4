"""Two ranks that hold a half of every vector find what one rank finds on whole ones."""

from __future__ import annotations

import functools
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from distributed.sharded import answers, matrix, on_slices
from distributed.worker import on_two_ranks
from theodolite.linalg import Dense

EXACT = 1e-10
IN_SLICES = {"vectors": 1, "start": 1, "diagonal": 0, "function": 0, "cg": 0, "minres": 0}  # along which dimension


@functools.cache
def both_ranks() -> list[Any]:
    return on_two_ranks(on_slices)


def test_two_ranks_equal_one() -> None:
    for name, expected in answers(Dense(matrix())).items():
        found = [rank["answers"][name] for rank in both_ranks()]
        if name in IN_SLICES:
            found = [torch.cat(found, dim=IN_SLICES[name])]
        for each in found:
            close(each, expected)


def close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).norm() / expected.norm()) < EXACT


def test_restarts_keep_to_the_memory_of_each_rank() -> None:
    truth = torch.linalg.eigvalsh(matrix()).flip(0)[:2]
    for rank in both_ranks():
        assert rank["restarts"] > 0
        close(rank["restarted"], truth)


def test_the_hessian_of_a_data_parallel_problem_may_be_sharded() -> None:
    for rank in both_ranks():
        close(*rank["hessian"])


SAID = {
    "dense": r"OperatorError: Expected whole vectors for dense\(\), found <Dense, part of 41: .*take the dense form of the op",
    "sketch": "OperatorError: Expected whole vectors for a sketch.*hutchinson",
    "blocks": "OperatorError: Expected whole vectors for blocks.*take lanczos",
    "shifted": r"OperatorError: .*an operator made of it.*Sharded\(A.shift\(δ\), group\)",
    "preconditioned": r"OperatorError: .*sharded alike: Sharded\(preconditioner, group\)",
    "narrow": "OperatorError: Sharded over 2 ranks is a square operator with as many rows or more, found <Dense: 1×1",
    "twice": "OperatorError: Expected whole vectors for Sharded, found <Dense, part of 41: .*has slices already",
    "not finite here": r"NonFiniteError: b has 1 entries here|NonFiniteError: b has 0 entries here",
    "not finite": r"NonFiniteError: .*not finite: 1 of|NonFiniteError: .*in the slice of another rank",
}


@pytest.mark.parametrize("name", SAID)
def test_what_needs_whole_vectors_says_so_on_both_ranks(name: str) -> None:
    said = [rank["said"][name] for rank in both_ranks()]
    for message in said:
        assert re.search(SAID[name], message), message
    if name.startswith("not finite"):
        assert said[0] != said[1]  # each tells of its own slice
