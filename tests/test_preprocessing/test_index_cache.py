import json
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
from dicom_factory import Stack, edit, flat

from lidc_cdam.errors import LidcCdamError
from preprocessing import index_cache
from preprocessing.index_cache import SERIES_INDEX, read_tree
from preprocessing.series import index_series
from preprocessing.slices import UNREADABLE, Slice, read_slice

Z = (1.0, 2.0, 3.0)
NOWHERE = '{"version":1,"folder":"x","shared":["not DICOM"],"files":[["a",1,2,0]]}'
"""A line whose folder is not absolute."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "dicom"
    for number in range(4):
        Stack(flat(0), Z, f"1.2.{number}", shape=(8, 8)).write(root / f"scan {number}" / "x")
    (root / "notes.txt").write_text("not DICOM")
    (root / "scan 0" / os.fsdecode(b"\xff.txt")).write_text("a name that is no UTF-8")
    return root


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "out" / SERIES_INDEX


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files whose headers were read."""
    paths: list[str] = []

    def counted(folder: str, name: str) -> Slice | str:
        paths.append(name)
        return read_slice(folder, name)

    monkeypatch.setattr(index_cache, "read_slice", counted)
    return paths


def found(root: Path, journal: Path | None = None, **options: object) -> list[Slice | str]:
    return list(read_tree(root, Counter(), journal, **options))


def test_a_second_pass_reads_nothing_and_leaves_the_journal(root: Path, journal: Path, read: list[str]) -> None:
    first = found(root, journal)
    assert len(read) == 14
    written = journal.stat().st_mtime_ns
    read.clear()
    assert found(root, journal) == first == found(root)
    assert len(read) == 14, "only the pass without a journal reads"
    assert journal.stat().st_mtime_ns == written


def test_changed_new_and_deleted_files_are_noticed(root: Path, journal: Path, read: list[str]) -> None:
    found(root, journal)
    read.clear()
    changed, deleted = root / "scan 1" / "x" / "1-001.dcm", root / "scan 2" / "x" / "1-002.dcm"
    edit(changed, ImagePositionPatient=[0, 0, 7])
    deleted.unlink()
    shutil.copy(root / "notes.txt", root / "new")
    index = index_series(root, journal=journal)
    assert sorted(read) == ["1-001.dcm", "new"]
    assert index.series["1.2.1"].positions_mm == (2.0, 3.0, 7.0)
    assert index.series["1.2.2"].positions_mm == (1.0, 3.0)
    assert index.others == {"not DICOM": 3}
    assert deleted.name not in str([line for line in journal.read_text().splitlines() if "scan 2" in line])


def test_what_could_not_be_read_is_tried_again(
    root: Path, journal: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(
            index_cache, "read_slice", lambda folder, name: UNREADABLE if "2" in name else read_slice(folder, name)
        )
        assert found(root, journal).count(UNREADABLE) == 4
    assert found(root, journal) == found(root)
    assert read[:4] == ["1-002.dcm"] * 4
    assert len(read) == 4 + 14


def test_an_interrupted_pass_keeps_what_it_read(
    root: Path, journal: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_cache, "CHUNK", 3)
    before = index_cache.read_slice

    def interrupted(folder: str, name: str) -> Slice | str:
        if len(read) == 8:
            raise KeyboardInterrupt
        return before(folder, name)

    with monkeypatch.context() as patch:
        patch.setattr(index_cache, "read_slice", interrupted)
        with pytest.raises(KeyboardInterrupt):
            found(root, journal)
    with journal.open("a") as stream:
        stream.write('{"version": 1, "folder": "/torn')
    read.clear()
    result = found(root, journal)
    assert len(read) == 14 - 6
    assert result == found(root)
    whole = journal.read_bytes()
    journal.unlink()
    found(root, journal)
    assert journal.read_bytes() == whole


@pytest.mark.parametrize(
    "line",
    [
        "",
        "nonsense",
        "[]",
        "{}",
        '{"version":0}',
        '{"version":1,"folder":"x","shared":[],"files":[["a",1,2,5]]}',
        "\0",
        NOWHERE,
    ],
)
def test_a_damaged_journal_is_read_past(root: Path, journal: Path, line: str) -> None:
    first = found(root, journal)
    journal.write_text(line + "\n" + journal.read_text().split("\n", 1)[1])
    assert found(root, journal) == first
    journal.write_bytes(os.urandom(1000))
    assert found(root, journal) == first
    assert all(json.loads(text)["version"] == 1 for text in journal.read_text().splitlines())


def test_other_roots_stay_in_the_journal(root: Path, journal: Path, read: list[str], tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(root / "scan 0", other)
    found(root, journal)
    found(other, journal)
    read.clear()
    found(root, journal)
    found(other, journal)
    found(root / "scan 3", journal)
    found(root, journal)
    assert read == []


@pytest.mark.slow
def test_any_number_of_workers_gives_the_same(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_cache, "CHUNK", 3)
    results = [found(root, tmp_path / str(number), workers=number) for number in (1, 2)]
    assert results[0] == results[1]
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_an_empty_root_leaves_no_journal_and_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    assert found(tmp_path / "empty", tmp_path / "out" / SERIES_INDEX) == []
    assert not (tmp_path / "out").exists()
    with pytest.raises(
        LidcCdamError, match=r"The output folder must be a folder, but .*file is a file; choose another"
    ):
        found(tmp_path / "empty", tmp_path / "file" / SERIES_INDEX)
