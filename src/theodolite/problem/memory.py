"""How much memory may be taken."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import torch

# A quarter of what is free: graphs, Krylov bases and the training itself share the device.
SHARE = 0.25


def spare_memory(device: torch.device) -> int:
    """Bytes on ``device`` that a measure may take without asking: a quarter of what is free."""
    if device.type == "cuda":
        return int(SHARE * torch.cuda.mem_get_info(device)[0])
    return int(SHARE * _available())


def _available() -> int:
    """Free memory of the machine with what the page cache would give back; 4 GiB where no system call tells."""
    with suppress(OSError, StopIteration), Path("/proc/meminfo").open() as lines:
        line = next(line for line in lines if line.startswith("MemAvailable"))
        return int(line.split()[1]) * 1024
    with suppress(ValueError, OSError, AttributeError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 4 * 2**30
