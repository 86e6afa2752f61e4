"""Every example in the room's docstrings gives what it says."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import theodolite.losses as room

FILES = sorted(module.name for module in pkgutil.iter_modules(room.__path__))


@pytest.mark.parametrize("name", FILES)
def test_examples_run(name: str) -> None:
    module = importlib.import_module(f"theodolite.losses.{name}")
    assert doctest.testmod(module, raise_on_error=False).failed == 0
