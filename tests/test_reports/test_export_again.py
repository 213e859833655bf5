"""An export of which a part fails: what is whole is listed, what is not is named, and a second call makes the rest."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
from test_reports import world

from lidc_cdam import artifacts, cli, crop_files
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.files import read_json
from lidc_cdam.map_files import Volume, volume_folder, write_volume
from reports.export import formats
from reports.export.listing import EXPORTED, FAILED_FORMAT
from reports.export.stage import export

ASKED = ["nifti", "nrrd", "sc", "pdf"]


@pytest.fixture
def cohort(tmp_path) -> world.World:
    return world.make(tmp_path, count=2)


def files(out: Path) -> set[str]:
    """All files below nodules' folders but their lists."""
    found = (path.relative_to(out) for path in out.rglob("*") if path.is_file() and path.name != EXPORTED)
    return {str(path) for path in found if len(path.parts) > 1}


def rows(out: Path) -> pd.DataFrame:
    return artifacts.read_table(out / EXPORTED, ("nodule_id", "format", "file"), "export")


def failures(out: Path) -> list[tuple[str, str]]:
    table = artifacts.read_table(out / artifacts.FAILED, FAILED_FORMAT, "export")
    return list(zip(table["nodule_id"], table["format"], strict=True))


def stamps(out: Path) -> dict[str, int]:
    return {name: (out / name).stat().st_mtime_ns for name in files(out)}


def breaking(monkeypatch, name: str, after: int, error: BaseException) -> None:
    """Make a format raise after so many files."""
    form = formats.FORMATS[name]

    def broken(*arguments) -> Iterator[Path]:
        for count, path in enumerate(form.write(*arguments)):
            yield path
            if count + 1 == after:
                raise error
        raise error

    monkeypatch.setitem(formats.FORMATS, name, dataclasses.replace(form, write=broken))


@pytest.mark.parametrize("after", [0, 2])
def test_of_a_nodule_of_which_one_format_fails_the_others_are_listed(cohort, tmp_path, monkeypatch, capsys, after):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        breaking(patch, "nrrd", after, ValueError("no such\n  type"))
        export(cohort.malignancy, out, ASKED)
    assert failures(out) == [(nodule, "nrrd") for nodule in cohort.nodules]
    reasons = artifacts.read_table(out / artifacts.FAILED, FAILED_FORMAT, "export")
    assert set(reasons["reason"]) == {"no such type"}
    assert set(reasons["series_uid"]) == {"1.2.3"}
    assert set(rows(out)["format"]) == {"nifti", "sc", "pdf"}
    assert set(rows(out)["file"]) == files(out)
    assert not list(out.rglob("*.nrrd"))
    assert not read_json(out / "provenance.json")["export"]["finished"]
    assert "2 nodules are not whole" in capsys.readouterr().out
    before = stamps(out)
    export(cohort.malignancy, out, ASKED)
    assert not (out / artifacts.FAILED).exists()
    assert set(rows(out)["format"]) == set(ASKED)
    assert set(rows(out)["file"]) == files(out)
    # The script that opens the volumes is of both kinds of volumes, and the last to be written decides.
    assert {name for name, when in stamps(out).items() if before.get(name) == when} == {
        name for name in before if not name.endswith(".py")
    }
    assert read_json(out / "provenance.json")["export"]["finished"]


def test_two_calls_list_what_one_call_lists(cohort, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        breaking(patch, "nifti", 1, ValueError("broken"))
        export(cohort.malignancy, tmp_path / "two", ASKED)
    export(cohort.malignancy, tmp_path / "two", ASKED)
    export(cohort.malignancy, tmp_path / "one", ASKED)
    assert (tmp_path / "two" / EXPORTED).read_bytes() == (tmp_path / "one" / EXPORTED).read_bytes()


def test_a_file_of_two_formats_is_a_row_of_each_and_stays_when_one_fails(cohort, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        breaking(patch, "nrrd", 10**9, ValueError("broken"))  # after its last file, the script
        export(cohort.malignancy, out, ["nifti", "nrrd"])
    assert all((out / nodule / "open_in_slicer.py").exists() for nodule in cohort.nodules)
    assert not list(out.rglob("*.nrrd"))
    export(cohort.malignancy, out, ["nifti", "nrrd"])
    scripts = rows(out).query("file.str.endswith('.py')")
    assert list(scripts["format"]) == ["nifti", "nrrd"] * 2


@pytest.mark.parametrize("lost", ["list", "table", "file"])
def test_what_is_lost_afterwards_is_made_again(cohort, tmp_path, lost):
    out = tmp_path / "out"
    export(cohort.malignancy, out, ["nifti", "pdf"])
    whole, before = rows(out), stamps(out)
    gone = {
        "list": out / cohort.nodules[0] / EXPORTED,
        "table": out / EXPORTED,
        "file": out / cohort.nodules[0] / "report.dcm",
    }[lost]
    gone.unlink()
    export(cohort.malignancy, out, ["nifti", "pdf"])
    assert rows(out).equals(whole)
    made = {name for name, when in stamps(out).items() if before[name] != when}
    # A nodule's own list may go once all is finished: the list of all names its files.
    assert made == ({f"{cohort.nodules[0]}/report.dcm"} if lost == "file" else set())


def test_a_list_that_cannot_be_read_lists_nothing(cohort, tmp_path):
    out = tmp_path / "out"
    export(cohort.malignancy, out, ["pdf"])
    (out / cohort.nodules[0] / EXPORTED).write_text("x\n1\n")
    (out / EXPORTED).unlink()
    export(cohort.malignancy, out, ["pdf"])
    assert set(rows(out)["file"]) == files(out)


def test_what_is_finished_before_an_interrupt_is_listed_and_kept(cohort, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    words = ["export", "--run", str(cohort.malignancy), "--out", str(out), "--format", "nifti,sc"]
    with monkeypatch.context() as patch:
        breaking(patch, "sc", 1, KeyboardInterrupt())
        assert cli.main(words) == 1
    assert "interrupted; what is finished is kept" in capsys.readouterr().err
    assert set(rows(out)["file"]) == files(out)
    assert set(rows(out)["format"]) == {"nifti"}
    before = stamps(out)
    assert cli.main(words) == 0
    assert before.items() <= stamps(out).items()


def test_a_nodule_without_its_crop_fails_in_every_format_and_leaves_no_folder(cohort, tmp_path):
    crop_files.crop_path(cohort.data, cohort.nodules[0]).unlink()
    export(cohort.malignancy, tmp_path / "out", ["nifti", "sc"])
    assert failures(tmp_path / "out") == [(cohort.nodules[0], "nifti"), (cohort.nodules[0], "sc")]
    assert not (tmp_path / "out" / cohort.nodules[0]).exists()


def test_when_nothing_can_be_exported_the_first_reason_is_the_error(cohort, tmp_path, monkeypatch, capsys):
    breaking(monkeypatch, "pdf", 1, ValueError("broken"))
    words = ["export", "--run", str(cohort.malignancy), "--out", str(tmp_path / "out"), "--format", "pdf"]
    assert cli.main(words) == 1
    assert capsys.readouterr().err == "lidc-cdam export: No nodule could be exported; the first: broken\n"
    assert files(tmp_path / "out") == set()
    assert not (tmp_path / "out" / cohort.nodules[0]).exists()


def test_volumes_that_came_later_are_another_export(cohort, tmp_path):
    run, out = cohort.biomarkers, tmp_path / "out"
    export(run, out, ["nifti"])
    export(run, out, ["nifti"])
    scores = np.ones((1, *(world.SIDE,) * 3), np.float32)
    folder = volume_folder(run, 0, "cdam", cohort.nodules[0])
    write_volume(folder, "margin", Volume(scores, ("axial",), (0.0, 0.0, 0.0), 1.0, ""))
    with pytest.raises(
        LidcCdamError, match=r"was made by `export` with crops and maps = .*; export into another --out"
    ):
        export(run, out, ["nifti"])
    export(run, tmp_path / "other", ["nifti"])
    # Targets without a volume of their own keep their map of the central slice.
    depths = {
        path.name: nibabel.load(path).shape[2]
        for path in (tmp_path / "other" / cohort.nodules[0]).glob("cdam_*.nii.gz")
    }
    assert len(depths) == 8
    assert {name for name, depth in depths.items() if depth > 1} == {"cdam_margin.nii.gz"}


def test_formats_can_be_added_and_failures_of_others_stay(cohort, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        breaking(patch, "nrrd", 0, LidcCdamError("no room for it"))
        export(cohort.biomarkers, out, ["nifti", "nrrd"])
    # The script that opens volumes is one for both formats, and made anew.
    before = {name: when for name, when in stamps(out).items() if not name.endswith(".py")}
    assert set(failures(out)) == {(nodule, "nrrd") for nodule in cohort.nodules}
    export(cohort.biomarkers, out, ["sc"])
    assert set(rows(out)["format"]) == {"nifti", "sc"}
    assert set(failures(out)) == {(nodule, "nrrd") for nodule in cohort.nodules}
    export(cohort.biomarkers, out, ["nrrd", "nifti"])
    assert not (out / artifacts.FAILED).exists()
    assert set(rows(out)["format"]) == {"nifti", "nrrd", "sc"}
    assert before.items() <= stamps(out).items()
    capsys.readouterr()
    export(cohort.biomarkers, out, ["sc", "nrrd"])
    assert "2 nodules are exported already" in capsys.readouterr().out


def test_what_is_sent_is_what_was_asked_for(cohort, tmp_path, monkeypatch):
    sent = []
    monkeypatch.setattr("reports.export.stage.send", lambda address, files: sent.append(files) or len(files))
    out = tmp_path / "out"
    export(cohort.biomarkers, out, ["pdf", "sc"])
    export(cohort.biomarkers, out, ["pdf"], stow="http://localhost:9/dicom-web")
    assert [path.suffix for path in sent[0]] == [".dcm"] * 2
