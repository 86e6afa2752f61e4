"""Empty a folder of its run log, and of nothing else."""

from __future__ import annotations

import os
from pathlib import Path

from theodolite.errors import LogError
from theodolite.records.arrays import UNFINISHED
from theodolite.records.layout import ARRAYS, LOCK, LOG, check_start, split
from theodolite.records.lock import acquire, release


def discard(folder: str | os.PathLike[str]) -> None:
    """Delete the log and the arrays in a folder that holds a run log alone; a folder that does not exist is left so.

    The folder and its lock file stay, so that no writer can lock a file of the same name meanwhile.

    Args:
        folder: of a run log.

    Raises:
        LogError: the folder holds anything that a run log does not, or a file that only has the name of one; nothing is
            deleted then.
        LogInUseError: another writer has the log open.
    """
    folder = Path(folder)
    if not folder.exists() and not folder.is_symlink():
        return
    _refuse_foreign(folder)
    if not any(folder.iterdir()):
        return
    lock = acquire(folder / LOCK)
    try:
        _refuse_foreign(folder)  # once more: nobody writes to it now
        for path in (*(folder / ARRAYS).glob("*"), folder / LOG):
            path.unlink(missing_ok=True)
    finally:
        release(lock)


def _refuse_foreign(folder: Path) -> None:
    if folder.is_symlink() or not folder.is_dir():
        raise LogError(f"Expected {folder} to be the folder of a run log or not to exist, found another kind of file.")
    foreign = sorted(str(path.relative_to(folder)) for path in _foreign(folder))
    if foreign:
        raise LogError(
            f"Expected {folder} to hold a run log and nothing else before deleting it, found {', '.join(foreign[:5])}"
            f"{f' and {len(foreign) - 5} more' if len(foreign) > 5 else ''}. Move that away, or name another folder."
        )
    if (folder / LOG).exists():
        lines, torn = split((folder / LOG).read_bytes())
        check_start(lines, torn, folder / LOG)


def _foreign(folder: Path) -> list[Path]:
    """Whatever no log puts there."""
    ours = {LOG: Path.is_file, LOCK: Path.is_file, ARRAYS: Path.is_dir}
    found = [
        path for path in folder.iterdir() if path.name not in ours or path.is_symlink() or not ours[path.name](path)
    ]
    if (folder / ARRAYS).is_dir() and not (folder / ARRAYS).is_symlink():
        found += [path for path in (folder / ARRAYS).iterdir() if not _is_array_file(path)]
    return found


def _is_array_file(path: Path) -> bool:
    number, _, rest = path.name.partition(".")
    return number.isdigit() and rest in ("npz", f"npz{UNFINISHED}") and path.is_file() and not path.is_symlink()
