"""How much memory may be taken."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

from theodolite.errors import ProblemError

# A quarter of what is free: graphs, Krylov bases and the training itself share the device.
SHARE = 0.25
GIB = 2.0**-30
UNKNOWN = 4 * 2**30  # bytes taken for free where no system call tells
CGROUPS, MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def spare_memory(device: torch.device) -> int:
    """Bytes on ``device`` that a measure may take without asking: a quarter of what is free."""
    return int(SHARE * free_memory(device))


def free_memory(device: torch.device) -> int:
    """Bytes on ``device`` beyond which an allocation fails, or the system ends the process."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + cached)
    return int(min(_available(), *_allowed(CGROUPS, MEMBERSHIP)))


def refuse_too_large(samples: int, *, fitting: int, of_each: float, device: torch.device) -> None:
    """Refuse a batch that will not fit into memory, before the system ends the process for it.

    Args:
        samples: of the batch.
        fitting: how many fit.
        of_each: bytes that one takes.
        device: where.

    Raises:
        ProblemError: it does not fit.
    """
    if samples > max(fitting, 0):
        raise ProblemError(
            f"Expected the graph of {samples} samples to fit into memory, found {GIB * samples * of_each:.3g} GiB needed at "
            f"{GIB * 1024 * of_each:.3g} MiB a sample and {GIB * free_memory(device):.3g} GiB free on {device}: the process would "
            "run out of memory. Survey fewer parameters (params=), cast less (dtype=), or pass smaller batches or shorter inputs."
        )


def _available() -> int:
    """Free memory of the machine with what the page cache would give back."""
    with suppress(OSError, StopIteration), Path("/proc/meminfo").open() as lines:
        line = next(line for line in lines if line.startswith("MemAvailable"))
        return int(line.split()[1]) * 1024
    with suppress(ValueError, OSError, AttributeError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return UNKNOWN


def _allowed(root: Path, membership: Path) -> list[float]:
    """What each control group that the process is in leaves it, infinity where none limits it.

    Limits of a container or a batch system do not show in the machine's free memory, and going over them is a kill.
    """
    v2 = ("memory.max", "memory.current", "inactive_file")
    v1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    found = [float("inf")]
    for folder in _groups(root, membership):
        for limit, usage, cache in (v2, v1):
            with suppress(OSError, ValueError):  # no such file in this version; "max" is no number and no limit
                left = int((folder / limit).read_text()) - int((folder / usage).read_text())
                found.append(max(0.0, float(left + _reclaimable(folder, cache))))
    return found


def _groups(root: Path, membership: Path) -> Iterator[Path]:
    """Folders of the process's own memory group and all above it; a container may see its own as the root alone."""
    yield root
    yield root / "memory"
    with suppress(OSError):
        for line in membership.read_text().splitlines():
            _, controllers, path = [*line.split(":", 2), "", ""][:3]
            base = root / "memory" if "memory" in controllers.split(",") else root
            if base != root or not controllers:
                parts = Path(path.strip("/")).parts
                yield from (base.joinpath(*parts[:depth]) for depth in range(1, len(parts) + 1))


def _reclaimable(folder: Path, name: str) -> int:
    """Page cache that the usage counts and the kernel takes back at need; 0 where it is not told."""
    with suppress(OSError, ValueError):
        for line in (folder / "memory.stat").read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
    return 0
