"""Free memory is what the machine and every control group leave, whichever is least."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from theodolite.problem import memory

GIB = 2**30


def group(folder: Path, *, limit: str, usage: int, cache: int | None = None, version: int = 2) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{usage}\n")
    if cache is not None:
        name = "inactive_file" if version == 2 else "total_inactive_file"
        (folder / "memory.stat").write_text(f"anon 5\n{name} {cache}\nslab 7\n")


@pytest.fixture
def spare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(memory, "CGROUPS", tmp_path)
    monkeypatch.setattr(memory, "MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(memory, "_available", lambda: 64 * GIB)
    return tmp_path


def found() -> float:
    return memory.spare_memory(torch.device("cpu")) / memory.SHARE / GIB


def test_without_groups_it_is_what_the_machine_has(spare: Path) -> None:
    assert found() == 64
    (spare / "membership").write_text("nonsense\n0::/gone\n")
    (spare / "memory.max").write_text("")
    assert found() == 64


@pytest.mark.parametrize("version", [1, 2])
def test_a_container_that_is_its_own_root_limits(spare: Path, version: int) -> None:
    root = spare if version == 2 else spare / "memory"
    group(root, limit=str(8 * GIB), usage=3 * GIB, version=version)
    assert found() == 5
    group(root, limit=str(8 * GIB), usage=3 * GIB, cache=2 * GIB, version=version)
    assert found() == 7
    group(root, limit=str(8 * GIB), usage=9 * GIB, cache=0, version=version)
    assert found() == 0
    group(root, limit=str(128 * GIB), usage=GIB, version=version)
    assert found() == 64


@pytest.mark.parametrize("version", [1, 2])
def test_the_tightest_of_nested_groups_limits(spare: Path, version: int) -> None:
    root = spare if version == 2 else spare / "memory"
    (spare / "membership").write_text("0::/batch/job 7\n" if version == 2 else "3:cpu:/other\n9:memory:/batch/job 7\n")
    group(root / "batch", limit=str(10 * GIB), usage=4 * GIB, version=version)
    group(root / "batch" / "job 7", limit="max" if version == 2 else str(2**63 - 4096), usage=GIB, version=version)
    group(root / "other", limit="1", usage=0, version=version)
    assert found() == 6


def test_no_limit_is_infinite(tmp_path: Path) -> None:
    group(tmp_path, limit="max", usage=GIB)
    assert min(memory._allowed(tmp_path, tmp_path / "none")) == math.inf
