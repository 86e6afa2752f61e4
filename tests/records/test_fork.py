"""Processes forked while a log was open: workers of a loader outlive it, and must not keep its lock."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from records.record_samples import scalars
from theodolite.errors import LogError
from theodolite.records import Log, read

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

PARENT = """
import os, sys, time
from theodolite.records import Log
log = Log(sys.argv[1])
child = os.fork()
if child == 0:
    print(os.getpid(), flush=True)  # by the child: what it does after a fork is done
    time.sleep(60)
    os._exit(0)
time.sleep(60)
"""


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_persistent_worker_does_not_keep_the_lock(tmp_path):
    loader = DataLoader(
        TensorDataset(torch.zeros(4)), num_workers=1, persistent_workers=True, multiprocessing_context="fork"
    )
    with Log(tmp_path) as log:
        batches = iter(loader)
        next(batches)
        log.append(scalars(0))
    with Log(tmp_path) as log:
        log.append(scalars(1))
    assert [record.step for record in read(tmp_path)] == [0, 1]
    assert len(list(batches)) == 3


def test_a_child_of_a_killed_parent_does_not_keep_the_lock(tmp_path):
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    try:
        parent.kill()
        parent.wait()
        os.kill(child, 0)  # it lives
        with Log(tmp_path) as log:
            log.append(scalars(1))
    finally:
        os.kill(child, signal.SIGKILL)
        parent.stdout.close()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_that_closes_its_copy_leaves_the_parent_its_lock(tmp_path):
    with Log(tmp_path) as log:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                log.append(scalars(3))
            except LogError as error:
                code = 0 if "is used in its child" in str(error) else 2
            log.close()
            os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        with pytest.raises(LogError, match="this very process"):
            Log(tmp_path)
        log.append(scalars(0))
    assert [record.step for record in read(tmp_path)] == [0]
