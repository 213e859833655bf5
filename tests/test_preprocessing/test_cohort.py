"""The cohort's figures (SCIENCE.md 2), its tables' invariants and its refusals."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from small_lidc import contents

from lidc_cdam import artifacts, cli, provenance
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.files import read_json, write_json
from lidc_cdam.quality import FLAGS, INITIAL_SCALES, MANY_READINGS, WIDE_RANGE, flag_kind
from lidc_cdam.vocabulary import BIOMARKERS, RATINGS
from preprocessing import cohort as stage
from preprocessing.annotations import IndexBox, Nodule, Scan, load_nodules
from preprocessing.cohort import cohort, crop_inside, tables
from preprocessing.readings import details
from preprocessing.selection import Selection, read_preset, read_selection

SECOND_SCAN = {"0132": 2, "0151": 1, "0315": 2, "0365": 1, "0484": 1}
IRREGULAR = ("0085", "0146", "0267", "0490", "0572", "0672", "0835")
RATED = ("subtlety", "calcification", "sphericity", "margin", "lobulation", "spiculation", "texture", "malignancy")
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


PUBLISHED = [
    (Selection(min_readers=1, crowded="keep"), 2651, 875, (1150, 545, 956)),
    (Selection(min_readers=1, crowded="keep", label_rule="mean"), 2651, 875, (1365, 645, 641)),
    ("two_readers", 1880, None, (769, 491, 620)),
    (Selection(crowded="keep"), 1392, 696, (449, 430, 513)),
    (Selection(crowded="keep", label_rule="mean"), 1392, 696, (664, 530, 198)),
    ("luna_like", 1192, 607, (388, 363, 441)),
    (Selection(crowded="keep", max_slice_thickness_mm=2.5, label_rule="mean"), 1192, 607, (562, 453, 177)),
    ("four_readers", 911, None, (304, 349, 258)),
]
"""Rules, nodules, patients (where published), benign / malignant / indeterminate."""


@pytest.mark.parametrize(("rules", "nodules", "patients", "labels"), PUBLISHED)
def test_published_selections(every_nodule, drawn_once, rules, nodules: int, patients: int | None, labels) -> None:
    selection = read_preset(rules)[1] if isinstance(rules, str) else rules
    chosen, excluded, _ = tables(every_nodule, selection)
    assert (len(chosen), len(excluded)) == (nodules, 2651 - nodules)
    assert patients in (None, chosen["patient_id"].nunique())
    assert (
        tuple(int(part.sum()) for part in (chosen["label"] == 0, chosen["label"] == 1, chosen["label"].isna()))
        == labels
    )


def test_a_sensitivity_run_without_the_initial_release(every_nodule, drawn_once, cohorts) -> None:
    chosen, excluded, _ = tables(every_nodule, Selection(exclude_initial=True))
    everything = artifacts.read_cohort(cohorts["all"])
    assert set(chosen["nodule_id"]) == set(everything.index[~everything["is_from_initial"]])
    reasons = Counter(excluded["reason"])
    assert reasons["a scan of the initial release"] == everything["is_from_initial"].sum() == 448


@pytest.mark.parametrize(
    ("crowded", "chosen", "reasons"), [("exclude", 1378, 14), ("keep", 1392, 0), ("split", 1396, 0)]
)
def test_clusters_of_more_than_four_readings(crowded: str, chosen: int, reasons: int, every_nodule, drawn_once) -> None:
    nodules = every_nodule
    if crowded == "split":
        patients = {nodule.scan.patient_id for nodule in every_nodule if len(nodule.readings) > 4}
        nodules = [nodule for nodule in every_nodule if nodule.scan.patient_id not in patients]
        nodules = nodules + load_nodules(patients=patients, split_crowded=True)
    table, excluded, _ = tables(nodules, Selection(crowded=crowded))
    assert len(table) == chosen
    assert (excluded["reason"] == "more than 4 readings in one cluster").sum() == reasons
    assert len(table) + len(excluded) == len(nodules)
    names = [name for part in (table, excluded) for ids in part["annotation_ids"] for name in ids.split()]
    assert len(names) == len(set(names)) == 6859
    flagged = table[table["flags"].str.startswith(MANY_READINGS)]
    assert len(flagged) == {"exclude": 0, "keep": 14, "split": 18}[crowded]


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
    crowded = tables(every_nodule, Selection(min_readers=4, crowded="keep"))[0]
    crowded = crowded[crowded["readers"] > 4]
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
    chosen, excluded, readings = tables(few, Selection(max_slice_thickness_mm=0.1))
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


def test_flags_and_presence_are_what_the_readings_say(cohorts) -> None:
    table, readings = artifacts.read_cohort(cohorts["all"]), artifacts.read_readings(cohorts["all"])
    groups = readings.groupby("nodule_id")
    present = groups["calcification"].apply(lambda codes: (codes != 6).mean()).loc[table.index]
    np.testing.assert_allclose(table["calcification_present"], present)
    spans = groups.max(numeric_only=True) - groups.min(numeric_only=True)
    for name, flags in table["flags"].fillna("").items():
        kinds = {flag_kind(flag): details(flag) for flag in flags.split("; ") if flag}
        wide = [key for key in RATED if spans.loc[name, key] >= 2]
        assert kinds.get(WIDE_RANGE, []) == wide
        assert (INITIAL_SCALES in kinds) == table.loc[name, "is_from_initial"]
        assert set(kinds) <= set(FLAGS)
    share = {key: round(float((spans[key] >= 2).mean()), 2) for key in ("margin", "texture", "malignancy")}
    assert share == {"margin": 0.41, "texture": 0.19, "malignancy": 0.49}


def test_what_is_said_counts_flags_and_names_the_rules(tmp_path: Path, few, monkeypatch, capsys) -> None:
    monkeypatch.setattr(stage, "load_nodules", lambda **_: few)
    cohort(tmp_path, "all")
    said = capsys.readouterr().out
    digest = provenance.read_record(tmp_path, "cohort")["config"]["rules_sha256"]
    assert digest == read_preset("all")[1].digest
    assert f"Rules {digest[:12]}; written to {tmp_path}: cohort.csv, excluded.csv, readings.csv, agreement.csv." in said
    flagged = artifacts.read_cohort(tmp_path)["flags"].str.contains(WIDE_RANGE).sum()
    assert f"  {flagged:4d}  {WIDE_RANGE} (" in said


def test_the_digest_is_of_the_rules_alone(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("crowded: exclude\nmin_readers: 3\n")
    assert read_preset(str(path))[1].digest == read_preset("all")[1].digest == Selection().digest
    assert Selection(max_slice_thickness_mm=3).digest == Selection(max_slice_thickness_mm=3.0).digest
    assert len({Selection().digest, Selection(clustering="mm").digest, Selection(crowded="split").digest}) == 3


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
    def stopped(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr(stage, "load_nodules", stopped)
    with pytest.raises(KeyboardInterrupt):
        cohort(tmp_path)
    assert not (tmp_path / artifacts.COHORT).exists()
    monkeypatch.setattr(stage, "load_nodules", lambda **_: few)
    cohort(tmp_path)
    assert len(artifacts.read_cohort(tmp_path))


def as_earlier_version(data: Path) -> None:
    """Make a finished cohort look as the version before these rules left it."""
    records = read_json(data / provenance.FILE)
    config = records["cohort"]["config"]
    del config["rules_sha256"]
    for key in ("clustering", "crowded", "exclude_initial", "max_slice_thickness_mm"):
        del config["selection"][key]
    write_json(data / provenance.FILE, records)
    (data / artifacts.AGREEMENT).unlink()
    path = data / artifacts.EXCLUDED
    pd.read_csv(path).drop(columns="rule").to_csv(path, index=False)


def test_a_cohort_of_an_earlier_version_is_read_and_left_alone(cohorts, tmp_path: Path, capsys, monkeypatch) -> None:
    data = shutil.copytree(cohorts["paper"], tmp_path / "data")
    as_earlier_version(data)
    before = contents(data)
    monkeypatch.setattr(stage, "load_nodules", None)
    assert read_selection(data) == read_preset("paper")[1]
    for preset in ("paper", None):
        cohort(data, preset)
        assert capsys.readouterr().out == f"The cohort in {data} is finished; nothing to do.\n"
    assert contents(data) == before
    cohort(data, describe=True)
    assert "- 1296 by rules of the preset; 1355 nodules of 683 patients left" in capsys.readouterr().out


def test_more_readers_than_there_are_once_meant_to_keep_crowded_clusters(tmp_path: Path) -> None:
    provenance.begin(tmp_path, "cohort", {"preset": "old", "selection": {"min_readers": 1, "max_readers": 99}}).finish()
    assert read_selection(tmp_path) == Selection(min_readers=1, crowded="keep")


def test_a_cohort_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    provenance.begin(tmp_path, "cohort", {"preset": "new", "selection": {"mood": "good"}}).finish()
    with pytest.raises(
        LidcCdamError,
        match=r"as this version or an earlier one wrote them, .*'mood'.*; make the cohort again with another --out",
    ):
        read_selection(tmp_path)


@pytest.mark.parametrize("config", [{}, {"preset": "all"}, {"preset": "all", "selection": {"min_readers": 9}}])
def test_a_damaged_record_is_one_sentence(tmp_path: Path, config: dict, capsys) -> None:
    provenance.begin(tmp_path, "cohort", config).finish()
    assert cli.main(["cohort", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "provenance.json must hold the rules of a cohort" in said
    assert "unexpected" not in said
    assert said.count("\n") == 1


def test_a_changed_preset_of_the_same_name_is_refused_with_the_difference(tmp_path: Path, few, monkeypatch) -> None:
    monkeypatch.setattr(stage, "load_nodules", lambda **_: few)
    path = tmp_path / "mine.yaml"
    path.write_text("min_readers: 2")
    cohort(tmp_path / "data", str(path))
    path.write_text("min_readers: 2\nlabel_rule: mean")
    with pytest.raises(
        LidcCdamError, match=r"was made with label_rule = 'median', but --preset .* 'mean'; choose another"
    ):
        cohort(tmp_path / "data", str(path))


def test_a_lost_table_is_made_again(cohorts, tmp_path: Path, every_nodule, drawn_once, monkeypatch) -> None:
    data = shutil.copytree(cohorts["all"], tmp_path / "data")
    (data / artifacts.AGREEMENT).unlink()
    monkeypatch.setattr(stage, "load_nodules", lambda **_: every_nodule)
    cohort(data)
    assert contents(data) == contents(cohorts["all"])


def test_another_presets_folder_is_refused(cohorts, capsys) -> None:
    before = (cohorts["paper"] / artifacts.COHORT).read_bytes()
    assert cli.main(["cohort", "--preset", "all", "--out", str(cohorts["paper"])]) == 1
    said = capsys.readouterr().err
    assert 'was made by `cohort` with preset = "paper", but this call has preset = "all"; choose another --out.' in said
    assert (cohorts["paper"] / artifacts.COHORT).read_bytes() == before


def test_an_unknown_preset_names_those_there_are(tmp_path: Path, capsys) -> None:
    assert cli.main(["cohort", "--preset", "papre", "--out", str(tmp_path / "d")]) == 1
    said = capsys.readouterr().err
    assert (
        "'papre' is not a preset for `cohort`; choose one of all, four_readers, luna_like, paper, two_readers, or give"
        in said
    )
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("min_reader: 3", r"unknown key 'min_reader'; the nearest known one is 'min_readers'"),
        ("min_readers: 0", r"min_readers must be from 1 to 4, the readers of a scan; got 0"),
        ("max_readers: 99", r"max_readers must be from 1 to 4, the readers of a scan; got 99"),
        ("min_readers: three", r"min_readers must be a whole number; got 'three'"),
        ("min_readers: 3\nmax_readers: 2", r"max_readers must be at least min_readers \(3\); got 2"),
        ("label_rule: mode", r"label_rule must be one of median, mean; got 'mode'"),
        ("clustering: inches", r"clustering must be one of pylidc, mm; got 'inches'"),
        ("crowded: maybe", r"crowded must be one of exclude, keep, split; got 'maybe'"),
        ("crowded: [keep]", r"crowded must be one of exclude, keep, split; got \['keep'\]"),
        ("exclude_initial: yes please", r"exclude_initial must be true or false; got 'yes please'"),
        ("max_slice_thickness_mm: 0", r"max_slice_thickness_mm must be a number of mm above 0, or null; got 0"),
        ("max_slice_thickness_mm: .nan", r"must be a number of mm above 0, or null; got nan"),
        ("max_slice_thickness_mm: true", r"must be a number of mm above 0, or null; got True"),
        ("max_slice_thickness_mm: 2.5 mm", r"must be a number of mm above 0, or null; got '2.5 mm'"),
        ("max_slice_thickness: 2.5", r"the nearest known one is 'max_slice_thickness_mm'"),
        ("first_scan_only: 1", r"first_scan_only must be true or false; got 1"),
        ("excluded_series: [LIDC-IDRI-0085]", r"excluded_series must be a mapping from patient id to reason"),
        ("min_readers: 2\nmin_readers: 3", r"must give each key once, but it has 'min_readers' 2 times; mend it"),
        ("excluded_series: {LIDC-IDRI-0085: a, LIDC-IDRI-0085: b}", r"it has 'LIDC-IDRI-0085' 2 times"),
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
    assert str(raised.value).startswith(f"--preset {path}")


def test_a_missing_preset_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(LidcCdamError, match=r"--preset names .*none\.yaml, which is missing"):
        read_preset(str(tmp_path / "none.yaml"))


def test_a_preset_that_fails_leaves_the_folder_free_for_the_mended_one(tmp_path: Path, few, monkeypatch) -> None:
    monkeypatch.setattr(stage, "load_nodules", lambda **_: few)
    path = tmp_path / "mine.yaml"
    path.write_text("excluded_series: {LIDC-IDRI-0238: does not exist}")
    with pytest.raises(LidcCdamError, match="got 'LIDC-IDRI-0238'"):
        cohort(tmp_path / "data", str(path))
    path.write_text("excluded_series: {LIDC-IDRI-0001: just so}")
    cohort(tmp_path / "data", str(path))
    assert "LIDC-IDRI-0001_n01" in set(excluded_of(tmp_path / "data")["nodule_id"])


def test_an_excluded_series_of_nobody_is_named(few: list[Nodule]) -> None:
    with pytest.raises(LidcCdamError, match=r"must name patients that have a nodule .*; got 'LIDC-IDRI-0238'"):
        tables(few, Selection(excluded_series={"LIDC-IDRI-0238": "does not exist"}))
