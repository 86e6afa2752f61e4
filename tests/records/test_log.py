import json
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from records.log_writer import record as written
from records.record_samples import KINDS_OF_LIBRARY, recipes, scalars, snapshot
from theodolite.errors import LogError, LogInUseError
from theodolite.records import Event, Log, Scalars, Snapshot, differences, read

WRITER = Path(__file__).with_name("log_writer.py")


def start_writer(folder, first, count, *limit):
    command = [sys.executable, str(WRITER), str(folder), str(first), str(count), *map(str, limit)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def assert_as_written(book):
    for record in book:
        assert not differences(record, written(record.step))


@pytest.mark.parametrize("cls", KINDS_OF_LIBRARY, ids=lambda cls: cls.kind)
def test_every_kind_comes_back_to_the_bit_from_strict_json(cls, tmp_path_factory, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # a crash of the machine is not what this tests

    @given(recipe=recipes(classes=(cls,)))
    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    def law(recipe):
        record, folder = recipe(), tmp_path_factory.mktemp("log")
        with Log(folder) as log:
            log.append(record)
        (back,) = book = read(folder)
        assert not differences(record, back)
        assert book.notes == ()
        for line in (folder / "log.jsonl").read_text("ascii").splitlines():
            json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not strict JSON"))

    law()


def test_ids_ascend_and_times_pass(tmp_path):
    before = time.time()
    with Log(tmp_path / "new" / "run") as log:
        assert [log.append(scalars(step)) for step in range(3)] == [0, 1, 2]
    book = read(tmp_path / "new" / "run")
    assert np.all(np.diff(book.times) >= 0)
    assert before <= book.times[0] <= book.times[-1] <= time.time()
    assert np.all(np.diff(book.elapsed) >= 0)
    first = book.elapsed[-1]
    with Log(book.path) as log:
        assert log.append(scalars(3)) == 3
    assert read(book.path).elapsed[-1] > first


def test_a_log_cut_at_every_byte_reads_all_complete_lines_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # hundreds of openings, and the power stays on
    with Log(tmp_path) as log:
        for step in range(4):
            log.append(scalars(step) if step != 2 else snapshot(step))
    path = tmp_path / "log.jsonl"
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    for cut in range(len(content) - len(lines[-1]) - len(lines[-2]), len(content) + 1):
        path.write_bytes(content[:cut])
        tail = content[:cut].rpartition(b"\n")[2]
        whole = tail + b"\n" in lines  # only its end is missing
        complete = content[:cut].count(b"\n") - 1 + whole
        book = read(tmp_path)
        assert [record.step for record in book] == list(range(complete))
        assert [note.split(" (")[0] for note in book.notes] == ["The last line is torn"] * (bool(tail) and not whole)
        with Log(tmp_path) as log:
            log.append(scalars(100))
        after = read(tmp_path)
        assert [record.step for record in after] == [*range(complete), 100]
        assert after.notes == ()


@pytest.mark.parametrize("content", [b"", b'{"format":"theodo', b'{"format":"theodolite log","schema":[1,0]}'])
def test_a_log_torn_in_its_header_is_an_empty_log(content, tmp_path):
    (tmp_path / "log.jsonl").write_bytes(content)
    assert len(read(tmp_path)) == 0
    with Log(tmp_path) as log:
        log.append(scalars(0))
    assert [record.step for record in read(tmp_path)] == [0]
    assert read(tmp_path).notes == ()


def test_a_writer_killed_twenty_times_loses_nothing_it_acknowledged(tmp_path):
    delays, acknowledged, first = random.Random(0), set(), 0
    for _ in range(20):
        writer = start_writer(tmp_path, first, 10**9)
        acknowledged.add(int(writer.stdout.readline()))
        time.sleep(delays.uniform(0, 0.02))
        os.kill(writer.pid, signal.SIGKILL)
        acknowledged.update(map(int, writer.communicate()[0].split()))
        book = read(tmp_path)
        steps = [record.step for record in book]
        assert steps == list(range(len(steps)))
        assert acknowledged <= set(steps)
        first = len(steps)
    assert_as_written(book)
    with Log(tmp_path) as log:
        log.append(written(first))
    assert [record.step for record in read(tmp_path)] == list(range(first + 1))
    assert not list((tmp_path / "arrays").glob("*.tmp"))


def test_a_second_writer_is_refused_until_the_first_is_killed(tmp_path):
    writer = start_writer(tmp_path, 0, 10**9)
    writer.stdout.readline()
    with pytest.raises(LogInUseError, match=rf"{tmp_path} is in use: the process with pid {writer.pid} writes"):
        Log(tmp_path)
    assert len(read(tmp_path)) > 0
    os.kill(writer.pid, signal.SIGKILL)
    writer.communicate()
    Log(tmp_path).close()


def test_a_second_writer_in_the_same_process_is_refused(tmp_path):
    with Log(tmp_path), pytest.raises(LogInUseError, match=rf"this very process \(pid {os.getpid()}\).*Close its Log"):
        Log(tmp_path)
    Log(tmp_path).close()


def test_readers_see_a_growing_prefix_while_a_writer_writes(tmp_path):
    writer = start_writer(tmp_path, 0, 300)
    writer.stdout.readline()
    lengths = []
    while writer.poll() is None:
        book = read(tmp_path)
        assert [record.step for record in book] == list(range(len(book)))
        assert all("torn" in note for note in book.notes)
        assert_as_written(book)
        lengths.append(len(book))
    writer.communicate()
    assert writer.returncode == 0
    assert lengths == sorted(lengths)
    assert len(set(lengths)) > 2
    assert len(read(tmp_path)) == 300


def test_a_full_disk_is_a_log_error_and_the_log_stays_readable(tmp_path):
    start_writer(tmp_path, 1, 2).communicate()
    room_for_one_line = (tmp_path / "log.jsonl").stat().st_size + 300
    assert_recovers_from_a_full_disk(tmp_path, first=4, failing=5, limit=room_for_one_line)


def test_a_disk_that_is_full_within_an_array_file_leaves_no_part_of_it(tmp_path):
    room_for_lines_but_no_array = 10_000
    assert_recovers_from_a_full_disk(tmp_path, first=1, failing=3, limit=room_for_lines_but_no_array)
    assert [path.name for path in (tmp_path / "arrays").iterdir()] == []


def assert_recovers_from_a_full_disk(folder, *, first, failing, limit):
    earlier = [record.step for record in read(folder)] if (folder / "log.jsonl").exists() else []
    *acknowledged, failed = start_writer(folder, first, 10**6, limit).communicate()[0].splitlines()
    assert [int(step) for step in acknowledged] == list(range(first, failing))
    assert failed.startswith(f"LogError at {failing}: {folder / 'log.jsonl'}: record")
    book = read(folder)
    assert [record.step for record in book] == [*earlier, *range(first, failing), failing + 1]
    assert book.notes == ()
    assert_as_written(book)


def test_a_short_write_is_taken_back(tmp_path, monkeypatch):
    log = Log(tmp_path)
    log.append(scalars(0))
    real = log._file

    class Short:
        def __getattr__(self, name):
            return getattr(real, name)

        def write(self, line):
            return real.write(line[:20])

    monkeypatch.setattr(log, "_file", Short())
    with pytest.raises(LogError, match="only 20 of"):
        log.append(scalars(1))
    monkeypatch.undo()
    log.append(scalars(2))
    log.close()
    assert [record.step for record in read(tmp_path)] == [0, 2]
    assert read(tmp_path).notes == ()


def test_a_closed_log_says_so(tmp_path):
    log = Log(tmp_path)
    assert "open" in repr(log)
    log.close()
    log.close()
    assert "closed" in repr(log)
    with pytest.raises(LogError, match=r"log.jsonl is closed; open it again with Log"):
        log.append(scalars(0))


def test_resume_false_never_touches_a_log(tmp_path):
    Log(tmp_path / "fresh", resume=False).close()
    with Log(tmp_path) as log:
        log.append(scalars(0))
    content = (tmp_path / "log.jsonl").read_bytes()[:-3]
    (tmp_path / "log.jsonl").write_bytes(content)
    with pytest.raises(LogError, match=f"{tmp_path} holds a log already and resume=False"):
        Log(tmp_path, resume=False)
    assert (tmp_path / "log.jsonl").read_bytes() == content
    Log(tmp_path).close()  # the refusal released its lock


def test_a_folder_that_cannot_be_written_is_a_log_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LogError, match=r"cannot be made a run log .* Name a folder that can be written"):
        Log(tmp_path / "file")


def test_a_child_process_does_not_write_to_the_log_of_its_parent(tmp_path, monkeypatch):
    with Log(tmp_path) as log:
        monkeypatch.setattr(os, "getpid", lambda: -1)
        with pytest.raises(LogError, match=r"was opened by process \d+ and is used in its child -1"):
            log.append(scalars(0))


def test_ids_are_never_given_twice(tmp_path):
    with Log(tmp_path) as log:
        log.append(snapshot(0))
    path = tmp_path / "log.jsonl"
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])  # a crash between the arrays and their line
    with Log(tmp_path) as log:
        assert log.append(snapshot(1)) == 1
    assert not differences(read(tmp_path).records[0], snapshot(1))


def test_threads_may_share_a_log(tmp_path):
    with Log(tmp_path) as log, ThreadPoolExecutor(4) as pool:
        numbers = list(pool.map(lambda step: log.append(written(step)), range(60)))
    assert sorted(numbers) == list(range(60))
    book = read(tmp_path)
    assert sorted(record.step for record in book) == list(range(60))
    assert_as_written(book)
    assert len(book.select(Snapshot)) == 20
    assert len(book.select(Scalars)) == 40
    assert not book.select(Event)
