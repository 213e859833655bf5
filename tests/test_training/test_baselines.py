import dataclasses
import shutil

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from lidc_cdam.artifacts import predicted_keys, read_cohort, read_splits
from lidc_cdam.crop_files import mask_path
from lidc_cdam.vocabulary import BIOMARKERS, MALIGNANCY, TARGETS
from training.baselines import fit_baselines, fit_logistic
from training.inference import predictions_table
from training.run import open_run
from training.settings import TrainingSettings

TREES = 10
JOINT = tuple(TARGETS.values())

RADIOMICS = ("radiomics", "radiomics_kernel")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("baselines") / "run"


@pytest.fixture
def run(data, out):
    return open_run(data, out, TrainingSettings(targets="joint"), None)


def rows_of(run):
    """A table that says which fold tests each nodule."""
    rows = [(fold, key) for fold, part in enumerate(run.splits.folds) for key in part.test]
    table = run.cohort.loc[[key for _, key in rows], ["nodule_id", "patient_id"]].reset_index(drop=True)
    return table.assign(fold=[fold for fold, _ in rows])


def changed(run, **columns):
    return dataclasses.replace(run, cohort=run.cohort.assign(**columns))


def values(table):
    return table[[f"{key}_predicted" for key in predicted_keys(table)]].to_numpy()


def test_every_nodule_is_answered_and_radiomics_sees_the_size(run):
    found = fit_baselines(run, rows_of(run), JOINT, TREES)
    assert found.absent == {}
    for name in RADIOMICS:
        table = found.tables[name]
        assert predicted_keys(table) == tuple(TARGETS)
        assert sorted(table["nodule_id"]) == sorted(run.cohort.index)
        assert np.array_equal(table["malignancy_true"], run.cohort.loc[table["nodule_id"], "label"])
        # Malignant phantoms are larger and brighter.
        assert roc_auc_score(table["malignancy_true"], table["malignancy_predicted"]) > 0.95
        assert np.corrcoef(table["diameter_true"], table["diameter_predicted"])[0, 1] > 0.9
    assert predicted_keys(found.tables["readers_logistic"]) == ("malignancy",)


def test_two_fits_agree_exactly(run):
    first, second = (fit_baselines(run, rows_of(run), JOINT, TREES).tables for _ in range(2))
    for name in first:
        np.testing.assert_array_equal(values(first[name]), values(second[name]))


def test_the_test_fold_teaches_nothing(run):
    rows = rows_of(run)
    fold = rows["fold"] == 0
    names = rows["nodule_id"][fold]
    label = run.cohort["label"].astype(float).copy()
    label.loc[names] = 1 - label.loc[names]
    margin = run.cohort["margin"].copy()
    margin.loc[names] = 9.0
    before = fit_baselines(run, rows, JOINT, TREES).tables
    after = fit_baselines(changed(run, label=label, margin=margin), rows, JOINT, TREES).tables
    for name in RADIOMICS:
        np.testing.assert_array_equal(values(before[name])[fold], values(after[name])[fold])
        assert not np.array_equal(values(before[name])[~fold], values(after[name])[~fold])


@pytest.mark.parametrize("name", RADIOMICS)
def test_nodules_outside_the_folds_teach_biomarkers_unless_their_patient_is_tested(run, name):
    folds = run.splits.folds
    named = folds[0].train[0]
    left = dataclasses.replace(
        run.splits,
        folds=tuple(
            dataclasses.replace(
                fold,
                **{
                    role: tuple(key for key in getattr(fold, role) if key != named) for role in ("train", "val", "test")
                },
            )
            for fold in folds
        ),
    )
    part = dataclasses.replace(run, splits=left)
    rows = rows_of(part)
    margins = [run.cohort["margin"].where(run.cohort.index != named, other) for other in (1.0, 5.0)]
    answers = [
        values(fit_baselines(changed(part, margin=margin), rows, BIOMARKERS, TREES).tables[name]) for margin in margins
    ]
    assert not np.array_equal(*answers)
    # The same nodule, of a patient of fold 0's test part.
    patient = run.cohort["patient_id"].where(run.cohort.index != named, run.cohort.loc[folds[0].test[0], "patient_id"])
    answers = [
        values(fit_baselines(changed(part, margin=margin, patient_id=patient), rows, BIOMARKERS, TREES).tables[name])
        for margin in margins
    ]
    first = (rows["fold"] == 0).to_numpy()
    np.testing.assert_array_equal(answers[0][first], answers[1][first])


def test_a_single_biomarker_has_a_forest_of_its_own(run):
    found = fit_baselines(run, rows_of(run), [TARGETS["diameter"]], TREES)
    assert set(found.tables) == set(RADIOMICS)
    for table in found.tables.values():
        assert predicted_keys(table) == ("diameter",)


def test_one_class_is_a_reason(run):
    found = fit_baselines(changed(run, label=1.0), rows_of(run), JOINT, TREES)
    assert found.tables == {}
    for name in (*RADIOMICS, "readers_logistic"):
        assert "nodules for training have one class alone" in found.absent[name]


def test_a_missing_reader_value_is_a_reason(run):
    texture = run.cohort["texture"].where(run.cohort.index != run.cohort.index[3])
    found = fit_baselines(changed(run, texture=texture), rows_of(run), JOINT, TREES)
    assert f"{run.cohort.index[3]} lacks texture" in found.absent["readers_logistic"]
    for name in RADIOMICS:
        assert np.isfinite(values(found.tables[name])).all()


def test_a_missing_mask_and_no_trees_are_reasons(data, tmp_path):
    folder = shutil.copytree(data, tmp_path / "data")
    mask_path(folder, read_cohort(folder).index[0]).unlink()
    run = open_run(folder, tmp_path / "run", TrainingSettings(targets="joint"), None)
    found = fit_baselines(run, rows_of(run), JOINT, TREES)
    for name in RADIOMICS:
        assert "is missing; run `lidc-cdam extract` again" in found.absent[name]
    assert list(found.tables) == ["readers_logistic"]
    assert "left out by --trees 0" in fit_baselines(run, rows_of(run), JOINT, 0).absent["radiomics"]


def test_the_logistic_regression_is_of_standardised_values(data):
    cohort, fold = read_cohort(data), read_splits(data / "splits.json").folds[0]
    fitted = fit_logistic(cohort, fold.train)
    scaled = cohort.assign(diameter=cohort["diameter"] * 10)
    again = fit_logistic(scaled, fold.train)
    np.testing.assert_allclose(fitted[-1].coef_, again[-1].coef_, rtol=1e-6)
    assert np.argmax(fitted[-1].coef_[0]) == len(BIOMARKERS) - 1


def test_predictions_have_the_form_of_a_runs(run):
    table = fit_baselines(run, rows_of(run), [MALIGNANCY], TREES).tables["radiomics"]
    form = predictions_table(run.cohort.head(1), 0, [MALIGNANCY], np.zeros((1, 1)), np.zeros((1, 1)))
    assert list(table.columns) == list(form.columns)
