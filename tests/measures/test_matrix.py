"""The table of what works where in docs/curvature.md is what the measures do."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from distributed.worker import on_two_ranks
from measures.matrix_calls import CALLS, data, network, on_rank, outcome
from theodolite.problem import Problem

PAGE = (Path(__file__).parents[2] / "docs" / "curvature.md").read_text()
COLUMNS, *ROWS = (
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in re.findall(r"^\|.*\|$", PAGE.partition("## What works where")[2].partition("\n## ")[0], re.MULTILINE)
    if not line.startswith("|--")
)
TABLE = {row[0]: dict(zip(COLUMNS[1:], row[1:], strict=True)) for row in ROWS}


def from_loss() -> Problem:
    return Problem.from_loss(
        network(), lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]), data()
    )


def hugging_face() -> Problem:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=9, n_positions=6, n_embd=4, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0
    )
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config).double()
    tokens = torch.randint(9, (5, 6))
    batches = [{"input_ids": part, "labels": part} for part in tokens.split((3, 2))]
    return Problem.from_loss(model, lambda model, batch: model(**batch).loss, batches)


def training() -> Problem:
    return Problem(network(normalised=True), nn.CrossEntropyLoss(), data(), mode="train")


def half() -> Problem:
    batches = [(inputs.bfloat16(), targets) for inputs, targets in data()]
    return Problem(network().bfloat16(), nn.CrossEntropyLoss(), batches)


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "from_loss": functools.cache(from_loss),
    "Hugging Face": functools.cache(hugging_face),
    'mode="train"': functools.cache(training),
    "bfloat16": functools.cache(half),
}


@functools.cache
def in_double_precision(name: str) -> float:
    found = outcome(CALLS[name], Problem(network(), nn.CrossEntropyLoss(), data()))
    assert isinstance(found, float), found
    return found


def test_the_table_is_of_all_measures_and_surroundings() -> None:
    assert list(TABLE) == list(CALLS)
    assert sorted(COLUMNS[1:]) == sorted([*PROBLEMS, "two ranks"])


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("column", PROBLEMS)
def test_cells_of_one_process(column: str, name: str) -> None:
    found = outcome(CALLS[name], PROBLEMS[column]())
    agrees(TABLE[name][column], found, name, exact={"from_loss": 1e-6, "bfloat16": 0.1}.get(column))


@pytest.mark.slow
def test_cells_of_two_ranks() -> None:
    for found in on_two_ranks(on_rank):
        for name, cells in TABLE.items():
            agrees(cells["two ranks"], found[name], name, exact=1e-9)


def agrees(cell: str, found: float | str, name: str, *, exact: float | None) -> None:
    """That the outcome is what the cell says; with ``exact`` also the number that it has in double precision and one process."""
    assert cell in ("yes", "coarse", "refused"), cell
    if isinstance(found, str):
        assert cell == "refused", f"{name}: {found}"
        return
    assert cell != "refused", f"{name} gave {found}"
    assert math.isfinite(found), name
    if exact is not None:
        assert found == pytest.approx(in_double_precision(name), rel=0.25 if cell == "coarse" else exact), name
