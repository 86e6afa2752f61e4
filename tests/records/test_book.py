import json
import sys
from pathlib import Path

import numpy as np
import pytest

from records.record_samples import scalars, snapshot, spectrum
from theodolite.errors import LogError
from theodolite.records import Cost, Event, Log, Scalars, Snapshot, Spectrum, read


@pytest.fixture
def folder(tmp_path):
    with Log(tmp_path) as log:
        for step in (0, 10, 20):
            log.append(scalars(step))
        log.append(snapshot(10))
        log.append(spectrum(step=20, cost=Cost(products=31.0)))
        log.append(Event(name="ended", message="all <b>done</b>"))
    return tmp_path


def edit(folder, number, change):
    path = folder / "log.jsonl"
    lines = path.read_bytes().splitlines()
    content = json.loads(lines[number])
    change(content)
    lines[number] = json.dumps(content).encode()
    path.write_bytes(b"\n".join(lines) + b"\n")


def test_select_last_series_and_steps(folder):
    book = read(folder)
    assert len(book) == 6
    assert [record.kind for record in book] == ["scalars"] * 3 + ["snapshot", "spectrum", "event"]
    assert [record.step for record in book.select(Scalars)] == [0, 10, 20]
    assert book.last(Scalars).step == 20
    assert book.last(Event).name == "ended"
    assert book.steps.tolist() == [0, 10, 20]
    steps, losses = book.series(Scalars, "loss")
    assert steps.tolist() == [0, 10, 20]
    np.testing.assert_array_equal(losses, [1.0, 1 / 11, 1 / 21])


def test_series_takes_properties_estimates_and_arrays(folder):
    book = read(folder)
    assert book.series(Spectrum, "max")[1].tolist() == [12.34]
    assert book.series(Spectrum, "max_learning_rate")[1].tolist() == [2 / 12.34]
    assert book.series(Spectrum, "eigenvalues")[1].shape == (1, 3)
    assert book.series(Spectrum, "all_converged")[1].tolist() == [1]
    steps, values = book.series(Scalars, "no such name")
    assert len(steps) == len(values) == 0


def test_series_is_in_order_of_step_where_a_run_was_resumed(tmp_path):
    with Log(tmp_path) as log:
        for step in (0, 20, 10):
            log.append(scalars(step))
    assert read(tmp_path).series(Scalars, "loss")[0].tolist() == [0, 10, 20]


def test_series_refuses_what_is_not_a_number(folder):
    book = read(folder)
    with pytest.raises(ValueError, match=r"Spectrum has no field 'flatness'; it has .*eigenvalues.*max_learning_rate"):
        book.series(Spectrum, "flatness")
    with pytest.raises(ValueError, match=r"Spectrum.operator is not a number; use select\(Spectrum\)"):
        book.series(Spectrum, "operator")
    with Log(folder) as log:
        log.append(Snapshot(step=30, parameters=np.ones(3)))
    with pytest.raises(ValueError, match=r"Snapshot.parameters changes its shape"):
        read(folder).series(Snapshot, "parameters")


def test_a_book_says_what_is_in_it(folder):
    book = read(folder)
    assert repr(book) == (
        f"Book({str(folder)!r}): 6 records, steps 0 to 20 | 3 scalars, 1 snapshot, 1 spectrum, 1 event"
    )
    page = book._repr_html_()
    assert "spectrum" in page
    (folder / "log.jsonl").write_bytes((folder / "log.jsonl").read_bytes() + b'{"kind":"<script>","fields":{}}\n')
    assert "<script" not in read(folder)._repr_html_()
    assert "&lt;script&gt;" in read(folder)._repr_html_()


def test_a_missing_or_damaged_array_file_costs_one_record_and_a_note(folder):
    (folder / "arrays" / "000003.npz").unlink()
    book = read(folder)
    assert len(book) == 5
    assert len(book.times) == len(book.elapsed) == 5
    assert len(book.notes) == 1
    assert book.notes[0].startswith("Line 5 (snapshot) could not be read and was left out")
    (folder / "arrays" / "000004.npz").write_bytes(b"PK\x03\x04 garbage")
    assert [record.kind for record in read(folder)] == ["scalars"] * 3 + ["event"]
    assert "note: Line 6 (spectrum)" in repr(read(folder))


def test_an_array_that_is_not_plain_is_never_unpickled(folder, monkeypatch):
    np.savez(folder / "arrays" / "000003.npz", parameters=np.array([print], dtype=object))
    book = read(folder)
    assert len(book) == 5
    assert "allow_pickle=False" in book.notes[0]


def test_array_files_outside_the_log_are_not_opened(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "secret.npz"
    np.savez(elsewhere, parameters=np.ones(3))
    edit(folder, 4, lambda line: line.update(arrays=str(elsewhere)))
    assert not read(folder).select(Snapshot)


@pytest.mark.parametrize(
    "garbage", [b"\x00\x00\x00", b"[1, 2]", b'{"kind": 3, "fields": {}}', b"not json", b"\xff\xfe", b""]
)
def test_a_damaged_line_in_the_middle_costs_only_itself(garbage, folder):
    path = folder / "log.jsonl"
    lines = path.read_bytes().splitlines()
    lines[2] = garbage
    path.write_bytes(b"\n".join(lines) + b"\n")
    book = read(folder)
    assert len(book) == 5
    assert book.notes == ("Line 3 is damaged and was left out.",)
    with Log(folder) as log:
        assert log.append(scalars(30)) == 6


def test_unknown_kinds_are_kept_as_they_stand(folder):
    edit(folder, 1, lambda line: line.update(kind="from the future"))
    edit(folder, 2, lambda line: line.update(kind="from the future"))
    book = read(folder)
    assert len(book) == 4
    assert [line["fields"]["step"] for line in book.raw] == [0, 10]
    assert book.notes == ("2 of kind 'from the future', which this version does not know, are kept in raw.",)


def test_a_newer_minor_schema_is_read_without_its_new_fields(folder):
    edit(folder, 0, lambda line: line.update(schema=[1, 7], news="yes"))
    for number in (1, 2):
        edit(folder, number, lambda line: line["fields"].update(colour="red"))
    edit(folder, 3, lambda line: line["fields"]["cost"].update(joules=3.0))
    book = read(folder)
    assert len(book) == 6
    assert book.notes == ("Fields of scalars that this version does not know were left out: colour.",)
    Log(folder).close()


def test_a_field_that_is_missing_costs_one_record(folder):
    edit(folder, 1, lambda line: line["fields"].pop("values"))
    edit(folder, 2, lambda line: line["fields"].update(cost=3))
    book = read(folder)
    assert len(book) == 4
    assert "Line 2 (scalars) could not be read" in book.notes[0]
    assert "Line 3 (scalars) could not be read" in book.notes[1]


def test_a_newer_major_schema_is_refused_by_readers_and_writers(folder):
    edit(folder, 0, lambda line: line.update(schema=[2, 0], version="9.1"))
    message = r"log.jsonl has schema 2.0, written by theodolite 9.1; this version reads schemas up to 1.x. Update"
    with pytest.raises(LogError, match=message):
        read(folder)
    with pytest.raises(LogError, match=message):
        Log(folder)


def test_a_foreign_or_damaged_header_is_refused(folder):
    edit(folder, 0, lambda line: line.update(schema="latest"))
    with pytest.raises(LogError, match="has the schema 'latest' in its header; expected two integers"):
        read(folder)
    (folder / "log.jsonl").write_text('{"loss": 1}\n{"loss": 2}\n')
    with pytest.raises(LogError, match="is not a run log: its first line is not a header"):
        read(folder)
    with pytest.raises(LogError, match="is not a run log"):
        Log(folder)
    assert (folder / "log.jsonl").read_text() == '{"loss": 1}\n{"loss": 2}\n'


@pytest.mark.parametrize("content", ["my only notes", '{"loss": 1}', '{"format":"another'])
def test_a_foreign_file_without_an_end_of_line_is_not_taken_for_a_torn_log(content, tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text(content)
    with pytest.raises(LogError, match="is not a run log"):
        read(tmp_path)
    with pytest.raises(LogError, match="is not a run log"):
        Log(tmp_path)
    assert path.read_text() == content


def test_a_folder_without_a_log_is_refused_with_a_hint(folder, tmp_path_factory):
    shelf = tmp_path_factory.mktemp("shelf")
    Log(shelf / "mlp").close()
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(LogError, match=r"expected the file .*log.jsonl, which does not exist. Name the folder"):
        read(empty)
    with pytest.raises(LogError, match="No run log"):
        read(empty / "nothing")
    with pytest.raises(LogError, match="No run log"):
        read(folder / "log.jsonl")
    with pytest.raises(LogError, match="There are logs in its folders mlp"):
        read(shelf)


def test_to_pandas_has_one_row_a_record_and_one_column_a_number(folder):
    pandas = pytest.importorskip("pandas")
    frame = read(folder).to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.columns[:4]) == ["kind", "step", "time", "elapsed"]
    assert len(frame) == 6
    assert frame.loc[frame.kind == "scalars", "loss"].tolist() == [1.0, 1 / 11, 1 / 21]
    assert frame.loc[frame.kind == "spectrum", "cost_products"].item() == 31
    assert frame.step.isna().sum() == 1
    assert frame.loc[frame.kind == "event", "loss"].isna().all()
    only = read(folder).to_pandas(Spectrum)
    assert len(only) == 1
    assert "loss" not in only
    assert only.which.item() == "both"


def test_to_pandas_of_an_empty_log_and_of_clashing_names(tmp_path):
    with Log(tmp_path) as log:
        assert list(read(tmp_path).to_pandas().columns) == ["kind", "step", "time", "elapsed"]
        log.append(Scalars(step=1, values={"step": 7.0, "time": 2.0, "lr": 0.1}))
    frame = read(tmp_path).to_pandas()
    assert frame[["step", "values.step", "values.time", "lr"]].iloc[0].tolist() == [1, 7.0, 2.0, 0.1]


def test_to_pandas_without_pandas_names_the_extra(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"pip install 'theodolite\[pandas\]'"):
        read(folder).to_pandas()


def test_what_a_later_start_has_overtaken_is_not_current(tmp_path: Path) -> None:
    """A crash at step 5, a restart from the checkpoint at step 3, and a run from nothing in the same folder."""

    def session(log: Log, start: int, stop: int, loss: float) -> None:
        log.append(Event(step=start, name="started", message=""))
        for step in range(start, stop):
            log.append(Scalars(step=step, values={"loss": loss}))

    def losses() -> list[tuple[int | None, float]]:
        current = read(tmp_path).current
        return [(record.step, record.values["loss"]) for record in current if isinstance(record, Scalars)]

    with Log(tmp_path) as log:
        session(log, 0, 5, 1.0)
        session(log, 3, 6, 2.0)
    assert losses() == [(0, 1.0), (1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0), (5, 2.0)]
    with Log(tmp_path) as log:
        session(log, 0, 2, 3.0)
    assert losses() == [(0, 3.0), (1, 3.0)]
    assert len(read(tmp_path).select(Scalars)) == 10
