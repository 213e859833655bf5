import dataclasses
import html
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from jinja2 import TemplateError
from test_reports import world

from lidc_cdam import artifacts, crop_files
from lidc_cdam.artifacts import Maps
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.files import read_json, write_json
from lidc_cdam.map_files import Volume, volume_folder, write_volume
from reports.context import open_run
from reports.stage import report


def stamps(out: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in sorted(out.rglob("*.*"))}


def test_each_nodule_has_two_documents_and_a_row_of_the_index(made):
    cohort, out = made
    names = {path.name for path in out.iterdir()}
    expected = {f"{nodule}.{form}" for nodule in cohort.nodules for form in ("html", "pdf")}
    assert names == expected | {"index.html", "run.html", "run.pdf", "checklists", "provenance.json"}
    index = (out / "index.html").read_text()
    assert all(f'href="{nodule}.html"' in index and f'href="{nodule}.pdf"' in index for nodule in cohort.nodules)
    record = read_json(out / "provenance.json")["report"]
    assert record["finished"]
    limits = list(record["results"]["scale_limits"].values())
    for stored, run in zip(limits, (cohort.biomarkers, cohort.malignancy), strict=True):
        assert stored == {str(fold): limits for fold, limits in open_run(run, "cdam")[0].limits.items()}


def test_no_document_names_a_path_of_this_machine(made):
    cohort, out = made
    for path in out.rglob("*.*"):
        assert str(cohort.data.parent).encode() not in path.read_bytes()


def test_what_the_page_says_is_what_the_artefacts_say(made):
    cohort, out = made
    table = artifacts.read_predictions(cohort.biomarkers / artifacts.PREDICTIONS).set_index("nodule_id")
    nodule = cohort.nodules[1]
    page = (out / f"{nodule}.html").read_text()
    for key in ("spiculation", "texture"):
        assert f'<span class="value">{table.loc[nodule, f"{key}_predicted"]:.1f}</span>' in page
    assert "62\u00a0% (chance 18\u00a0%" in page
    assert "no test nodule shares its patient with training or validation" in page


def test_a_rerun_does_nothing(made, capsys):
    cohort, out = made
    before = stamps(out)
    report(cohort.biomarkers, out, also_run=cohort.malignancy)
    assert stamps(out) == before
    assert "finished already" in capsys.readouterr().out


def test_the_same_artefacts_give_the_same_bytes_wherever_they_go(made, tmp_path):
    cohort, out = made
    report(cohort.biomarkers, tmp_path / "again", also_run=cohort.malignancy)
    assert {
        name: content for name, (_, content) in stamps(tmp_path / "again").items() if name != "provenance.json"
    } == {name: content for name, (_, content) in stamps(out).items() if name != "provenance.json"}


def test_without_maps_the_page_gives_the_command_and_with_maps_it_is_made_again(tmp_path, capsys):
    cohort = world.make(tmp_path, count=2, maps=False)
    out = tmp_path / "out"
    report(cohort.biomarkers, out)
    assert f"lidc-cdam explain --run {cohort.biomarkers} --method cdam" in capsys.readouterr().out
    page = out / f"{cohort.nodules[0]}.html"
    assert "run <code>lidc-cdam explain --run RUN --method cdam</code>, then this report again" in page.read_text()
    keys = tuple(artifacts.predicted_keys(artifacts.read_predictions(cohort.biomarkers / artifacts.PREDICTIONS)))
    for fold, nodule in enumerate(cohort.nodules):
        maps = Maps(world.scores(np.random.default_rng(3), len(keys)), keys, ("axial",), (16,))
        artifacts.write_maps(artifacts.maps_path(cohort.biomarkers, fold, "cdam", nodule), maps)
    report(cohort.biomarkers, out)
    assert "Signed cdam map of spiculation" in page.read_text()
    assert "as volumes" not in page.read_text()
    volume = Volume(np.zeros((1, 32, 32, 32), np.float32), ("axial",), (0.0, 0.0, 0.0), 1.0, "")
    write_volume(volume_folder(cohort.biomarkers, 0, "cdam", cohort.nodules[0]), "margin", volume)
    report(cohort.biomarkers, out)
    said = f"fold_0/volumes/cdam/{cohort.nodules[0]} in the run's folder holds the scores of 1 target as volumes"
    assert said in html.unescape(page.read_text())


def test_a_nodule_that_fails_is_a_row_with_its_reason_and_the_others_go_on(tmp_path, capsys):
    cohort = world.make(tmp_path)
    broken = crop_files.crop_path(cohort.data, cohort.nodules[1])
    kept = broken.read_bytes()
    broken.unlink()
    out = tmp_path / "out"
    report(cohort.biomarkers, out)
    failed = artifacts.read_table(out / artifacts.FAILED, artifacts.FAILED_COLUMNS, "report")
    assert failed["nodule_id"].tolist() == [cohort.nodules[1]]
    assert failed["reason"].tolist() == [
        f"DATA/crops/{cohort.nodules[1]}.nii.gz is missing; run `lidc-cdam extract` again."
    ]
    index = (out / "index.html").read_text()
    assert "Without a report: 1" in index
    assert sorted(path.stem for path in out.glob("LIDC*.pdf")) == [cohort.nodules[0], cohort.nodules[2]]
    assert "1 nodule has no report" in capsys.readouterr().out
    before = (out / f"{cohort.nodules[0]}.html").stat().st_mtime_ns
    broken.write_bytes(kept)
    report(cohort.biomarkers, out)
    assert not (out / artifacts.FAILED).exists()
    assert (out / f"{cohort.nodules[1]}.pdf").exists()
    assert (out / f"{cohort.nodules[0]}.html").stat().st_mtime_ns == before


def test_damaged_maps_fail_one_nodule_and_not_the_scale(tmp_path):
    cohort = world.make(tmp_path)
    artifacts.maps_path(cohort.biomarkers, 1, "cdam", cohort.nodules[2]).write_bytes(b"not a map")
    out = tmp_path / "out"
    report(cohort.biomarkers, out)
    failed = artifacts.read_table(out / artifacts.FAILED, artifacts.FAILED_COLUMNS, "report")
    assert failed["nodule_id"].tolist() == [cohort.nodules[2]]
    assert "must be an NPZ file" in failed["reason"][0]


def test_a_nodule_id_never_names_a_file_elsewhere(tmp_path):
    cohort = world.make(tmp_path, count=2)
    table = artifacts.read_predictions(cohort.biomarkers / artifacts.PREDICTIONS)
    table.loc[0, "nodule_id"] = "../escaped"
    artifacts.write_predictions(cohort.biomarkers / artifacts.PREDICTIONS, table)
    report(cohort.biomarkers, tmp_path / "out")
    assert not list(tmp_path.glob("escaped*"))
    failed = artifacts.read_table(tmp_path / "out" / artifacts.FAILED, artifacts.FAILED_COLUMNS, "report")
    assert failed["nodule_id"].tolist() == ["../escaped"]


def test_a_synthetic_nodule_says_so_first(tmp_path):
    cohort = world.make(tmp_path, count=2, flags=("synthetic phantom",))
    report(cohort.biomarkers, tmp_path / "out", nodules=[cohort.nodules[0]])
    page = (tmp_path / "out" / f"{cohort.nodules[0]}.html").read_text()
    assert "Synthetic phantom: drawn from readers" in page
    assert not (tmp_path / "out" / f"{cohort.nodules[1]}.html").exists()


def test_flags_are_counted_on_the_index_and_explained_in_the_report(tmp_path):
    cohort = world.make(tmp_path, count=3, flags=("gap", "wide reader range: margin"))
    dataset = artifacts.read_dataset(cohort.data)
    records = dict(dataset.nodules)
    records[cohort.nodules[0]] = dataclasses.replace(records[cohort.nodules[0]], flags=("gap",))
    artifacts.write_dataset(cohort.data, dataclasses.replace(dataset, nodules=records))
    report(cohort.biomarkers, tmp_path / "out")
    index = (tmp_path / "out" / "index.html").read_text()
    cells = re.findall(r'<th scope="row">([^<]+)</th><td class="value">(\d+)</td>', index)
    counted = {flag: int(count) for flag, count in cells}
    assert (counted["gap"], counted["wide reader range"]) == (3, 2)
    page = (tmp_path / "out" / f"{cohort.nodules[0]}.html").read_text()
    assert "Gap: slices are missing" in page


def test_another_consensus_is_named_in_the_report(tmp_path):
    cohort = world.make(tmp_path, count=1)
    dataset = artifacts.read_dataset(cohort.data)
    parameters = {**dataset.parameters, "consensus_level": 0.75}
    artifacts.write_dataset(cohort.data, dataclasses.replace(dataset, parameters=parameters))
    report(cohort.biomarkers, tmp_path / "out")
    page = (tmp_path / "out" / f"{cohort.nodules[0]}.html").read_text()
    assert "at least 75\u00a0% of the readers (consensus)" in page
    assert "at least half" not in page


def test_other_views_of_a_run_are_shown_beside_the_axial_one(tmp_path):
    cohort = world.make(tmp_path, count=2, padded=0)
    path = artifacts.maps_path(cohort.malignancy, 0, "cdam", cohort.nodules[0])
    made = artifacts.read_maps(path)
    three = dataclasses.replace(made, scores=np.repeat(made.scores, 3, axis=1), views=("sagittal", "axial", "coronal"))
    artifacts.write_maps(path, three)
    report(cohort.malignancy, tmp_path / "out")
    page = (tmp_path / "out" / f"{cohort.nodules[0]}.html").read_text()
    assert [page.count(f"over the {view} CT") for view in ("axial", "coronal", "sagittal")] == [1, 1, 1]
    assert page.index("over the axial CT") < page.index("over the coronal CT") < page.index("over the sagittal CT")


def test_the_runs_figures_stand_beside_the_ruler_and_the_noise_floor(tmp_path):
    cohort = world.make(tmp_path, count=2)
    figure = {"value": 0.91, "low": 0.88, "high": 0.94}
    write_json(
        cohort.malignancy / artifacts.SUMMARY,
        {
            "schema": 1,
            "metrics": {"malignancy": {"auc": figure}, "texture": {"z_mse": figure}},
            "baselines": {
                "ruler": {"malignancy": {"auc": {**figure, "value": 0.9}}},
                "unread_frame": {"malignancy": {"auc": {**figure, "value": 0.89}}},
            },
            "readers": {"malignancy": {"reader_auc": 0.86}},
            "noise_floor": {"texture": 0.184},
        },
    )
    report(cohort.biomarkers, tmp_path / "out", also_run=cohort.malignancy)
    index = (tmp_path / "out" / "index.html").read_text()
    assert (
        "AUC 0.910 (0.880\u00a0to\u00a00.940); the readers’ mean diameter alone 0.900 (0.880\u00a0to\u00a00.940)."
        in index
    )
    page = html.unescape((tmp_path / "out" / "run.html").read_text())
    table = re.findall(r'<th scope="row">([^<]+)</th><td>([^<]+)</td>', page)
    assert ("This run", "0.910 (0.880\u00a0to\u00a00.940)") in table
    assert ("Readers' mean diameter, one threshold", "0.900 (0.880\u00a0to\u00a00.940)") in table
    assert ("Share of the crop that was read, alone", "0.890 (0.880\u00a0to\u00a00.940)") in table


def test_what_was_not_read_is_told_on_every_page_and_only_then(made, tmp_path):
    cohort, out = made
    page = (out / f"{cohort.nodules[0]}.html").read_text()
    assert page.count("The model saw mirrored tissue there") == 2  # once for all maps, and the data quality
    assert "3 of the crops were not read in full" in (out / "index.html").read_text()
    whole = world.make(tmp_path, count=2, padded=0)
    report(whole.malignancy, tmp_path / "out")
    assert "The model saw mirrored" not in (tmp_path / "out" / f"{whole.nodules[0]}.html").read_text()
    assert "not read in full" not in (tmp_path / "out" / "index.html").read_text()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda world: {"also_run": world.biomarkers}, "--also-run must predict other targets than --run"),
        (lambda world: {"nodules": ["LIDC-IDRI-9999_n01"]}, "--nodules must be test nodules of"),
        (lambda world: {"run": world.data}, "predictions.csv is missing; run `lidc-cdam crossval` first."),
    ],
)
def test_wrong_calls_are_told_in_one_sentence(made, tmp_path, change, sentence):
    cohort, _ = made
    arguments = {"run": cohort.biomarkers, "out": tmp_path / "out", **change(cohort)}
    with pytest.raises(LidcCdamError) as raised:
        report(**arguments)
    assert sentence in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_a_run_whose_data_have_moved_asks_for_data(tmp_path):
    cohort = world.make(tmp_path, count=2)
    moved = cohort.data.rename(tmp_path / "moved")
    with pytest.raises(LidcCdamError, match="give it with --data"):
        report(cohort.malignancy, tmp_path / "out")
    report(cohort.malignancy, tmp_path / "out", data=moved)
    assert "not recorded" in (tmp_path / "out" / f"{cohort.nodules[0]}.html").read_text()


def test_nodules_in_another_order_are_the_same_reports(tmp_path, capsys):
    cohort = world.make(tmp_path, count=2)
    first, second = cohort.nodules
    report(cohort.malignancy, tmp_path / "out", nodules=[first, second])
    report(cohort.malignancy, tmp_path / "out", nodules=[second, first, second])
    assert "The reports of 2 nodules are finished already" in capsys.readouterr().out


def test_a_folder_of_another_run_is_refused(made, tmp_path):
    cohort, _ = made
    report(cohort.malignancy, tmp_path / "out", nodules=[cohort.nodules[0]])
    with pytest.raises(LidcCdamError, match="choose another --out"):
        report(cohort.biomarkers, tmp_path / "out", nodules=[cohort.nodules[0]])


def test_an_index_of_a_thousand_nodules_stays_below_five_megabytes(made):
    cohort, out = made
    page = (out / "index.html").read_bytes()
    row = page[page.index(b"<tr data-label") : page.index(b"</tbody>")]
    assert len(row) / len(cohort.nodules) * 1000 < 5_000_000
    assert all(path.stat().st_size < 1_000_000 for path in out.glob("*.*"))


def test_reports_need_no_model():
    code = "import sys, reports.stage; sys.exit(any(name in sys.modules for name in ('torch', 'timm', 'matplotlib')))"
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_predictions_without_known_targets_are_refused(tmp_path):
    cohort = world.make(tmp_path, count=2)
    table = pd.DataFrame({"nodule_id": ["a"], "patient_id": ["a"], "fold": [0]})
    artifacts.write_predictions(cohort.malignancy / artifacts.PREDICTIONS, table)
    with pytest.raises(LidcCdamError, match="it holds none"):
        report(cohort.malignancy, tmp_path / "out")


def test_an_error_of_a_template_is_a_row_and_leaves_neither_document(tmp_path, monkeypatch):
    cohort = world.make(tmp_path, count=2)

    def broken(*_):
        raise TemplateError("the template names what is not there")

    monkeypatch.setattr("reports.stage.html.render_case", broken)
    with pytest.raises(LidcCdamError, match="No nodule has a report; the first: the template names what is not there"):
        report(cohort.biomarkers, tmp_path / "out")
    assert not list((tmp_path / "out").glob("LIDC*"))
    failed = artifacts.read_table(tmp_path / "out" / artifacts.FAILED, artifacts.FAILED_COLUMNS, "report")
    assert set(failed["reason"]) == {"the template names what is not there"}


@pytest.mark.parametrize("name", ["latents.npz", "validation.csv", "explainers.csv"])
def test_what_an_older_run_lacks_is_named_in_its_place(tmp_path, name):
    cohort = world.make(tmp_path, count=2)
    for path in cohort.biomarkers.rglob(name):
        path.unlink()
    report(cohort.biomarkers, tmp_path / "out", nodules=[cohort.nodules[0]])
    page = html.unescape((tmp_path / "out" / f"{cohort.nodules[0]}.html").read_text())
    told = {
        "latents.npz": "Not known: fold_0/latents.npz is missing.",
        "validation.csv": "no intervals, because fold_0/validation.csv is missing or too small to calibrate on",
        "explainers.csv": "<code>lidc-cdam evaluate --run RUN --methods cdam,random --metrics all</code> measures them",
    }
    assert told[name] in page


def test_damaged_latents_are_named_in_their_place(tmp_path):
    cohort = world.make(tmp_path, count=2)
    (cohort.biomarkers / "fold_0" / "latents.npz").write_bytes(b"PK damaged")
    report(cohort.biomarkers, tmp_path / "out", nodules=[cohort.nodules[0]])
    page = (tmp_path / "out" / f"{cohort.nodules[0]}.html").read_text()
    assert "Not known: RUN/fold_0/latents.npz must be an NPZ file" in page
    assert str(tmp_path) not in page


@pytest.mark.parametrize(("name", "columns"), [("validation.csv", "margin_true"), ("explainers.csv", "metric")])
def test_a_damaged_table_is_told_in_one_sentence_before_anything_is_written(tmp_path, name, columns):
    cohort = world.make(tmp_path, count=2)
    path = next(cohort.biomarkers.rglob(name))
    path.write_text("nodule_id,patient_id,fold\n")
    with pytest.raises(LidcCdamError, match=f"{name} must have the columns .*{columns}"):
        report(cohort.biomarkers, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_data_of_another_schema_are_refused(tmp_path):
    cohort = world.make(tmp_path, count=2)
    stored = read_json(cohort.data / artifacts.DATASET)
    write_json(cohort.data / artifacts.DATASET, {**stored, "schema": 99})
    with pytest.raises(LidcCdamError, match=r"dataset\.json must have schema 1, but it has 99"):
        report(cohort.biomarkers, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_nodule_that_no_reader_marked_has_a_report(tmp_path):
    cohort = world.make(tmp_path, count=2)
    crop = crop_files.read_crop(cohort.data, cohort.nodules[0])
    bare = dataclasses.replace(crop, readers=np.zeros_like(crop.readers))
    crop_files.write_crop(cohort.data, cohort.nodules[0], bare)
    report(cohort.biomarkers, tmp_path / "out", nodules=[cohort.nodules[0]])
    page = html.unescape((tmp_path / "out" / f"{cohort.nodules[0]}.html").read_text())
    assert "100\u00a0% outside." in page
    assert "outside: farther out (100\u00a0%)" in page


@pytest.mark.parametrize("name", ["folder", "all.txt"])
def test_a_combined_file_that_is_no_pdf_is_refused_before_any_work(tmp_path, name):
    cohort = world.make(tmp_path, count=1, maps=False)
    (tmp_path / "folder").mkdir()
    with pytest.raises(LidcCdamError, match="--combined must be a PDF file to write"):
        report(cohort.biomarkers, tmp_path / "out", combined=tmp_path / name)
    assert not (tmp_path / "out").exists()


def test_a_word_among_the_predictions_is_refused(tmp_path):
    cohort = world.make(tmp_path, count=1, maps=False)
    path = cohort.biomarkers / artifacts.PREDICTIONS
    table = artifacts.read_predictions(path).astype({"margin_predicted": object})
    table.loc[0, "margin_predicted"] = "3x4"
    artifacts.write_predictions(path, table)
    with pytest.raises(LidcCdamError, match="numbers in the column margin_predicted"):
        report(cohort.biomarkers, tmp_path / "out")


def test_a_method_without_maps_names_those_that_there_are(tmp_path, capsys):
    cohort = world.make(tmp_path, count=1)
    report(cohort.biomarkers, tmp_path / "out", method="legrad")
    assert "has no legrad maps, only those of cdam, so its reports show none of them" in capsys.readouterr().out


def test_a_summary_that_is_no_object_is_refused_before_any_work(tmp_path):
    cohort = world.make(tmp_path, count=1, maps=False)
    (cohort.biomarkers / artifacts.SUMMARY).write_text("[1]")
    with pytest.raises(LidcCdamError, match=r"summary\.json must be a JSON object"):
        report(cohort.biomarkers, tmp_path / "out")
    assert not (tmp_path / "out").exists()
