"""A disk that fills up under `report` and `export`: one sentence, nothing half-written, and with room the rest."""

import errno
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from test_reports import placed

from lidc_cdam import cli
from lidc_cdam.artifacts import read_table
from reports.export.listing import EXPORTED

EVERY = ("nifti", "nrrd", "sc", "pdf", "seg", "sr", "pmap")
SPACE_BYTES = 48_000_000
"""More than all that these tests write."""


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> placed.Placed:
    return placed.make(tmp_path_factory.mktemp("full"), keys=("malignancy", "spiculation"))


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A small file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = f"size={SPACE_BYTES},mode=700"
    words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(words, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no `mount`")
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


class Ballast:
    """A file that leaves only so many bytes of a disk free."""

    def __init__(self, disk: Path) -> None:
        self.path = disk / "ballast"

    def leave(self, free_bytes: int) -> None:
        self.path.unlink(missing_ok=True)
        size = os.statvfs(self.path.parent)
        with self.path.open("wb") as stream:
            os.posix_fallocate(stream.fileno(), 0, max(size.f_bavail * size.f_frsize - free_bytes, 1))


def report_words(source: placed.Placed, out: Path) -> list[str]:
    words = ["report", "--run", str(source.run), "--out", str(out / "report"), "--combined", str(out / "all.pdf")]
    return [*words, "--nodules", ",".join(source.nodules[:2])]


def export_words(source: placed.Placed, out: Path, form: str) -> list[str]:
    words = ["export", "--run", str(source.run), "--out", str(out / "export"), "--dicom", str(source.dicom)]
    return [*words, "--nodules", ",".join(source.nodules[:2]), "--format", form]


def contents(out: Path) -> dict[str, bytes]:
    paths = (path for path in sorted(out.rglob("*")) if path.is_file() and path.name != "ballast")
    return {str(path.relative_to(out)): path.read_bytes() for path in paths}


def check_refused(said: str, command: str) -> None:
    assert said.startswith(f"lidc-cdam {command}: the file system refused"), said
    assert "No space left on device; mend it or free space, then run the same command again." in said
    assert said.count("\n") == 1, said


def check_whole(out: Path, pairs: bool = True) -> None:
    """No temporary file; every file is what its name says; no report of one half; no export that is not listed."""
    names = contents(out)
    assert not [name for name in names if Path(name).name.startswith(".")], list(names)
    for name, held in names.items():
        if name.endswith(".pdf"):
            assert held.startswith(b"%PDF-")
            assert held.rstrip().endswith(b"%%EOF")
        if name.endswith(".html"):
            assert held.rstrip().endswith(b"</html>")
        if name.endswith(".dcm"):
            assert held[128:132] == b"DICM"
    report = out / "report"
    papers, pages = ({path.stem for path in report.glob(f"LIDC*.{form}")} for form in ("pdf", "html"))
    assert papers == pages or not pairs
    nodules = [path for path in (out / "export").glob("*") if path.is_dir()]
    files = {str(path.relative_to(out / "export")) for nodule in nodules for path in nodule.glob("[!e]*")}
    lists = [read_table(nodule / EXPORTED, ("file",), "export")["file"] for nodule in nodules]
    listed = set(pd.concat(lists)) if lists else set()
    assert files <= listed | {f"{nodule.name}/{EXPORTED}" for nodule in nodules}
    assert listed <= files


def finished(out: Path, nodule: str) -> dict[str, bytes]:
    """What a later call must keep: whole pages and papers, and listed files."""
    reports = {name: held for name, held in contents(out).items() if name.endswith((".html", ".pdf"))}
    own = out / "export" / nodule / EXPORTED
    if not own.exists():
        return reports
    listed = read_table(own, ("file",), "export")["file"]
    return {name: (out / "export" / name).read_bytes() for name in listed if not name.endswith(".py")}


@pytest.fixture(scope="module")
def usual(source, tmp_path_factory) -> dict[str, bytes]:
    """All that the commands write where there is room."""
    out = tmp_path_factory.mktemp("usual")
    assert cli.main(report_words(source, out)) == 0
    for form in EVERY:
        assert cli.main(export_words(source, out / form, form)) == 0
    return contents(out)


def test_a_report_on_a_full_disk(source, usual, disk, capsys) -> None:
    ballast = Ballast(disk)
    kept: dict[str, int] = {}
    outcomes = []
    # From no room at all to almost enough: each call stops at another file, and keeps what the earlier ones finished.
    needed = sum(len(held) for name, held in usual.items() if name.startswith(("report/", "all")))
    for share in (0.0, 0.1, 0.3, 0.5, 0.7, 0.85, 0.95):
        ballast.leave(int(share * needed - sum(map(len, contents(disk).values()))) if share else 0)
        outcomes.append(cli.main(report_words(source, disk)))
        said = capsys.readouterr().err
        if outcomes[-1]:
            check_refused(said, "report")
        check_whole(disk)
        pages = {path.name: path.stat().st_mtime_ns for path in (disk / "report").glob("LIDC*")}
        assert kept.items() <= pages.items()
        kept = pages
    assert outcomes[0] == 1
    assert kept
    ballast.path.unlink()
    assert cli.main(report_words(source, disk)) == 0
    assert kept.items() <= {path.name: path.stat().st_mtime_ns for path in (disk / "report").glob("LIDC*")}.items()
    found = contents(disk)
    assert found.keys() == {name for name in usual if name.startswith(("report/", "all"))}
    assert all(usual[name] == held for name, held in found.items() if not name.endswith("provenance.json"))


@pytest.mark.parametrize("form", EVERY)
def test_an_export_on_a_full_disk(source, usual, disk, capsys, form) -> None:
    ballast = Ballast(disk)
    whole = {name.removeprefix(f"{form}/"): held for name, held in usual.items() if name.startswith(f"{form}/")}
    sizes = sorted(len(held) for name, held in whole.items() if not name.endswith("json"))
    outcomes = []
    half = 8192 + sum(sizes) // 2
    # Nothing fits; the record does; part of a file; all of the first nodule but its last file; the first nodule.
    for free in (0, 8192, 8192 + sizes[-1] // 2, half - sizes[0], half + 4096 * len(sizes) // 2 + sizes[-1] // 4):
        ballast.leave(free)
        outcomes.append(cli.main(export_words(source, disk, form)))
        said = capsys.readouterr().err
        if outcomes[-1]:
            check_refused(said, "export")
        check_whole(disk)
    assert outcomes[:2] == [1, 1]
    assert (disk / "export" / source.nodules[0] / EXPORTED).exists()
    before = {path: path.stat().st_mtime_ns for path in disk.rglob("*.*") if path.parent.parent.name == "export"}
    ballast.path.unlink()
    assert cli.main(export_words(source, disk, form)) == 0
    assert before.items() <= {path: path.stat().st_mtime_ns for path in before}.items()
    assert contents(disk).keys() == whole.keys()
    check_whole(disk)


@pytest.mark.parametrize("command", ["report", "export"])
def test_workers_on_a_full_disk(source, disk, capsys, command) -> None:
    words = report_words(source, disk) if command == "report" else export_words(source, disk, "nifti")
    Ballast(disk).leave(8192)
    assert cli.main([*words, "--workers", "2"]) == 1
    check_refused(capsys.readouterr().err, command)
    check_whole(disk)


@pytest.mark.parametrize(
    ("command", "number"), [("report", errno.ENOSPC), ("export", errno.ENOSPC), ("export", errno.EDQUOT)]
)
def test_each_file_in_turn_has_no_room(source, tmp_path, monkeypatch, capsys, command, number) -> None:
    """Every file that a command writes is refused once, in the middle; each call goes on where the last one stopped."""
    forms = ",".join(EVERY if number == errno.ENOSPC else ("nifti", "pdf"))
    words = report_words(source, tmp_path) if command == "report" else export_words(source, tmp_path, forms)
    words[words.index("--nodules") + 1] = source.nodules[0]
    refused: list[Path] = []
    replace = Path.replace

    def full(temporary: Path, path: Path) -> Path:
        if path in refused:
            return replace(temporary, path)
        refused.append(path)
        os.truncate(temporary, temporary.stat().st_size // 2)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "replace", full)
    calls, kept = 0, {}
    while cli.main(words):
        calls += 1
        said = capsys.readouterr().err
        # A nodule's page and paper are written together, so either is named.
        assert re.sub(r"\.pdf|\.html", "", said).startswith(
            tuple(f"lidc-cdam {command}: the file system refused ({path.parent / path.stem}" for path in refused[-2:])
        )
        assert f"): {os.strerror(number)}; mend it or free space" in said
        assert said.count("\n") == 1
        assert len(refused) <= calls + 1
        # Where the page cannot take its name the paper has its own already, and is whole.
        check_whole(tmp_path, pairs=refused[-1].suffix != ".html")
        found = finished(tmp_path, source.nodules[0])
        assert kept.items() <= found.items()
        kept = found
    assert len(contents(tmp_path)) == len(refused)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == set(refused)
