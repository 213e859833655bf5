"""Artefacts that are missing, damaged or of another version: named in their place, or one sentence and nothing half."""

import dataclasses
import html
import shutil
from collections.abc import Callable
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import typst
from jinja2 import TemplateSyntaxError
from test_reports import placed, world

from lidc_cdam import artifacts, cli, crop_files, provenance
from lidc_cdam.files import read_json, write_json
from reports.export import capture
from reports.export.listing import EXPORTED, FAILED_FORMAT
from reports.stage import report

FORMATS = "nifti,sc,pdf"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> world.World:
    return world.make(tmp_path_factory.mktemp("whole"), count=2)


@pytest.fixture
def cohort(whole, tmp_path) -> world.World:
    """A run of two nodules to break, below a folder of its own."""
    root = whole.data.parent
    shutil.copytree(root, tmp_path / "made")
    moved = {name: tmp_path / "made" / getattr(whole, name).name for name in ("data", "biomarkers", "malignancy")}
    for name in ("biomarkers", "malignancy"):
        config = moved[name] / artifacts.CONFIG
        config.write_text(config.read_text().replace(str(root), str(tmp_path / "made")))
    return dataclasses.replace(whole, **moved)


def call(cohort: world.World, out: Path, command: str, *more: str) -> int:
    words = [command, "--run", str(cohort.malignancy), "--out", str(out), *more]
    return cli.main([*words, *(("--format", FORMATS) if command == "export" and "--format" not in more else ())])


def failures(out: Path) -> dict[str, set[str]]:
    """Reasons by nodule."""
    table = artifacts.read_table(out / artifacts.FAILED, artifacts.FAILED_COLUMNS, "report")
    return {nodule: set(rows["reason"]) for nodule, rows in table.groupby("nodule_id")}


def told(capsys) -> str:
    """What the command said on stderr, one sentence at most."""
    said = capsys.readouterr().err
    lines = [line for line in said.splitlines() if not line.startswith(("Reading", "Writing", "Exporting"))]
    assert len(lines) <= 1, said
    assert "Traceback" not in said
    return said


def nothing_half(out: Path) -> None:
    assert not list(out.rglob(".*"))
    assert {path.stem for path in out.glob("LIDC*.pdf")} == {path.stem for path in out.glob("LIDC*.html")}


@pytest.mark.parametrize("command", ["report", "export"])
@pytest.mark.parametrize("where", ["data", "malignancy"])
def test_no_document_goes_into_data_or_a_run(cohort, capsys, command, where) -> None:
    out = getattr(cohort, where)
    provenance.begin(out, "extract", {})
    (out / artifacts.FAILED).write_text("what extract could not make")
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert call(cohort, out, command) == 1
    assert "--out must be a folder of its own" in told(capsys)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_an_export_tells_how_many_nodules_have_no_maps(cohort, tmp_path, capsys) -> None:
    (gone,) = cohort.malignancy.glob(f"fold_*/maps/cdam/{cohort.nodules[0]}.npz")
    gone.unlink()
    assert call(cohort, tmp_path / "out", "export", "--format", "nifti") == 0
    assert "1 nodule has no cdam maps, so none are exported; run `lidc-cdam explain" in capsys.readouterr().out


def test_a_combined_file_takes_the_place_of_no_report(cohort, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    assert call(cohort, out, "report") == 0
    before = {path: path.read_bytes() for path in out.glob("*.pdf")}
    capsys.readouterr()
    (tmp_path / "link").symlink_to(out)
    for combined in (out / "run.pdf", tmp_path / "link" / f"{cohort.nodules[0]}.pdf"):
        assert call(cohort, out, "report", "--combined", str(combined)) == 1
        assert "--combined must be a file of its own" in told(capsys)
    assert call(cohort, out, "report", "--combined", str(out / "run.html" / "all.pdf")) == 1
    assert "--combined must be a PDF file to write" in told(capsys)
    assert {path: path.read_bytes() for path in out.glob("*.pdf")} == before


@pytest.mark.parametrize("command", ["report", "export"])
def test_a_run_named_by_a_dot_leaves_the_marks_of_a_sentence(cohort, tmp_path, capsys, monkeypatch, command) -> None:
    (damaged,) = cohort.malignancy.glob(f"fold_*/maps/cdam/{cohort.nodules[0]}.npz")
    damaged.write_bytes(b"no archive")
    monkeypatch.chdir(cohort.malignancy)
    more = ("--format", "nifti") if command == "export" else ()
    words = [command, "--run", ".", "--out", str(tmp_path / "out"), "--nodules", cohort.nodules[0], *more]
    assert cli.main(words) == 1
    said = capsys.readouterr()
    assert "Wrote" not in said.out
    assert f"{cohort.nodules[0]}.npz must be an NPZ file" in said.err


@pytest.mark.parametrize("command", ["report", "export"])
def test_missing_maps(cohort, tmp_path, capsys, command) -> None:
    for folder in cohort.malignancy.glob("fold_*/maps"):
        shutil.rmtree(folder)
    out = tmp_path / "out"
    assert call(cohort, out, command) == 0
    assert f"lidc-cdam explain --run {cohort.malignancy} --method cdam" in capsys.readouterr().out
    nothing_half(out)
    if command == "report":
        page = html.unescape((out / f"{cohort.nodules[0]}.html").read_text())
        assert "run <code>lidc-cdam explain --run RUN --method cdam</code>, then this report again" in page
    else:
        assert (out / cohort.nodules[0] / "ct.nii.gz").exists()
        assert not list(out.rglob("*cdam_*"))
        assert not list(out.rglob("sc_02.dcm"))


@pytest.mark.parametrize("command", ["report", "export"])
def test_a_missing_fold_folder(cohort, tmp_path, capsys, command) -> None:
    shutil.rmtree(cohort.malignancy / "fold_0")
    out = tmp_path / "out"
    assert call(cohort, out, command) == 0
    assert not told(capsys)
    nothing_half(out)
    if command == "report":
        page = html.unescape((out / f"{cohort.nodules[0]}.html").read_text())
        assert "Not known: fold_0/latents.npz is missing." in page
        assert "fold_0/validation.csv is missing" in page
        assert "run <code>lidc-cdam explain --run RUN --method cdam</code>, then this report again" in page
        assert "Signed cdam map" in (out / f"{cohort.nodules[1]}.html").read_text()
    else:
        assert not list((out / cohort.nodules[0]).glob("cdam_*"))
        assert list((out / cohort.nodules[1]).glob("cdam_*"))


@pytest.mark.parametrize("command", ["report", "export"])
def test_a_nodule_without_its_mask(cohort, tmp_path, capsys, command) -> None:
    crop_files.mask_path(cohort.data, cohort.nodules[0]).unlink()
    out = tmp_path / "out"
    assert call(cohort, out, command) == 0
    assert not told(capsys)
    reason = f"DATA/masks/{cohort.nodules[0]}.nii.gz is missing; run `lidc-cdam extract` again."
    assert failures(out) == {cohort.nodules[0]: {reason}}
    nothing_half(out)
    assert not (out / cohort.nodules[0]).exists()
    assert not (out / f"{cohort.nodules[0]}.html").exists()


def test_a_nodule_without_each_readers_masks_is_exported_with_the_consensus(tmp_path, capsys) -> None:
    made = placed.make(tmp_path, keys=("malignancy",))
    nodule = made.nodules[0]
    crop_files.reader_masks_path(made.data, nodule).unlink()
    out = tmp_path / "out"
    words = ["export", "--run", str(made.run), "--out", str(out), "--dicom", str(made.dicom), "--nodules", nodule]
    assert cli.main([*words, "--format", "nifti,seg,sr,pmap"]) == 0
    assert not (out / artifacts.FAILED).exists()
    assert not list(out.rglob("reader_[0-9]*"))
    assert (out / nodule / "consensus.nii.gz").exists()
    report = highdicom.sr.srread(out / nodule / "sr_readers.dcm")
    groups = report.content.get_volumetric_roi_measurement_groups()
    assert [group.referenced_segment.referenced_segment_numbers for group in groups] == [[1]] * 4
    (uid,) = {group.referenced_segment.referenced_sop_instance_uid for group in groups}
    assert uid == pydicom.dcmread(out / nodule / "seg_readers.dcm").SOPInstanceUID
    assert cli.main(["report", "--run", str(made.run), "--out", str(tmp_path / "report"), "--nodules", nodule]) == 0


def test_damaged_masks_of_each_reader(tmp_path, capsys) -> None:
    made = placed.make(tmp_path, keys=("malignancy",))
    crop_files.reader_masks_path(made.data, made.nodules[0]).write_bytes(b"PK nothing")
    words = ["export", "--run", str(made.run), "--out", str(tmp_path / "out"), "--format", "nifti"]
    assert cli.main(words) == 0
    ((nodule, reasons),) = failures(tmp_path / "out").items()
    assert nodule == made.nodules[0]
    assert "must be an NPZ file with masks, shape, annotation_ids" in reasons.pop()


def foreign_dataset(cohort: world.World) -> None:
    path = cohort.data / artifacts.DATASET
    write_json(path, {**read_json(path), "schema": 99})


def foreign_provenance_of_run(cohort: world.World) -> None:
    path = cohort.malignancy / "provenance.json"
    write_json(path, {**read_json(path), "schema": 99})


def no_predictions(cohort: world.World) -> None:
    (cohort.malignancy / artifacts.PREDICTIONS).unlink()


def no_cohort(cohort: world.World) -> None:
    (cohort.data / artifacts.COHORT).unlink()


@pytest.mark.parametrize("command", ["report", "export"])
@pytest.mark.parametrize(
    ("breaks", "sentence"),
    [
        (foreign_dataset, "dataset.json must have schema 1, but it has 99; run its step again with this version."),
        (foreign_provenance_of_run, "provenance.json must have schema 1, but it has 99; use the version of lidc-cdam"),
        (no_predictions, "predictions.csv is missing; run `lidc-cdam crossval` first."),
        (no_cohort, "cohort.csv is missing; run `lidc-cdam cohort` first."),
    ],
)
def test_what_no_document_can_do_without(
    cohort, tmp_path, capsys, command, breaks: Callable[[world.World], None], sentence
) -> None:
    breaks(cohort)
    assert call(cohort, tmp_path / "out", command) == 1
    assert sentence in told(capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["report", "export"])
def test_an_output_folder_of_another_form_is_refused_and_left_alone(cohort, tmp_path, capsys, command) -> None:
    out = tmp_path / "out"
    write_json(out / "provenance.json", {"schema": 99, command: {}})
    before = (out / "provenance.json").read_bytes()
    assert call(cohort, out, command) == 1
    assert "out/provenance.json must have schema 1, but it has 99" in told(capsys)
    assert (out / "provenance.json").read_bytes() == before
    assert [path.name for path in out.iterdir()] == ["provenance.json"]


def test_records_of_the_data_in_another_form_are_named_in_their_place(cohort, tmp_path, capsys) -> None:
    write_json(cohort.data / "provenance.json", {"schema": 99})
    assert call(cohort, tmp_path / "out", "report") == 0
    for name in ("run", cohort.nodules[0]):
        page = html.unescape((tmp_path / "out" / f"{name}.html").read_text())
        assert "is not known, because provenance.json of the data cannot be read; these pages say median." in page
    assert call(cohort, tmp_path / "export", "export") == 0


def other_arrays(cohort: world.World, nodule: str) -> None:
    path = next(cohort.malignancy.glob(f"fold_*/maps/cdam/{nodule}.npz"))
    np.savez(path, relevance=np.zeros(3))


def other_targets(cohort: world.World, nodule: str) -> None:
    path = next(cohort.malignancy.glob(f"fold_*/maps/cdam/{nodule}.npz"))
    stored = artifacts.read_maps(path)
    artifacts.write_maps(path, dataclasses.replace(stored, targets=("age", *stored.targets[1:])))


def not_finite(cohort: world.World, nodule: str) -> None:
    path = next(cohort.malignancy.glob(f"fold_*/maps/cdam/{nodule}.npz"))
    stored = artifacts.read_maps(path)
    artifacts.write_maps(path, dataclasses.replace(stored, scores=np.full_like(stored.scores, np.nan)))


def cut_mask(cohort: world.World, nodule: str) -> None:
    path = crop_files.mask_path(cohort.data, nodule)
    path.write_bytes(path.read_bytes()[:-20])


def smaller_mask(cohort: world.World, nodule: str) -> None:
    path = str(crop_files.mask_path(cohort.data, nodule))
    sitk.WriteImage(sitk.ReadImage(path)[:16, :16, :16], path)


@pytest.mark.parametrize("command", ["report", "export"])
@pytest.mark.parametrize(
    ("breaks", "sentence"),
    [
        (other_arrays, "must be an NPZ file with scores, targets, views, slices, but it cannot be read"),
        (other_targets, "must hold finite scores [target, view, slice, row, column] that fit its names"),
        (not_finite, "must hold finite scores [target, view, slice, row, column] that fit its names"),
        (cut_mask, "is damaged and cannot be read; delete it and run `lidc-cdam extract` again."),
        (smaller_mask, "must share one geometry, but they differ"),
    ],
)
def test_one_nodules_artefact_of_another_form(
    cohort, tmp_path, capsys, command, breaks: Callable[[world.World, str], None], sentence
) -> None:
    breaks(cohort, cohort.nodules[1])
    out = tmp_path / "out"
    assert call(cohort, out, command) == 0
    assert not told(capsys)
    ((nodule, reasons),) = failures(out).items()
    assert nodule == cohort.nodules[1]
    (reason,) = reasons
    assert sentence in reason
    assert str(tmp_path) not in reason
    nothing_half(out)
    assert not (out / nodule).exists()
    assert not (out / f"{nodule}.html").exists()


def syntax_error(*_) -> str:
    raise TemplateSyntaxError("unexpected '}'", 7, "case.html")


def test_an_error_in_the_template_of_pages(cohort, tmp_path, capsys, monkeypatch) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("reports.stage.html.render_case", syntax_error)
        assert call(cohort, out, "report") == 1
    assert "No nodule has a report; the first: unexpected '}' in line 7 of the template case.html\n" in told(capsys)
    assert set(failures(out)) == set(cohort.nodules)
    nothing_half(out)
    assert not list(out.glob("LIDC*"))
    assert call(cohort, out, "report") == 0
    assert not (out / artifacts.FAILED).exists()


@pytest.mark.parametrize("name", ["index", "run"])
def test_an_error_in_the_template_of_another_page(cohort, tmp_path, capsys, monkeypatch, name) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(f"reports.html.render_{name}", syntax_error)
        status = call(cohort, out, "report")
    said = told(capsys)
    assert not (out / f"{name}.html").exists()
    assert {path.stem for path in out.glob("LIDC*.html")} == set(cohort.nodules)
    nothing_half(out)
    if name == "index":
        assert status == 1
        assert "The index must be made from its template, but unexpected '}'" in said
    else:
        assert status == 0
        assert "No run report: unexpected" in html.unescape((out / "index.html").read_text())
    assert call(cohort, out, "report") == 0
    assert (out / f"{name}.html").exists()


@pytest.fixture
def broken_typst(tmp_path) -> typst.Compiler:
    template = tmp_path / "broken.typ"
    template.write_text("#let x = (\n")
    return typst.Compiler(str(template))


def test_an_error_in_the_template_of_papers(cohort, tmp_path, capsys, monkeypatch, broken_typst) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("reports.pdf._compiler", lambda _: broken_typst)
        assert call(cohort, out, "report") == 1
    assert "The PDF must be set from the template case.typ, but typst refuses it" in told(capsys)
    assert not list(out.glob("LIDC*"))
    assert call(cohort, out, "report") == 0


def test_an_error_in_the_templates_of_an_export(cohort, tmp_path, capsys, monkeypatch, broken_typst) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(capture, "_compiler", lambda: broken_typst)
        patch.setattr("reports.pdf._compiler", lambda _: broken_typst)
        assert call(cohort, out, "export") == 0
    assert not told(capsys)
    table = artifacts.read_table(out / artifacts.FAILED, FAILED_FORMAT, "export")
    assert list(table["format"]) == ["sc", "pdf"] * 2
    assert not table["reason"].str.contains("\n").any()
    assert (
        table["reason"].str.contains("must be set from the template (?:capture|case).typ, but typst refuses it").all()
    )
    assert not list(out.rglob("*.dcm"))
    assert (out / EXPORTED).exists()
    assert call(cohort, out, "export") == 0
    assert not (out / artifacts.FAILED).exists()


HOSTILE_IDS = (
    "../../escaped",
    "x" * 5000,
    "\u202efdp.esac",
    "<script>alert(1)</script>",
    "index",
    "exported.csv",
    ".x",
)


@pytest.mark.parametrize("command", ["report", "export"])
def test_hostile_nodule_ids(cohort, tmp_path, capsys, command) -> None:
    path = cohort.malignancy / artifacts.PREDICTIONS
    table = artifacts.read_predictions(path)
    rows = [table.iloc[[0]].assign(nodule_id=name) for name in HOSTILE_IDS]
    artifacts.write_predictions(path, artifacts.pd.concat([table, *rows]))
    cohort_table = artifacts.read_cohort(cohort.data)
    more = [cohort_table.iloc[[0]].assign(nodule_id=name) for name in HOSTILE_IDS]
    artifacts.write_table(
        cohort.data / artifacts.COHORT, artifacts.pd.concat([cohort_table, *more]), artifacts.COHORT_COLUMNS
    )
    out = tmp_path / "out" / "deep"
    assert call(cohort, out, command) == 0
    assert not told(capsys)
    assert set(failures(out)) == set(HOSTILE_IDS)
    assert all(reason.startswith("nodule_id must be") for own in failures(out).values() for reason in own)
    assert {path.name for path in tmp_path.iterdir()} == {"made", "out"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"deep"}
    nothing_half(out)
    if command == "report":
        assert "<script>alert" not in (out / "index.html").read_text()
        assert {path.stem for path in out.glob("*.html")} == {*cohort.nodules, "index", "run"}
    else:
        assert {path.name for path in out.iterdir() if path.is_dir()} == set(cohort.nodules)


def test_a_report_and_an_export_keep_apart(cohort, tmp_path) -> None:
    report(cohort.malignancy, tmp_path / "out")
    assert call(cohort, tmp_path / "out", "export", "--format", "nifti") == 0
    assert call(cohort, tmp_path / "out", "report") == 0
