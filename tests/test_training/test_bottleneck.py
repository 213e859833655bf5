import numpy as np
import pandas as pd
import pytest

from lidc_cdam.artifacts import fold_folder, write_predictions
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.vocabulary import BIOMARKERS, MALIGNANCY
from training.baselines import KEYS, fit_baselines, fit_logistic
from training.bottleneck import fit_bottleneck, has_bottleneck, measure_bottleneck, order_of_benefit, reader_values
from training.fit import VALIDATION
from training.inference import predictions_table
from training.run import open_run
from training.settings import TrainingSettings


@pytest.fixture
def run(data, tmp_path):
    return open_run(data, tmp_path / "run", TrainingSettings(targets="biomarkers"), None)


def predicted(run, role, fold, noise, seed=0):
    """Biomarkers of one role of one fold: the readers' with noise."""
    names = list(getattr(run.splits.folds[fold], role))
    truth = reader_values(run.cohort, names)
    wrong = truth + noise * np.random.default_rng(seed + fold).normal(size=truth.shape) * truth.std(0)
    return predictions_table(run.cohort.loc[names], fold, BIOMARKERS, truth, wrong)


def pooled(run, noise=1.0, validation=True):
    """A run's test predictions; its validation predictions lie in its folder."""
    folds = range(len(run.splits.folds))
    for fold in folds if validation else ():
        write_predictions(fold_folder(run.out, fold) / VALIDATION, predicted(run, "val", fold, noise, seed=7))
    return pd.concat([predicted(run, "test", fold, noise) for fold in folds], ignore_index=True)


def test_all_eight_replaced_is_the_logistic_regression_on_readers(run):
    predictions = pooled(run)
    table = fit_bottleneck(run, predictions).table
    known = fit_baselines(run, predictions, [MALIGNANCY], 0).tables["readers_logistic"]
    np.testing.assert_allclose(
        table["with_first_8"], known.set_index("nodule_id")["malignancy_predicted"][table["nodule_id"]]
    )
    assert not np.allclose(table["malignancy_predicted"], table["with_first_8"])
    assert table["nodule_id"].tolist() == predictions["nodule_id"].tolist()


def test_the_first_of_the_order_is_that_biomarker_alone(run):
    found = fit_bottleneck(run, pooled(run))
    for fold, order in found.orders.items():
        assert sorted(order) == sorted(KEYS)
        rows = found.table[found.table["fold"] == fold]
        np.testing.assert_array_equal(rows["with_first_1"], rows[f"with_{order[0]}"])


def test_without_errors_nothing_changes(run):
    found = fit_bottleneck(run, pooled(run, noise=0.0))
    for name in found.table.columns[5:]:
        np.testing.assert_allclose(found.table[name], found.table["malignancy_predicted"])


def test_test_nodules_choose_nothing(run):
    predictions = pooled(run)
    before = fit_bottleneck(run, predictions)
    tested = predictions.loc[predictions["fold"] == 0, "nodule_id"]
    run.cohort.loc[tested, "label"] = 1 - run.cohort.loc[tested, "label"]
    after = fit_bottleneck(run, predictions)
    assert before.orders[0] == after.orders[0]
    assert before.coefficients[0] == after.coefficients[0]
    assert before.coefficients[1] != after.coefficients[1]


def test_the_order_begins_with_what_helps_most(data, run):
    fold = run.splits.folds[0]
    names = [*fold.train, *fold.val]
    readers, label = reader_values(run.cohort, names), run.cohort.loc[names, "label"].to_numpy(dtype=np.float64)
    fitted = fit_logistic(run.cohort, names)
    wrong = readers.copy()
    wrong[:, KEYS.index("diameter")] = readers[::-1, KEYS.index("diameter")]
    order = order_of_benefit(fitted, wrong, readers, label)
    assert order[0] == "diameter"
    # What is right already brings nothing, so the vocabulary's order remains.
    assert order[1:] == KEYS[:-1]


def test_a_run_without_validation_predictions_has_no_order(run):
    found = fit_bottleneck(run, pooled(run, validation=False))
    assert found.orders == {}
    assert not [name for name in found.table if name.startswith("with_first")]
    told = measure_bottleneck(found, {}, replicates=20)["interventions"]
    assert (told["in_order"], told["orders"], list(told["alone"])) == ([], {}, KEYS)


def test_the_summary_pairs_gains_and_rivals_and_shows_the_spread(run):
    predictions = pooled(run)
    found = fit_bottleneck(run, predictions)
    rivals = {
        "same": found.table[::-1],
        "readers_logistic": fit_baselines(run, predictions, [MALIGNANCY], 0).tables["readers_logistic"],
    }
    told = measure_bottleneck(found, {**rivals, "biomarkers_only": predictions}, replicates=50)
    assert told["bottleneck_minus_same"]["auc"] == {"value": 0, "low": 0, "high": 0}
    last = told["interventions"]["in_order"][-1]
    assert last["gain"]["brier"]["value"] == pytest.approx(-told["bottleneck_minus_readers_logistic"]["brier"]["value"])
    assert "bottleneck_minus_biomarkers_only" not in told
    assert list(told["coefficients"]) == [*KEYS, "intercept"]
    assert len(told["coefficients"]["diameter"]["folds"]) == 2
    assert told["coefficients"]["diameter"]["mean"] > 0
    for entry in told["interventions"]["alone"].values():
        assert entry["gain"]["auc"]["value"] == pytest.approx(
            entry["metrics"]["auc"]["value"] - told["metrics"]["auc"]["value"]
        )


def test_nodules_without_a_label_are_left_out(run):
    predictions = pooled(run)
    run.cohort.loc[predictions["nodule_id"].iloc[0], "label"] = np.nan
    assert measure_bottleneck(fit_bottleneck(run, predictions), {}, replicates=20)["nodules"] == 23


def test_one_class_is_told(run):
    run.cohort["label"] = 0.0
    with pytest.raises(LidcCdamError, match="nodules for training have one class alone"):
        fit_bottleneck(run, pooled(run))


def test_only_runs_of_all_eight_have_one():
    assert has_bottleneck(["malignancy", *KEYS])
    assert not has_bottleneck(KEYS[1:])
