"""The bytes of reports and exports do not depend on how many processes make them, and two commands take turns."""

import threading
from pathlib import Path

import pytest
from test_reports import placed, world

from lidc_cdam import files
from reports.export.stage import export
from reports.stage import report


def contents(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def check_same(one: Path, two: Path, endings: set[str]) -> None:
    first, second = contents(one), contents(two)
    assert {path.suffix for path in one.rglob("*.*")} >= endings
    assert [name for name in first.keys() | second.keys() if first.get(name) != second.get(name)] == []


@pytest.fixture(scope="module")
def four(tmp_path_factory) -> world.World:
    return world.make(tmp_path_factory.mktemp("four"), count=4)


def test_reports(four, tmp_path) -> None:
    for workers in (1, 2):
        report(four.biomarkers, tmp_path / str(workers), also_run=four.malignancy, workers=workers)
    assert len(list((tmp_path / "2").glob("LIDC*.pdf"))) == 4
    check_same(tmp_path / "1", tmp_path / "2", {".html", ".pdf", ".csv", ".md", ".json"})


def test_exports(four, tmp_path) -> None:
    for workers in (1, 2):
        export(four.malignancy, tmp_path / str(workers), ["nifti", "nrrd", "sc", "pdf"], workers=workers)
    assert len(list((tmp_path / "2").glob("*/report.dcm"))) == 4
    check_same(tmp_path / "1", tmp_path / "2", {".gz", ".nrrd", ".dcm", ".csv", ".py", ".json"})


def test_placed_exports(tmp_path) -> None:
    made = placed.make(tmp_path, "turned", ("malignancy", "spiculation"))
    for workers in (1, 2):
        export(made.run, tmp_path / str(workers), ["seg", "sr", "pmap"], dicom=made.dicom, workers=workers)
    assert len(list((tmp_path / "2").glob("*/pmap_cdam_spiculation.dcm"))) == 3
    check_same(tmp_path / "1", tmp_path / "2", {".dcm", ".csv", ".json"})


@pytest.mark.parametrize("command", ["report", "export"])
def test_a_second_command_waits_for_the_first(four, tmp_path, monkeypatch, command) -> None:
    said, waits = [], threading.Event()

    def say(sentence: str) -> None:
        said.append(sentence)
        waits.set()

    def work() -> None:
        if command == "report":
            report(four.malignancy, tmp_path, nodules=[four.nodules[0]])
        else:
            export(four.malignancy, tmp_path, ["nifti"], nodules=[four.nodules[0]])

    monkeypatch.setattr(files, "say", say)
    second = threading.Thread(target=work)
    with files.held(tmp_path, f".held-{command}"):
        second.start()
        assert waits.wait(120)
        assert [path for path in tmp_path.rglob("*") if path.suffix in (".html", ".gz")] == []
    second.join(120)
    assert said == [f"Another `lidc-cdam {command}` writes into {tmp_path}; waiting for it."]
    assert len(list(tmp_path.rglob(f"{four.nodules[0]}.html" if command == "report" else "ct.nii.gz"))) == 1
    assert not list(tmp_path.rglob(".*"))
