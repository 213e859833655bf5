import json

import numpy as np
import pandas as pd
import pytest
import torch
from torchmetrics.functional import classification, regression

from lidc_cdam.artifacts import Fold, Splits
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.metrics.prediction import classification_statistics, regression_statistics, summarise
from lidc_cdam.metrics.ruler import commonest_step, constant_statistics, ruler_hits
from lidc_cdam.vocabulary import BIOMARKERS, RATINGS, TARGETS

COUNT = 60


@pytest.fixture
def cohort() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    label = np.arange(COUNT) % 2
    table = pd.DataFrame({"nodule_id": [f"n{index:02d}" for index in range(COUNT)]})
    table["patient_id"] = [f"p{index // 2}" for index in range(COUNT)]
    table["label"] = label.astype(float)
    for biomarker in BIOMARKERS:
        table[biomarker.key] = np.round(rng.uniform(1, 5, COUNT) * 3) / 3
    table["diameter"] = 6 + 6 * label + rng.normal(size=COUNT)
    return table.set_index("nodule_id", drop=False)


@pytest.fixture
def readings(cohort: pd.DataFrame) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    rows = [
        {
            "nodule_id": nodule,
            **{key: int(rng.integers(1, 6)) for key in RATINGS},
            "diameter": cohort["diameter"][nodule] + rng.normal(),
        }
        for nodule in cohort.index
        for _ in range(3)
    ]
    return pd.DataFrame(rows)


@pytest.fixture
def predictions(cohort: pd.DataFrame) -> pd.DataFrame:
    rng = np.random.default_rng(2)
    table = cohort[["nodule_id", "patient_id"]].reset_index(drop=True)
    table["fold"] = (np.arange(COUNT) // 2) % 3
    table["malignancy_true"] = cohort["label"].to_numpy()
    table["malignancy_predicted"] = np.clip(0.3 + 0.4 * table["malignancy_true"] + 0.3 * rng.normal(size=COUNT), 0, 1)
    for biomarker in BIOMARKERS:
        true = cohort[biomarker.key].to_numpy()
        table[f"{biomarker.key}_true"] = true
        table[f"{biomarker.key}_predicted"] = true + 0.5 * rng.normal(size=COUNT)
    return table


@pytest.fixture
def splits(predictions: pd.DataFrame) -> Splits:
    folds = [
        Fold(*(tuple(predictions["nodule_id"][chosen]) for chosen in (rest, rest & False, ~rest)))
        for rest in (predictions["fold"] != fold for fold in range(3))
    ]
    return Splits("sound", 0, "", tuple(folds), 0.0)


def value_of(figures: dict, name: str) -> float:
    return float(figures[name](np.ones((1, COUNT)))[0])


def test_classification_equals_torchmetrics(predictions: pd.DataFrame) -> None:
    probability, label = (predictions[f"malignancy_{kind}"].to_numpy(copy=True) for kind in ("predicted", "true"))
    figures = classification_statistics(probability, label)
    answers, truth = torch.from_numpy(probability), torch.from_numpy(label).long()
    assert value_of(figures, "accuracy") == pytest.approx(classification.binary_accuracy(answers, truth).item())
    assert value_of(figures, "auc") == pytest.approx(classification.binary_auroc(answers, truth).item())
    assert value_of(figures, "auprc") == pytest.approx(classification.binary_average_precision(answers, truth).item())
    assert value_of(figures, "brier") == pytest.approx(np.mean((probability - label) ** 2))


def test_regression_equals_torchmetrics(predictions: pd.DataFrame) -> None:
    predicted, true = (predictions[f"margin_{kind}"].to_numpy(copy=True) for kind in ("predicted", "true"))
    figures = regression_statistics(predicted, true)
    answers, truth = torch.from_numpy(predicted), torch.from_numpy(true)
    assert value_of(figures, "mae") == pytest.approx(regression.mean_absolute_error(answers, truth).item())
    assert value_of(figures, "r2") == pytest.approx(regression.r2_score(answers, truth).item())
    assert value_of(figures, "spearman") == pytest.approx(regression.spearman_corrcoef(answers, truth).item())
    assert value_of(figures, "z_mse") == pytest.approx(1 - value_of(figures, "r2"))
    constant = regression_statistics(np.full(COUNT, true.mean()), true)
    assert value_of(constant, "z_mse") == pytest.approx(1)


def test_within_1_takes_thirds_as_exact() -> None:
    true = np.array([8 / 3, 11 / 3, 4.0])
    assert regression_statistics(true - 1, true)["within_1"](np.ones((1, 3)))[0] == 1
    assert regression_statistics(true - 1.001, true)["within_1"](np.ones((1, 3)))[0] == 0


def test_ruler_threshold_never_sees_the_test_fold(
    predictions: pd.DataFrame, cohort: pd.DataFrame, splits: Splits
) -> None:
    before = ruler_hits(predictions, cohort, splits)
    tested = predictions["fold"] == 0
    # Turning the labels of fold 0's test nodules round must turn exactly its hits round: its threshold stays.
    turned = cohort.copy()
    turned.loc[predictions["nodule_id"][tested], "label"] = 1 - turned["label"]
    after = ruler_hits(predictions, turned, splits)
    np.testing.assert_array_equal(after[tested], 1 - before[tested])
    assert before.mean() > 0.95


def test_summary_is_json_and_complete(
    predictions: pd.DataFrame, cohort: pd.DataFrame, readings: pd.DataFrame, splits: Splits
) -> None:
    summary = summarise(predictions, cohort, readings, splits, replicates=200)
    json.dumps(summary, allow_nan=False)
    assert (summary["schema"], summary["nodules"], summary["patients"]) == (1, 60, 30)
    assert list(summary["metrics"]) == [*TARGETS, "biomarkers"]
    for figures in summary["metrics"].values():
        for name, interval in figures.items():
            assert interval["low"] <= interval["value"] <= interval["high"], name
    own = [summary["metrics"][biomarker.key]["z_mse"]["value"] for biomarker in BIOMARKERS]
    assert summary["metrics"]["biomarkers"]["mean_z_mse"]["value"] == pytest.approx(np.mean(own))
    readers = {"one_reader", "model_against_other_readers", "model_minus_one_reader", "noise_floor"}
    assert set(summary["baselines"]) == {"ruler", "model_minus_ruler", "commoner_class", "best_constant"} | readers
    assert sum(each["nodules"] for each in summary["calibration"]["malignancy"]) == COUNT
    assert set(summary["baselines"]["ruler"]["malignancy"]) == {"accuracy", "balanced_accuracy", "auc"}
    assert summary["baselines"]["best_constant"]["texture"]["within_1"]["value"] <= 1
    assert set(summary["noise_floor"]) == {*TARGETS, "biomarkers"}
    assert 0 < summary["readers"]["malignancy"]["reader_auc"] < 1


def test_model_minus_ruler_is_paired(
    predictions: pd.DataFrame, cohort: pd.DataFrame, readings: pd.DataFrame, splits: Splits
) -> None:
    predictions["malignancy_predicted"] = cohort["diameter"].to_numpy() / 30
    summary = summarise(predictions, cohort, readings, splits, replicates=50)
    difference = summary["baselines"]["model_minus_ruler"]["malignancy"]["auc"]
    assert difference["low"] == difference["value"] == difference["high"] == 0


def test_one_fold_and_one_target_are_enough(
    predictions: pd.DataFrame, cohort: pd.DataFrame, readings: pd.DataFrame, splits: Splits
) -> None:
    names = ["nodule_id", "patient_id", "fold", "margin_true", "margin_predicted"]
    part = predictions.loc[predictions["fold"] == 1, names].head(3)
    summary = summarise(part, cohort, readings, splits, replicates=50)
    assert list(summary["metrics"]) == ["margin"]
    assert list(summary["baselines"]["best_constant"]) == ["margin"]
    assert "ruler" not in summary["baselines"]
    json.dumps(summary, allow_nan=False)


def test_one_nodule_has_figures_without_an_answer(
    predictions: pd.DataFrame, cohort: pd.DataFrame, readings: pd.DataFrame, splits: Splits
) -> None:
    summary = summarise(predictions.head(1), cohort, readings, splits, replicates=20)
    assert summary["metrics"]["malignancy"]["auc"]["value"] is None
    json.dumps(summary, allow_nan=False)


def test_predictions_must_be_of_the_cohort(
    predictions: pd.DataFrame, cohort: pd.DataFrame, readings: pd.DataFrame, splits: Splits
) -> None:
    with pytest.raises(LidcCdamError, match="n00 is not in it"):
        summarise(predictions, cohort.drop("n00"), readings, splits)
    with pytest.raises(LidcCdamError, match="at least one prediction"):
        summarise(predictions.head(0), cohort, readings, splits)


def test_the_unread_frame_is_named_where_there_is_one(
    predictions: pd.DataFrame, cohort: pd.DataFrame, readings: pd.DataFrame, splits: Splits
) -> None:
    label = predictions.set_index("nodule_id")["malignancy_true"]
    telling = {key: 0.5 - 0.4 * float(value) for key, value in label.items()}
    summary = summarise(predictions, cohort, readings, splits, telling, replicates=50)
    assert summary["baselines"]["unread_frame"]["malignancy"]["auc"]["value"] == 1
    read_in_full = dict.fromkeys(telling, 0.0)
    assert "unread_frame" not in summarise(predictions, cohort, readings, splits, read_in_full, 50)["baselines"]


def test_a_rival_is_paired_by_nodule_whatever_its_order(
    predictions: pd.DataFrame, cohort: pd.DataFrame, readings: pd.DataFrame, splits: Splits
) -> None:
    same = predictions.sample(frac=1, random_state=0)
    worse = predictions.assign(margin_predicted=predictions["margin_predicted"] + 1)
    rivals = {"same": same, "worse": worse[["nodule_id", "margin_true", "margin_predicted"]]}
    summary = summarise(predictions, cohort, readings, splits, replicates=50, rivals=rivals)["baselines"]
    for figures in summary["model_minus_same"].values():
        for figure in figures.values():
            assert [figure[end] for end in ("low", "value", "high")] == pytest.approx([0, 0, 0], abs=1e-9)
    assert list(summary["worse"]) == ["margin"]
    assert summary["model_minus_worse"]["margin"]["z_mse"]["high"] < 0


def test_a_nodule_without_a_label_counts_for_the_other_targets_alone(
    predictions: pd.DataFrame, cohort: pd.DataFrame, readings: pd.DataFrame, splits: Splits
) -> None:
    cohort.loc["n00", "label"] = np.nan
    part = predictions.assign(malignancy_true=predictions["malignancy_true"].where(predictions["nodule_id"] != "n00"))
    found = summarise(part, cohort, readings, splits, replicates=50)
    alone = summarise(part.iloc[1:], cohort, readings, splits, replicates=50)
    for place in ("metrics", "baselines"):
        chosen = [
            (each[place] if place == "metrics" else each[place]["ruler"])["malignancy"] for each in (found, alone)
        ]
        values = [{name: figure["value"] for name, figure in each.items() if name != "ece"} for each in chosen]
        assert values[0] == pytest.approx(values[1])
    assert found["metrics"]["margin"]["mae"]["value"] != alone["metrics"]["margin"]["mae"]["value"]


def test_a_prediction_that_is_not_a_number_is_refused(
    predictions: pd.DataFrame, cohort: pd.DataFrame, readings: pd.DataFrame, splits: Splits
) -> None:
    predictions.loc[3, "margin_predicted"] = np.nan
    with pytest.raises(LidcCdamError, match="margin for n03 is not; delete fold_1 of the run and train it again"):
        summarise(predictions, cohort, readings, splits)


def test_exact_is_the_nearest_step_and_its_constant_the_commonest() -> None:
    true = np.array([2.5, 3.0, 3.25, 4.0, 1.0])
    figures = regression_statistics(np.array([3.4, 2.4, 3.49, 3.6, 1.6]), true)
    assert figures["exact"](np.ones((1, 5)))[0] == pytest.approx(3 / 5)
    assert constant_statistics(true)["exact"](np.ones((1, 5)))[0] == pytest.approx(3 / 5)
    assert commonest_step(true) == 3
