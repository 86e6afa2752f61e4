"""The page of curvature records names every field of every one of them."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from theodolite import records
from theodolite.records.record import Record

PAGE = (Path(__file__).parents[2] / "docs" / "records.md").read_text()
SECTIONS = dict(re.findall(r"^## (\w+)[^\n]*\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))
CURVATURE = (
    "Alignment", "BatchSharpness", "Classwise", "Coherence", "Density", "Directional", "Flow", "Influence", "Outliers",
    "Sharpness", "Smoothness", "Spectrum", "Stability", "Trace", "Tracking", "Transfer", "Tuning",
)  # fmt: skip
SHARED = {field.name for field in dataclasses.fields(Record)}


def test_the_page_has_a_section_for_each_record_and_no_other() -> None:
    assert sorted(SECTIONS) == list(CURVATURE)


@pytest.mark.parametrize("name", CURVATURE)
def test_every_field_is_named_and_every_name_is_there(name: str) -> None:
    kind = getattr(records, name)
    named = set(re.findall(r"`(\w+)`", SECTIONS[name]))
    missing = {field.name for field in dataclasses.fields(kind)} - SHARED - named
    assert not missing, f"docs/records.md does not name {sorted(missing)} of {name}"
    fields = {
        word
        for row in re.findall(r"^\| (`.*?) \|", SECTIONS[name], re.MULTILINE)
        for word in re.findall(r"`(\w+)`", row)
    }
    unknown = {
        word for word in fields if not hasattr(kind, word) and word not in {f.name for f in dataclasses.fields(kind)}
    }
    assert not unknown, f"docs/records.md names {sorted(unknown)}, which {name} does not have"


def test_the_fields_that_all_records_share_are_named() -> None:
    head = PAGE.partition("\n## ")[0]
    assert set(re.findall(r"`(\w+)`", head)) >= SHARED
