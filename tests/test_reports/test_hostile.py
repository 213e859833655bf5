"""Text of artefacts that is markup, code, a path or a flood elsewhere: every document shows it as text."""

import dataclasses
from pathlib import Path

import pandas as pd
import pydicom
import pypdfium2
import pytest
import yaml
from test_reports import world
from test_reports.test_html import Tags

from lidc_cdam import artifacts
from reports.export.stage import export
from reports.stage import report

HOSTILE = {
    "markup": "<script>alert(1)</script><b onclick>",
    "typst": '#read("/etc/passwd") #panic() $x$ `raw` @cite',
    "path": "../../../../etc/passwd",
    "long": "x" * 10_000,
    "reversed": "\u202efdp.esac\u2066",
    "dicom": "A\\B^C=D",
}
"""A patient_id of each kind."""
UNFIT = ("long", "reversed", "dicom")
"""Those that no DICOM object can hold."""


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> tuple[world.World, Path]:
    """Reports and exports of a run whose tables hold such text wherever they can."""
    root = tmp_path_factory.mktemp("hostile")
    made = world.make(root, count=len(HOSTILE))
    run = made.malignancy
    table = artifacts.read_predictions(run / artifacts.PREDICTIONS)
    table["patient_id"] = list(HOSTILE.values())
    artifacts.write_predictions(run / artifacts.PREDICTIONS, table)
    dataset = artifacts.read_dataset(made.data)
    records = {
        nodule: dataclasses.replace(dataset.nodules[nodule], flags=(text,), source=text)
        for nodule, text in zip(made.nodules, HOSTILE.values(), strict=True)
    }
    artifacts.write_dataset(made.data, dataclasses.replace(dataset, nodules=records))
    config = yaml.safe_load((run / artifacts.CONFIG).read_text(encoding="utf-8"))
    config["backbone"] = HOSTILE["typst"] + HOSTILE["markup"]
    (run / artifacts.CONFIG).write_text(yaml.safe_dump(config), encoding="utf-8")
    out = root / "out"
    report(run, out / "report", combined=out / "combined.pdf")
    export(run, out / "export", ["nifti", "sc", "pdf"])
    return made, out


def test_every_nodule_has_its_report(hostile) -> None:
    made, out = hostile
    assert not (out / "report" / artifacts.FAILED).exists()
    assert {path.stem for path in (out / "report").glob("LIDC*.pdf")} == set(made.nodules)


def test_pages_hold_no_markup_of_the_tables(hostile) -> None:
    _, out = hostile
    pages = list((out / "report").glob("*.html"))
    assert len(pages) == len(HOSTILE) + 2
    for path in pages:
        page = path.read_text(encoding="utf-8")
        assert "<script>alert" not in page
        for _, attributes in Tags(page).found:
            assert not any(name.startswith("on") for name in attributes), path.name


def test_papers_show_typst_code_as_text(hostile) -> None:
    _, out = hostile
    papers = [*(out / "report").glob("*.pdf"), out / "combined.pdf"]
    for path in papers:
        document = pypdfium2.PdfDocument(path)
        text = "\n".join(page.get_textpage().get_text_range() for page in document)
        document.close()
        assert "root:" not in text, path.name
        assert "#read(" in text, path.name


def test_files_lie_in_their_folders_alone(hostile) -> None:
    made, out = hostile
    assert {path.name for path in out.iterdir()} == {"report", "export", "combined.pdf"}
    folders = {path.name for path in (out / "export").iterdir() if path.is_dir()}
    assert folders == set(made.nodules)


def test_an_identifier_that_dicom_cannot_hold_is_a_reason_and_no_half_object(hostile) -> None:
    made, out = hostile
    failed = artifacts.read_table(out / "export" / artifacts.FAILED, artifacts.FAILED_COLUMNS, "export")
    exported = pd.read_csv(out / "export" / "exported.csv")
    refused = [nodule for nodule, kind in zip(made.nodules, HOSTILE, strict=True) if kind in UNFIT]
    assert list(zip(failed["nodule_id"], failed["format"], strict=True)) == [
        (nodule, name) for nodule in refused for name in ("sc", "pdf")
    ]
    assert failed["reason"].str.startswith("patient_id must be 1 to 63 printable characters").all()
    assert failed["reason"].str.len().max() < 250
    assert set(exported.loc[exported["format"] != "nifti", "nodule_id"]) == set(made.nodules) - set(refused)
    assert set(exported.loc[exported["format"] == "nifti", "nodule_id"]) == set(made.nodules)
    for path in (out / "export").rglob("*.dcm"):
        held = pydicom.dcmread(path)
        assert held.PatientID in HOSTILE.values()
        assert str(held.PatientName) == f"{held.PatientID}^"
