"""Arrays of one record in one npz file, written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

UNFINISHED = ".tmp"


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write to a temporary file beside it, force that to the disk and rename it.

    Raises:
        OSError: the disk is full or the folder cannot be written; no file is left behind.
    """
    unfinished = path.with_name(path.name + UNFINISHED)
    try:
        with open(unfinished, "wb") as file:
            # Not np.savez: its first parameter is called file, so an array of that name could not be kept.
            with zipfile.ZipFile(file, "w", allowZip64=True) as members:
                for name, array in arrays.items():
                    with members.open(f"{name}.npy", "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, array, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise
    _force_name_to_disk(path.parent)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a file, read-only; objects are never unpickled.

    Raises:
        OSError: the file is missing.
        ValueError: a member is not a plain array.
        zipfile.BadZipFile: the file is damaged.
    """
    arrays = {}
    with open(path, "rb") as file, zipfile.ZipFile(file) as members:
        for name in members.namelist():
            with members.open(name) as member:
                array = np.lib.format.read_array(member, allow_pickle=False)
            array.setflags(write=False)
            arrays[name.removesuffix(".npy")] = array
    return arrays


def _force_name_to_disk(folder: Path) -> None:
    """A rename survives a power cut only once its folder is on disk; Windows cannot open folders."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
