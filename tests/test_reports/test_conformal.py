from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from test_reports import world

from lidc_cdam import artifacts
from reports import conformal
from reports.conformal import intervals, label_sets
from reports.context import open_run
from reports.material import load
from reports.sections import document


def test_an_interval_reaches_the_error_that_nine_of_ten_stay_below():
    truth, errors = np.full(98, 3.0), np.arange(1, 99) / 100
    ends = intervals(truth, truth - errors, np.array([3.0, 4.9]), 1, 5)
    # the ceil(0.9 x 99) = 90th of 98 errors
    np.testing.assert_allclose(ends, [[2.1, 3.9], [4.0, 5.0]], atol=1e-9)


def test_a_prediction_beyond_the_scale_lies_in_its_interval():
    truth = np.full(20, 3.0)
    ends = intervals(truth, truth + 0.1, np.array([5.3]), 1, 5)
    assert ends is not None
    assert ends[0, 0] <= 5.2 + 1e-9
    assert ends[0, 1] == 5.3


def test_intervals_hold_as_often_as_they_say():
    generator = np.random.default_rng(0)
    truth = generator.normal(size=2000)
    predicted = truth + generator.normal(size=2000)
    ends = intervals(truth[:1000], predicted[:1000], predicted[1000:], -np.inf, np.inf)
    held = (ends[:, 0] <= truth[1000:]) & (truth[1000:] <= ends[:, 1])
    assert held.mean() == pytest.approx(0.9, abs=0.03)


def test_labels_are_ruled_out_by_their_own_nodules():
    truth = np.repeat([0.0, 1.0], 50)
    predicted = np.concatenate([np.linspace(0, 0.49, 50), np.linspace(0.51, 1, 50)])
    assert label_sets(truth, predicted, np.array([0.1, 0.5, 0.9])) == [(0,), (), (1,)]
    mixed = np.tile(np.linspace(0, 1, 50), 2)
    assert label_sets(truth, mixed, np.array([0.5])) == [(0, 1)]


def test_too_few_nodules_give_no_interval():
    few = np.arange(9.0)
    assert intervals(few, few, few, 0, 9) is None
    assert label_sets(np.repeat([0.0, 1.0], [5, 40]), np.full(45, 0.5), few) is None


def test_a_run_is_calibrated_fold_by_fold_and_its_coverage_is_counted(tmp_path):
    cohort = world.make(tmp_path, count=6)
    run, cases = open_run(cohort.biomarkers, "cdam")
    assert run.calibrated_on == {0: 40, 1: 40}
    hits = [low <= case.true["margin"] <= high for case in cases for low, high in [case.calibrated.intervals["margin"]]]
    assert run.held["margin"] == (np.mean(hits), 6)
    low, high = cases[0].calibrated.intervals["margin"]
    assert 1 <= low <= cases[0].predicted["margin"] <= high


def test_a_fold_without_validation_predictions_is_left_out(tmp_path):
    cohort = world.make(tmp_path, count=4)
    (cohort.biomarkers / "fold_0" / "validation.csv").unlink()
    run, cases = open_run(cohort.biomarkers, "cdam")
    assert [bool(case.calibrated.intervals) for case in cases] == [False, False, True, True]
    assert run.held["margin"][1] == 2


def test_what_another_folds_model_said_of_a_validation_nodule_is_kept(tmp_path):
    cohort = world.make(tmp_path, count=2)
    path = cohort.malignancy / "fold_1" / conformal.VALIDATION
    table = artifacts.read_predictions(path)
    row = {"nodule_id": cohort.nodules[0], "patient_id": "p", "fold": 1}
    more = pd.DataFrame([{**row, "malignancy_true": 0, "malignancy_predicted": 0.25}])
    artifacts.write_predictions(path, pd.concat([table, more]))
    _, cases = open_run(cohort.malignancy, "cdam")
    assert cases[0].calibrated.others == {"malignancy": {1: 0.25}}
    assert cases[1].calibrated.others == {}


def test_a_head_that_was_fitted_again_is_told_beside_the_intervals(made):
    run, cases = open_run(made[0].biomarkers, "cdam")
    plain = " ".join(document(load([run], [cases[0]]))["intervals"])
    again = " ".join(document(load([replace(run, is_refitted=True)], [cases[0]]))["intervals"])
    assert "fitted once more" not in plain
    assert "the model that predicts here differs from the one that the interval is measured on" in again
