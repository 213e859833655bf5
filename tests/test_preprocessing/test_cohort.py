"""The cohort's figures (SCIENCE.md 2), its tables' invariants and its refusals."""

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lidc_cdam import artifacts, cli
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.vocabulary import BIOMARKERS, RATINGS
from preprocessing import cohort as stage
from preprocessing.annotations import IndexBox, Nodule, Scan, load_nodules
from preprocessing.cohort import cohort, crop_inside, tables
from preprocessing.selection import Selection, read_preset, read_selection

SECOND_SCAN = {"0132": 2, "0151": 1, "0315": 2, "0365": 1, "0484": 1}
IRREGULAR = ("0085", "0146", "0267", "0490", "0572", "0672", "0835")
SPREAD_BY_FIELD = {
    "subtlety": 0.72,
    "sphericity": 0.72,
    "margin": 0.73,
    "lobulation": 0.69,
    "spiculation": 0.59,
    "texture": 0.42,
    "calcification": 0.18,
}


@pytest.fixture(scope="module")
def few() -> list[Nodule]:
    return load_nodules(patients=["LIDC-IDRI-0001", "LIDC-IDRI-0003", "LIDC-IDRI-0132", "LIDC-IDRI-0055"])


def excluded_of(data: Path) -> pd.DataFrame:
    return artifacts.read_table(data / artifacts.EXCLUDED, artifacts.EXCLUDED_COLUMNS, "cohort")


@pytest.mark.parametrize(
    ("preset", "benign", "malignant", "indeterminate"), [("all", 448, 421, 509), ("paper", 442, 412, 501)]
)
def test_figures_of_the_presets(cohorts, preset: str, benign: int, malignant: int, indeterminate: int) -> None:
    table = artifacts.read_cohort(cohorts[preset])
    assert (table["label"] == 0).sum() == benign
    assert (table["label"] == 1).sum() == malignant
    assert table["label"].isna().sum() == indeterminate


@pytest.mark.parametrize("preset", ["all", "paper"])
def test_every_nodule_is_chosen_or_excluded_once(cohorts, preset: str) -> None:
    chosen, excluded = artifacts.read_cohort(cohorts[preset]), excluded_of(cohorts[preset])
    names = [*chosen["nodule_id"], *excluded["nodule_id"]]
    assert len(names) == len(set(names)) == 2651
    assert excluded["reason"].str.len().gt(0).all()
    np.testing.assert_array_equal(chosen["reason"] == "indeterminate", chosen["label"].isna())
    np.testing.assert_array_equal(chosen["reason"] == "indeterminate", chosen["malignancy"] == 3)


def test_the_fifteen_that_the_paper_leaves_out(cohorts) -> None:
    labelled = {preset: artifacts.read_cohort(folder).dropna(subset="label") for preset, folder in cohorts.items()}
    assert set(labelled["paper"].index) <= set(labelled["all"].index)
    gone = labelled["all"].index.difference(labelled["paper"].index)
    reasons = excluded_of(cohorts["paper"]).set_index("nodule_id").loc[gone, "reason"]
    patients = reasons.index.str[len("LIDC-IDRI-") : len("LIDC-IDRI-0000")]
    second = reasons == "on the patient's second scan"
    assert Counter(patients[second]) == SECOND_SCAN
    assert reasons.index[second].str.contains("_s2_").all()
    leaves = reasons == "the 32 mm cube leaves the scan"
    assert list(patients[leaves]) == ["0463"]
    assert sorted(patients[~second & ~leaves]) == sorted(IRREGULAR)


def test_columns_and_readings(cohorts) -> None:
    table, readings = artifacts.read_cohort(cohorts["all"]), artifacts.read_readings(cohorts["all"])
    assert tuple(table.columns[: len(artifacts.COHORT_COLUMNS)]) == artifacts.COHORT_COLUMNS
    assert len(readings) == table["readers"].sum()
    text = (cohorts["all"] / artifacts.COHORT).read_text().splitlines()
    column = text[0].split(",").index("label")
    assert {line.split(",")[column] for line in text[1:]} == {"0", "1", ""}
    groups = readings.groupby("nodule_id")
    for key in (biomarker.key for biomarker in BIOMARKERS):
        np.testing.assert_allclose(groups[key].mean().loc[table.index], table[key], rtol=1e-12)
        np.testing.assert_allclose(groups[key].std().loc[table.index], table[f"{key}_sd"], atol=1e-12)
    np.testing.assert_array_equal(groups["malignancy"].median().loc[table.index], table["malignancy"])


def test_readings_spread_as_published(cohorts, every_nodule: list[Nodule]) -> None:
    crowded = tables(every_nodule, Selection(min_readers=5, max_readers=99))[0]
    chosen = pd.concat([artifacts.read_cohort(cohorts["all"]).reset_index(drop=True), crowded])
    assert len(chosen) == 1392
    assert {key: round(chosen[f"{key}_sd"].mean(), 2) for key in SPREAD_BY_FIELD} == SPREAD_BY_FIELD


def test_a_single_reader_has_no_spread(few: list[Nodule]) -> None:
    chosen = tables(few, Selection(min_readers=1, max_readers=1))[0]
    assert len(chosen)
    assert chosen["margin_sd"].isna().all()
    assert chosen["margin"].notna().all()


def test_mean_rule_labels_by_the_mean(few: list[Nodule]) -> None:
    chosen, _, readings = tables(few, Selection(label_rule="mean"))
    mean = readings.groupby("nodule_id")["malignancy"].mean().loc[chosen["nodule_id"]]
    expected = [pd.NA if value == 3 else int(value > 3) for value in mean]
    assert list(chosen["label"].astype(object).fillna(-1)) == [-1 if value is pd.NA else value for value in expected]
    assert set(readings.columns) >= {*RATINGS, "diameter"}


def test_no_chosen_nodule_leaves_tables_with_columns(few: list[Nodule]) -> None:
    chosen, excluded, readings = tables(few, Selection(min_readers=40, max_readers=40))
    assert len(chosen) == len(readings) == 0
    assert len(excluded) == len(few)
    assert set(artifacts.COHORT_COLUMNS) <= set(chosen.columns)


def test_crop_inside_measures_to_the_outermost_voxel_centres() -> None:
    scan = Scan("p", "s", "u", 1.0, 0.5, tuple(float(z) for z in range(100)), False, False, 1)
    reaching = IndexBox((32, 33), (479, 480), (16, 17))
    assert crop_inside(scan, reaching)
    assert not crop_inside(scan, IndexBox((31, 32), (300, 301), (50, 51)))
    assert not crop_inside(scan, IndexBox((100, 101), (480, 481), (50, 51)))
    assert not crop_inside(scan, IndexBox((100, 101), (100, 101), (83, 85)))


def test_the_record_holds_the_selection(cohorts) -> None:
    assert read_selection(cohorts["paper"]) == read_preset("paper")[1]
    assert not read_selection(cohorts["paper"]).allow_padding
    assert read_selection(cohorts["all"]).allow_padding


def test_no_selection_without_a_cohort(tmp_path: Path) -> None:
    with pytest.raises(LidcCdamError, match=r"has no cohort; run `lidc-cdam cohort --out"):
        read_selection(tmp_path)


def test_a_rerun_does_nothing_and_says_so(cohorts, capsys, monkeypatch) -> None:
    monkeypatch.setattr(stage, "load_nodules", None)
    cohort(cohorts["paper"], "paper")
    assert capsys.readouterr().out == f"The cohort in {cohorts['paper']} is finished; nothing to do.\n"


def test_an_interrupted_run_is_finished_by_the_next(tmp_path: Path, few, monkeypatch) -> None:
    def stopped():
        raise KeyboardInterrupt

    monkeypatch.setattr(stage, "load_nodules", stopped)
    with pytest.raises(KeyboardInterrupt):
        cohort(tmp_path)
    assert not (tmp_path / artifacts.COHORT).exists()
    monkeypatch.setattr(stage, "load_nodules", lambda: few)
    cohort(tmp_path)
    assert len(artifacts.read_cohort(tmp_path))


def test_another_presets_folder_is_refused(cohorts, capsys) -> None:
    before = (cohorts["paper"] / artifacts.COHORT).read_bytes()
    assert cli.main(["cohort", "--preset", "all", "--out", str(cohorts["paper"])]) == 1
    said = capsys.readouterr().err
    assert 'was made by `cohort` with preset = "paper", but this call has preset = "all"; choose another --out.' in said
    assert (cohorts["paper"] / artifacts.COHORT).read_bytes() == before


def test_an_unknown_preset_names_those_there_are(tmp_path: Path, capsys) -> None:
    assert cli.main(["cohort", "--preset", "papre", "--out", str(tmp_path / "d")]) == 1
    said = capsys.readouterr().err
    assert "'papre' is not a preset for `cohort`; choose one of all, paper, or give a path" in said
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("min_reader: 3", r"unknown key 'min_reader'; the nearest known one is 'min_readers'"),
        ("min_readers: 0", r"min_readers must be at least 1; got 0"),
        ("min_readers: three", r"min_readers must be a whole number; got 'three'"),
        ("min_readers: 3\nmax_readers: 2", r"max_readers must be at least min_readers \(3\); got 2"),
        ("label_rule: mode", r"label_rule must be one of median, mean; got 'mode'"),
        ("first_scan_only: 1", r"first_scan_only must be true or false; got 1"),
        ("excluded_series: [LIDC-IDRI-0085]", r"excluded_series must be a mapping from patient id to reason"),
        ("- 1", r"must hold keys with values"),
        ("a: [", r"must be YAML, but it cannot be read"),
        ("", r"must hold keys with values"),
    ],
)
def test_a_wrong_preset_file_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(LidcCdamError, match=sentence) as raised:
        read_preset(str(path))
    assert "\n" not in str(raised.value)


def test_a_missing_preset_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(LidcCdamError, match=r"--preset names .*none\.yaml, which is missing"):
        read_preset(str(tmp_path / "none.yaml"))


def test_an_excluded_series_of_nobody_is_named(few: list[Nodule]) -> None:
    with pytest.raises(LidcCdamError, match=r"must name patients that have a nodule .*; got 'LIDC-IDRI-0238'"):
        tables(few, Selection(excluded_series={"LIDC-IDRI-0238": "does not exist"}))
