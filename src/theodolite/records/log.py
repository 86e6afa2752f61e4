"""The run log as its one writer sees it: an append-only folder."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import final

from theodolite.errors import LogError
from theodolite.records.arrays import UNFINISHED, write_arrays
from theodolite.records.codec import encode
from theodolite.records.layout import ARRAYS, LOCK, LOG, arrays_path, check_start, from_line, header, split, to_line
from theodolite.records.lock import acquire, release
from theodolite.records.record import Record


@final
class Log:
    """Append records to a folder that survives ``kill -9`` and a full disk, and can be read meanwhile.

    A line is written whole, after the arrays that it names. What a crash left torn is cut off when the log is opened
    again; no complete line is ever changed. Several threads may append; a second writer is refused.

    Cost: one line of text a record (tens of microseconds); a record with arrays also waits for the disk.

    Args:
        folder: made if it does not exist.
        resume: append to a log that is there already; False refuses it.

    Raises:
        LogInUseError: another writer has the log open.
        LogError: the folder cannot be written, or holds a log that cannot be continued.

    Example:
        >>> import tempfile
        >>> from theodolite.records import Log, Scalars, read
        >>> folder = tempfile.mkdtemp()
        >>> with Log(folder) as log:
        ...     _ = log.append(Scalars(step=0, values={"loss": 2.3}))
        >>> read(folder).last(Scalars).values["loss"]
        2.3
    """

    def __init__(self, folder: str | os.PathLike[str], *, resume: bool = True) -> None:
        self.folder = Path(folder)
        self.path = self.folder / LOG
        self._process, self._turn = os.getpid(), threading.Lock()
        try:
            (self.folder / ARRAYS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LogError(
                f"{self.folder} cannot be made a run log ({error}). Name a folder that can be written."
            ) from error
        self._lock = acquire(self.folder / LOCK)
        try:
            self._open(resume=resume)
        except BaseException as error:
            release(self._lock)
            if isinstance(error, OSError) and not isinstance(error, LogError):
                raise LogError(f"{self.path} cannot be opened for writing ({error}).") from error
            raise

    def append(self, record: Record) -> int:
        """Write one record.

        Returns:
            The id of its line, larger than all before it.

        Raises:
            LogError: the log is closed, belongs to another process, or the disk refuses (full, gone, read-only). The
                log stays readable without this record, and may be appended to again.
        """
        fields, arrays = encode(record)
        with self._turn:
            self._check_open()
            number = self._next
            self._next += 1  # first: an interrupt between the line and this must not hand out its id again
            content = {"id": number, "kind": record.kind, "time": time.time(), "elapsed": self.elapsed}
            try:
                if arrays:
                    path = arrays_path(self.folder, number)
                    write_arrays(path, arrays)
                    content["arrays"] = path.relative_to(self.folder).as_posix()
                self._write(to_line(content | {"fields": fields}), durable=bool(arrays))
            except OSError as error:
                raise LogError(
                    f"{self.path}: record {number} ({record.kind}) could not be written ({error}). The log holds "
                    "everything before it; free some space or name another folder."
                ) from error
            return number

    @property
    def elapsed(self) -> float:
        """Seconds that this log has been open for writing, in this process and all before it."""
        return self._elapsed_before + time.monotonic() - self._opened

    def close(self) -> None:
        """Force everything to the disk and let the next writer in; closing twice is allowed."""
        with self._turn:
            if self._lock.closed:
                return
            try:
                os.fsync(self._file.fileno())
            except OSError as error:
                raise LogError(f"{self.path}: its last lines may not have reached the disk ({error}).") from error
            finally:
                self._file.close()
                release(self._lock)

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Log({str(self.folder)!r}): {'closed' if self._lock.closed else f'open, next id {self._next}'}"

    def _open(self, *, resume: bool) -> None:
        """Check what is there, mend its end, find the next id, write the header of a new log."""
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 - append mode: each write lands at the end
        try:
            content = self.path.read_bytes()
            lines, torn = split(content)
            check_start(lines, torn, self.path)
            if lines and not resume:
                raise LogError(
                    f"{self.folder} holds a log already and resume=False. Name another folder, or resume=True."
                )
            os.ftruncate(self._file.fileno(), len(content) - len(torn))
            if not lines:
                self._write(to_line(header(created=time.time())), durable=True)
            elif not torn and not content.endswith(b"\n"):
                self._write(b"\n", durable=True)
        except BaseException:
            self._file.close()
            raise
        for unfinished in (self.folder / ARRAYS).glob(f"*{UNFINISHED}"):
            unfinished.unlink()
        self._elapsed_before, last = _last(lines)
        self._opened = time.monotonic()
        numbers = [int(path.stem) for path in (self.folder / ARRAYS).glob("*.npz") if path.stem.isdigit()]
        self._next = max([last, *numbers]) + 1

    def _write(self, line: bytes, *, durable: bool) -> None:
        """One system call for the whole line; a part of it that did get written is taken back."""
        before = os.fstat(self._file.fileno()).st_size
        try:
            written = self._file.write(line)
            if written != len(line):
                raise OSError(f"only {written} of {len(line)} bytes were accepted; is the disk full?")
            if durable:
                os.fsync(self._file.fileno())
        except OSError:
            os.ftruncate(self._file.fileno(), before)
            raise

    def _check_open(self) -> None:
        if os.getpid() != self._process:
            raise LogError(
                f"{self.path} was opened by process {self._process} and is used in its child {os.getpid()}. "
                "Append in the process that opened it."
            )
        if self._lock.closed:
            raise LogError(f"{self.path} is closed; open it again with Log({str(self.folder)!r}).")


def _last(lines: list[bytes]) -> tuple[float, int]:
    """Seconds and id of the last line that has them; −1 where no record was written."""
    for line in reversed(lines):
        match from_line(line):
            case {"elapsed": float(elapsed), "id": int(number)}:
                return elapsed, number
    return 0.0, -1
