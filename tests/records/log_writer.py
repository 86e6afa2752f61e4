"""A writer for tests, run as a script: append, say so, until stopped. Never imports torch.

Usage: python log_writer.py FOLDER FIRST_STEP COUNT [LIMIT]
LIMIT caps the size of files in bytes, as a full disk would; then one line says what happened, the cap is lifted, and
one more record is appended.
"""

import resource
import sys

import numpy as np

from theodolite.errors import LogError
from theodolite.records import Log, Scalars, Snapshot


def record(step):
    """Every third has arrays; the content follows from the step."""
    if step % 3 == 0:
        return Snapshot(step=step, parameters=np.arange(2000.0) + step)
    return Scalars(step=step, values={"loss": 1.0 / (step + 1)})


def main(folder, first, count, limit=None):
    """Append records and print each step once its record is in the log."""
    with Log(folder) as log:
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), hard))
        for step in range(int(first), int(first) + int(count)):
            try:
                log.append(record(step))
            except LogError as error:
                print(f"LogError at {step}: {error}", flush=True)
                resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
                log.append(record(step + 1))
                break
            print(step, flush=True)
    assert "torch" not in sys.modules


if __name__ == "__main__":
    main(*sys.argv[1:])
