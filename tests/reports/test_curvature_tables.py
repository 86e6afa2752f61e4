"""What was asked of the curvature beside its spectrum is on the page, each number with its error."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from families import BY_NAME
from theodolite.measures import (
    alignment,
    batch_sharpness,
    classwise,
    directional,
    influence,
    outliers,
    sharpness,
    spectrum,
    track,
    tuning,
)
from theodolite.problem import Problem
from theodolite.records import Record
from theodolite.reports.sections import Section, sections


@pytest.fixture(scope="module")
def problem() -> Problem:
    return BY_NAME["mlp"].problem()


@pytest.fixture(scope="module")
def records(problem: Problem) -> list[Record]:
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)
    pairs = spectrum(problem, k=3)
    return [
        outliers(problem),
        classwise(problem, by="targets"),
        directional(problem, optimizer=optimizer),
        alignment(problem, optimizer, spectrum=pairs),
        sharpness(problem),
        batch_sharpness(problem, sizes=(2, 4, 6), batches=3),
        tuning(problem),
        track(problem, pairs),
        influence(problem, BY_NAME["mlp"].problem(), damping=1.0),
    ]


def named(found: tuple[Section, ...], name: str) -> Section:
    return next(section for section in found if section.name == name)


def test_every_reading_has_a_table_of_its_own_or_a_line(records: list[Record]) -> None:
    found = sections(records)
    detail, others = named(found, "detail"), named(found, "others")
    assert len(detail.blocks) == len(records) - 1
    assert [row[0] for row in others.blocks[0].tables[0].rows] == ["influence"]
    for block in detail.blocks:
        (table,) = block.tables
        assert table.rows
        assert all(len(row) == len(table.columns) for row in table.rows)
        assert block.origin


def test_classes_are_rows_with_their_errors(records: list[Record]) -> None:
    table = named(sections(records), "detail").blocks[1].tables[0]
    record: Any = records[1]
    assert [row[0] for row in table.rows] == list(record.groups)
    assert all("±" in row[-1] for row in table.rows)
