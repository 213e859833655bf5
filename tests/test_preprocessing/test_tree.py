import os
from collections import Counter
from pathlib import Path

import pytest

from preprocessing.tree import files_below


def names(root: Path) -> tuple[list[str], dict[str, int]]:
    others: Counter[str] = Counter()
    found = [str(Path(file.folder, file.name).relative_to(root)) for file in files_below(str(root), others)]
    return found, dict(others)


def test_files_come_by_name_with_size_and_time(tmp_path: Path) -> None:
    for name in ("b/2", "b/1", "a", "c/d/e"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    assert names(tmp_path) == (["a", "b/1", "b/2", "c/d/e"], {})
    first = next(files_below(str(tmp_path), Counter()))
    assert (first.folder, first.size, first.changed_ns) == (str(tmp_path), 1, (tmp_path / "a").stat().st_mtime_ns)


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    for folder in (root / "deep", elsewhere):
        folder.mkdir(parents=True)
        (folder / "file").touch()
    (root / "deep" / "up").symlink_to(root)
    (root / "linked").symlink_to(elsewhere)
    (root / "twice").symlink_to(elsewhere)
    (root / "broken").symlink_to(root / "nothing")
    (root / "itself").symlink_to(root / "itself")
    assert names(root) == (
        ["deep/file", "linked/file"],
        {"folder reached a second time": 2, "unreadable file": 2},
    )


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert names(tmp_path) == ([], {"device or pipe": 1})


def test_a_folder_that_cannot_be_listed_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "open").touch()
    scandir = os.scandir

    def refuse(folder: str):
        if Path(folder).name == "closed":
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    # A test that runs as root may list every folder.
    monkeypatch.setattr("preprocessing.tree.os.scandir", refuse)
    assert names(tmp_path) == (["open"], {"unreadable folder": 1})
