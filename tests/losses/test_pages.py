"""The pages of the losses: their examples run, their links lead somewhere, and the catalogue lists every loss."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn

import theodolite.losses as room
from theodolite.losses.registry import LOSSES

PAGES = Path(__file__).parents[2] / "docs" / "losses"


def test_python_blocks_run_in_order() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (PAGES / "index.md").read_text(), flags=re.DOTALL | re.MULTILINE)
    names: dict[str, object] = {"__name__": "example"}
    for number, block in enumerate(blocks):
        exec(compile(block, f"index.md, block {number + 1}", "exec"), names)
    assert len(blocks) >= 2


@pytest.mark.parametrize("page", ["index.md", "catalogue.md"])
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", (PAGES / page).read_text()):
        assert "://" in target or (PAGES / target).exists(), target


def test_catalogue_lists_every_loss() -> None:
    listed = set(re.findall(r"^\| \w+ \| `(\w+)` \|", (PAGES / "catalogue.md").read_text(), flags=re.MULTILINE))
    assert listed == set(LOSSES), "run python benchmarks/losses.py page"


def test_named_losses_exist() -> None:
    known = {*room.__all__, *(name for loss in LOSSES.values() for name in _options(loss.function))}
    for name in re.findall(r"`([a-z_0-9]+)`", (PAGES / "index.md").read_text()):
        of_torch = hasattr(nn.functional, name) or hasattr(room.LossModule, name)
        assert name in known or of_torch or name in {"torch", "microbatch", "theodolite"}, name


def _options(function: Callable[..., object]) -> list[str]:
    return list(inspect.signature(function).parameters)
