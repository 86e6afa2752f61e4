import pytest

from records.record_samples import scalars, snapshot
from theodolite.errors import LogError, LogInUseError
from theodolite.records import Log, read
from theodolite.records.discard import discard


@pytest.fixture
def folder(tmp_path):
    with Log(tmp_path / "run") as log:
        log.append(scalars(0))
        log.append(snapshot(1))
    return tmp_path / "run"


def test_a_run_log_is_emptied_and_can_be_written_again(folder):
    (folder / "arrays" / "000007.npz.tmp").write_text("torn")
    discard(folder)
    assert sorted(path.name for path in folder.rglob("*")) == ["arrays", "log.lock"]
    with Log(folder, resume=False) as log:
        log.append(scalars(5))
    assert [record.step for record in read(folder)] == [5]


def test_what_does_not_exist_or_is_empty_is_left_so(tmp_path):
    discard(tmp_path / "none")
    discard(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["thesis.tex", "arrays/000002.npy", "arrays/notes.npz", "arrays/more/000001.npz"])
def test_anything_foreign_is_kept_with_everything_else(folder, name):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("precious")
    before = sorted(folder.rglob("*"))
    with pytest.raises(LogError, match=r"nothing else before deleting it, found .* Move that away"):
        discard(folder)
    assert sorted(folder.rglob("*")) == before
    assert (folder / name).read_text() == "precious"


def test_a_file_that_only_has_the_name_of_a_log_is_kept(folder):
    (folder / "log.jsonl").write_text("dear diary\n")
    with pytest.raises(LogError, match="is not a run log"):
        discard(folder)
    assert (folder / "log.jsonl").read_text() == "dear diary\n"
    assert list((folder / "arrays").iterdir())


def test_links_are_not_followed(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(LogError, match="found another kind of file"):
        discard(tmp_path / "link")
    (folder / "arrays" / "000009.npz").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LogError, match=r"found arrays/000009\.npz"):
        discard(folder)


def test_a_log_in_use_is_refused(folder):
    with Log(folder), pytest.raises(LogInUseError, match="this very process"):
        discard(folder)
    assert len(read(folder)) == 2
