"""A run of another kind must change the answer."""

import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from test_reports import world
from test_reports.test_run_report import figure, write_comparison, write_summary

from lidc_cdam import artifacts, provenance
from lidc_cdam.artifacts import Fold
from lidc_cdam.files import read_json, write_json
from reports import kind
from reports.answers import FIXED, answers_of, together
from reports.card import limits
from reports.checklists import CHECKLISTS, published
from reports.cohort_part import splits_blocks
from reports.context import open_run
from reports.explained import explainers_blocks
from reports.facts import Facts, gather
from reports.results import headline, performance
from reports.run_report import run_content
from training.settings import TrainingSettings

USUAL = {
    key: value
    for key, value in TrainingSettings(targets="biomarkers").as_dict().items()
    if key not in ("targets", "views")
}


@pytest.fixture(scope="module")
def usual(tmp_path_factory) -> world.World:
    """Runs with the usual settings; tests only read them, or copy a run's folder."""
    cohort = world.make(tmp_path_factory.mktemp("usual"), count=4)
    for run in (cohort.biomarkers, cohort.malignancy):
        set_up(run)
    return cohort


@pytest.fixture(scope="module")
def known(usual) -> dict[str, str]:
    """The answers of the usual run of biomarkers."""
    return answers_of(facts_again(usual.biomarkers))


@pytest.fixture(scope="module")
def answered(usual, tmp_path_factory) -> Callable[[dict[str, Any]], dict[str, str]]:
    """The answers of a run with other settings; made once for each."""
    made: dict[str, dict[str, str]] = {}

    def answers(settings: dict[str, Any]) -> dict[str, str]:
        name = repr(settings)
        if name not in made:
            made[name] = answers_of(facts_of(usual, tmp_path_factory.mktemp("other"), **settings))
        return made[name]

    return answers


def set_up(folder: Path, **settings: Any) -> None:
    """Give a made-up run a summary and the usual settings but for those given."""
    stored = yaml.safe_load((folder / artifacts.CONFIG).read_text())
    (folder / artifacts.CONFIG).write_text(yaml.safe_dump({**USUAL, **stored, **settings}))
    write_summary(folder)


def facts_of(usual: world.World, root: Path, run: str = "biomarkers", **settings: Any) -> Facts:
    """The facts of a copy of a usual run with other settings."""
    folder = root / run
    shutil.copytree(getattr(usual, run), folder)
    set_up(folder, **settings)
    return facts_again(folder)


def facts_again(folder: Path, method: str = "cdam") -> Facts:
    return gather(open_run(folder, method)[0])


def test_every_setting_of_a_training_is_understood():
    every = {field.name for field in fields(TrainingSettings)} | {"data", "splits"}
    assert every == kind.KNOWN


def test_a_setting_that_the_report_does_not_know_leaves_training_to_the_author(usual, known, tmp_path):
    unknown = answers_of(facts_of(usual, tmp_path, class_weights="balanced"))
    keys = ("technology", "model", "initial", "training", "selection", "ensembling", "imbalance", "predictors")
    assert all(known[key] for key in keys)
    assert not any(unknown[key] for key in (*keys, "calculation"))
    assert unknown["counts"]
    assert "settings that this report does not know (class_weights)" in unknown["limitations"]
    assert "does not know" not in known["limitations"]


@pytest.mark.parametrize(
    ("settings", "key", "before", "after"),
    [
        ({"mask_channel": True}, "users", "A user centres the nodule", "A user centres and outlines the nodule"),
        ({"mask_channel": True}, "predictor_readers", "centred on.", "their consensus is an input too"),
        ({"mask_channel": True}, "predictors", "three times)", "and the readers' consensus)"),
        ({"radiomics": True}, "predictors", "None selected", "radiomics of the readers' consensus"),
        ({"radiomics": True}, "features", "Not applicable", "the model's second head"),
        ({"radiomics": True}, "dimensionality", "Not applicable", ""),
        (
            {"radiomics": True},
            "missing_data",
            "No label or rating is imputed",
            "take the median of the fold's training",
        ),
        ({"radiomics": True}, "one_imaging", "CT alone.", "Radiomics are of the same crops."),
        ({"radiomics": True}, "ensembling", "predicts it alone", "sum of an image head and a radiomics head"),
        ({"radiomics": True, "side_head": "kernel"}, "model", "linear head", "second head (kernel ridge regression)"),
        ({"radiomics": True, "side_head": "kernel"}, "selection", "choose no epoch.", "on the validation nodules too"),
        ({"average": 0.99}, "selection", "choose no epoch.", "running mean of the weights"),
        ({"patience": 5}, "selection", "choose no epoch.", "stops after 5 epochs"),
        ({"views": ["axial", "coronal"]}, "ensembling", "predicts it alone.", "for the axial and coronal views"),
        ({"views": ["axial", "coronal"]}, "calculation", "the axial view", "mean over the axial and coronal views"),
        ({"weights": "hub"}, "initial", "Random weights; seed 0.", "the published weights of its name"),
        ({"weights": "/a/b/start.pt"}, "initial", "Random weights", "the file start.pt, head from random weights"),
        ({"stack": "adjacent"}, "model", "one slice, three times", "neighbours 3 slices to either side"),
        ({"permute_labels": True}, "goal", "Development of a model", "A control for measuring maps"),
        ({"permute_labels": True}, "test_annotation", "as for training", "dealt out anew at random"),
        ({"permute_labels": True}, "differences", "None in source", "permuted labels"),
        ({"permute_labels": True}, "intended_use", "Research on lung nodules", "its predictions mean nothing"),
        ({"permute_labels": True}, "performance", "mean z-MSE", "The labels were permuted before training"),
    ],
)
def test_settings_change_the_answer(known, answered, settings, key, before, after):
    changed = answered(settings)[key]
    assert before in known[key]
    assert after in changed
    assert changed != known[key]


def test_imbalance_is_of_classes_and_tells_the_second_heads_scaling(usual, known, tmp_path):
    assert known["imbalance"] == "Not applicable: the run predicts no class."
    plain = answers_of(facts_again(usual.malignancy))["imbalance"]
    assert plain == "No re-sampling, no class weights, no recalibration: all training nodules count alike."
    kernel = answers_of(facts_of(usual, tmp_path, "malignancy", radiomics=True, side_head="kernel"))["imbalance"]
    assert "logit by logistic regression" in kernel


def test_phantoms_are_no_scans_of_patients(known, tmp_path):
    real = known
    drawn_facts = facts_again(world.make(tmp_path, count=2, flags=("synthetic phantom",)).biomarkers)
    drawn = answers_of(drawn_facts)
    for key in (
        "retrospective",
        "deidentified",
        "data_source",
        "interval",
        "one_imaging",
        "availability",
        "acquisition",
    ):
        assert real[key] != drawn[key], key
    assert "Retrospective: public scans" not in " ".join(drawn.values())
    assert drawn["data_source"].endswith("no CT of a patient.")
    assert "phantoms" in drawn["intended_use"]
    assert any("Tested on phantoms alone" in sentence for sentence in limits(drawn_facts))
    assert not any("within LIDC-IDRI alone" in sentence for sentence in limits(drawn_facts))


def test_a_run_with_some_phantoms_says_both_and_counts_them_whatever_is_shown(usual):
    facts = facts_again(usual.biomarkers)
    name = facts.predictions["nodule_id"].iloc[0]
    records = {**facts.dataset.nodules, name: replace(facts.dataset.nodules[name], flags=("synthetic phantom",))}
    mixed = replace(facts, dataset=replace(facts.dataset, nodules=records))
    answer = answers_of(mixed)["retrospective"]
    assert answer.startswith("Real nodules: Retrospective")
    assert "Phantoms: Synthetic images" in answer
    content = run_content([mixed], answers_of(mixed))
    assert content["synthetic"] == 1
    assert content["title"].endswith(", with synthetic phantoms")


def test_leaky_folds_are_told_with_every_figure(usual):
    facts = facts_again(usual.biomarkers)
    assert facts.splits is not None
    leaky = replace(facts, splits=replace(facts.splits, protocol="paper_appendix", shared_patients=0.56))
    assert "share their patient" not in " ".join(headline(facts))
    assert "Leakage: 56\u00a0% of the test nodules share their patient" in " ".join(headline(leaky))
    assert "Leakage" in answers_of(leaky)["performance"]
    assert "Leakage" in answers_of(leaky)["disjoint"]


def test_one_split_is_no_cross_validation_and_missing_folds_are_counted(usual):
    facts = facts_again(usual.biomarkers)
    assert facts.splits is not None
    assert answers_of(facts)["internal"].startswith("Cross-validation of 2 folds. ")
    one = replace(facts, splits=replace(facts.splits, folds=facts.splits.folds[:1]))
    assert answers_of(one)["internal"].startswith("One split")
    assert "on one split" in answers_of(one)["goal"]
    assert answers_of(one)["partition"].startswith("1 fold, protocol")
    part = replace(facts, predictions=facts.predictions[facts.predictions["fold"] == 0])
    assert answers_of(part)["internal"].startswith("Cross-validation of 2 folds, 1 of them so far. ")


def with_undecided(facts: Facts) -> Facts:
    """The same with the last nodule undecided and in no part."""
    assert facts.splits is not None
    names = list(facts.cohort.index)
    cohort = facts.cohort.copy()
    cohort.loc[names[3], "label"] = pd.NA
    folds = (Fold((names[1],), (), (names[0],)), Fold((names[0],), (), (names[1],)))
    return replace(facts, cohort=cohort, splits=replace(facts.splits, folds=folds))


def test_undecided_nodules_that_train_are_counted(usual, tmp_path):
    plain = with_undecided(facts_again(usual.biomarkers))
    taught = with_undecided(facts_of(usual, tmp_path, indeterminate=True))
    assert kind.undecided(plain) == []
    assert kind.undecided(taught) == [1, 1]
    assert "indeterminate nodules train" not in answers_of(plain)["partition"]
    assert "1 indeterminate nodules train each fold's biomarkers" in answers_of(taught)["partition"]
    assert "and 1 indeterminate in training" in answers_of(taught)["events"]
    assert "Training alone also holds indeterminate nodules" in answers_of(taught)["differences"]
    table = next(block for block in splits_blocks(taught) if block["kind"] == "table")
    assert "+ 1" in str(table)
    assert "Indeterminate, in training" in str(table)


def test_undecided_nodules_whose_patient_is_tested_do_not_count(usual, tmp_path):
    facts = with_undecided(facts_of(usual, tmp_path, indeterminate=True))
    cohort = facts.cohort.copy()
    names = list(cohort.index)
    cohort.loc[names[3], "patient_id"] = cohort.loc[names[0], "patient_id"]
    assert kind.undecided(replace(facts, cohort=cohort)) == [0, 1]


def test_the_cohorts_rule_for_labels_is_the_reports(tmp_path):
    run = world.make(tmp_path, count=2).malignancy
    set_up(run)
    facts = facts_again(run)
    assert "readers' median malignancy is above 3" in answers_of(facts)["output"]
    provenance.begin(facts.run.data, "cohort", {"selection": {"label_rule": "mean", "min_readers": 2}}).finish()
    other = facts_again(facts.run.folder)
    answers = answers_of(other)
    assert "readers' mean malignancy is above 3" in answers["output"]
    assert "malignancy: mean of their ratings" in answers["reference_standard"].lower()
    assert any("also where these pages say median" in sentence for sentence in headline(other))
    assert "fewer than 2 readers" in answers["limitations"]
    assert "label by the readers' mean" in answers["eligibility"]


def test_maps_are_called_what_their_method_makes(usual):
    facts = facts_again(usual.biomarkers)
    assert answers_of(facts)["explainability"] == "Signed maps per target (cdam) of every test nodule."
    for method, words in (("attention", "Unsigned maps"), ("gradcam", "raises an output"), ("random", "a control")):
        run = replace(facts.run, method=method)
        assert words in answers_of(replace(facts, run=run))["explainability"]
    fewer = replace(facts.run, mapped={0: 1})
    assert "of 1 of 4 test nodules" in answers_of(replace(facts, run=fewer))["explainability"]
    assert answers_of(replace(facts, run=replace(facts.run, limits={})))["explainability"] == ""


def test_a_map_is_said_to_explain_what_its_method_goes_through(usual):
    facts = facts_again(usual.biomarkers)
    assert any("head and last block only" in sentence for sentence in limits(facts))
    whole = replace(facts, run=replace(facts.run, method="integrated_gradients"))
    assert not any("last block only" in sentence for sentence in limits(whole))
    assert any("back through the whole model" in sentence for sentence in limits(whole))


def test_what_was_not_measured_is_not_claimed(usual, tmp_path):
    facts = facts_of(usual, tmp_path)
    (facts.run.folder / artifacts.SUMMARY).unlink()
    bare = answers_of(facts_again(facts.run.folder))
    for key in (
        "measures",
        "uncertainty",
        "internal",
        "performance",
        "diagnostic",
        "calibration",
        "beside",
        "confounders",
    ):
        assert bare[key] == "", key


def test_every_fixed_answer_is_asked_for_and_every_asked_answer_is_made(known):
    asked = {row["answer"] for each in CHECKLISTS for row in published(each.key)} - {""}
    assert asked <= set(known)
    assert set(FIXED) <= asked


def test_of_two_runs_what_only_one_says_is_under_its_title():
    told = together({"A": {"x": "same", "y": "one", "z": ""}, "B": {"x": "same", "y": "", "z": ""}})
    assert told == {"x": "same", "y": "For a: one", "z": ""}


def blocks_text(blocks: list[dict[str, Any]]) -> str:
    return str(blocks)


def test_a_constant_answers_auprc_and_spearmans_replicates_are_told(usual, tmp_path):
    facts = facts_of(usual, tmp_path, "malignancy")
    boot = {"unit": "patient", "replicates": 2000, "level": 0.95, "seed": 0}
    metrics = {"malignancy": {"auc": figure(0.87)}, "margin": {"spearman": figure(0.3)}}
    write_summary(facts.run.folder, bootstrap=boot, metrics=metrics)
    facts = facts_again(facts.run.folder)
    text = blocks_text(performance(facts))
    assert "an AUPRC of 0.500, the share of malignant nodules" in text
    assert "2000 (Spearman: 500) bootstrap replicates over patients" in text
    assert "2000 (Spearman: 500) bootstrap replicates" in answers_of(facts)["uncertainty"]


def test_auprc_stands_beside_its_own_chance_and_tables_name_their_nodules(usual, tmp_path):
    facts = facts_of(usual, tmp_path)
    write_comparison(facts.run.folder)
    path = facts.run.folder / "explainers.json"
    stored = read_json(path)
    for targets in stored["methods"].values():
        row = targets["all"]
        row["auprc"], row["auprc_chance"] = figure(0.33), figure(0.14)
        row["fidelity"] = {**figure(7.5), "nodules": 3}
        row["relevance_mass"] = {**figure(0.4), "nodules": 4}
    write_json(path, stored)
    text = blocks_text(explainers_blocks(facts_again(facts.run.folder)))
    assert "0.33 (0.28 to 0.38); chance 0.14" in text
    assert "On what the model uses: mean over targets with 95 % intervals (3 nodules)" in text
    assert "On the readers' consensus: mean over targets with 95 % intervals (4 nodules)" in text


def test_every_rival_of_the_biomarkers_has_its_interval_and_kernel_ridge_is_one(usual, tmp_path):
    facts = facts_of(usual, tmp_path)
    rival = {"spiculation": {"z_mse": figure(0.5)}, "biomarkers": {"mean_z_mse": figure(0.45)}}
    baselines = {
        "radiomics_kernel": rival,
        "one_reader": {"spiculation": {"z_mse": figure(1.2)}},
        "noise_floor": {"spiculation": {"z_mse": figure(0.2)}},
        "model_minus_radiomics_kernel": {"biomarkers": {"mean_z_mse": figure(0.01)}},
    }
    write_summary(facts.run.folder, baselines=baselines)
    text = blocks_text(performance(facts_again(facts.run.folder)))
    assert "Radiomics, kernel ridge" in text
    for told in (
        "0.500 (0.450 to 0.550)",
        "1.200 (1.150 to 1.250)",
        "0.200 (0.150 to 0.250)",
        "0.450 (0.400 to 0.500)",
    ):
        assert told in text
    assert "Mean z-MSE minus that of radiomics by kernel ridge regression: +0.010" in text
