"""One thread for reproducible timings and sums; no test may depend on another's random state."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
