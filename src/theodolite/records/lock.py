"""One writer a folder: a lock that the operating system releases when its holder dies."""

from __future__ import annotations

import os
import sys
import weakref
from pathlib import Path
from typing import IO

from theodolite.errors import LogError, LogInUseError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_FAR = 1 << 30  # Windows locks bytes and then nobody else can read them: lock one beyond the text
_HELD: weakref.WeakSet[IO[bytes]] = weakref.WeakSet()


def acquire(path: Path) -> IO[bytes]:
    """Take the lock at once or fail; it is held until ``release`` or the end of this process, by SIGKILL too.

    The file stays on disk: deleting it would let two writers lock two files of one name.

    Raises:
        LogInUseError: another writer holds it.
        LogError: the file cannot be opened or its file system has no locks.
    """
    try:
        file = open(path, "a+b", buffering=0)  # noqa: SIM115 - open as long as the lock is held
    except OSError as error:
        raise LogError(f"{path} cannot be opened ({error}). Name a folder that can be written.") from error
    _HELD.add(file)
    try:
        _lock(file)
    except OSError as error:
        holder = _holder(file)
        file.close()
        if isinstance(error, BlockingIOError | PermissionError):
            raise LogInUseError(
                f"{path.parent} is in use: {holder} writes to this run log. Close its Log or Monitor (or end that "
                "process), or name another folder; reading is possible at any time."
            ) from None
        raise LogError(f"{path} cannot be locked ({error}); name a folder on a file system with locks.") from error
    file.truncate(0)
    file.write(b"%d" % os.getpid())
    return file


def release(file: IO[bytes]) -> None:
    """Let the next writer in, also where a child process still has a copy of the descriptor."""
    if not file.closed:
        if sys.platform != "win32":  # closing alone releases a flock only with its last copy
            fcntl.flock(file, fcntl.LOCK_UN)
        file.close()


def _lock(file: IO[bytes]) -> None:
    if sys.platform == "win32":
        file.seek(_FAR)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        # flock belongs to the open file: a second Log in the same process is refused too, which lockf would allow.
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _holder(file: IO[bytes]) -> str:
    file.seek(0)
    text = file.read(32).decode("ascii", errors="replace").strip()
    if text == str(os.getpid()):
        return f"this very process (pid {text})"
    return f"the process with pid {text}" if text.isdigit() else "another process"


def _drop_in_child() -> None:
    """A forked child, such as the worker of a loader, must not hold the lock when its parent was killed."""
    for file in list(_HELD):
        file.close()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_drop_in_child)
