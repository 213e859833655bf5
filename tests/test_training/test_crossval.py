import json
import shutil

import numpy as np
import pandas as pd
import pytest
import yaml
from sklearn.metrics import roc_auc_score

from lidc_cdam import provenance
from lidc_cdam.artifacts import read_cohort, read_predictions
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.vocabulary import BIOMARKERS
from training.crossval import crossval
from training.module import NoduleTask
from training.predict import predict
from training.results import told_summary
from training.settings import TrainingSettings

SETTINGS = TrainingSettings(targets="joint", epochs=1, batch_size=8, views=["axial"])
TREES = 5


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A finished run of both folds, filled one fold at a time."""
    out = tmp_path_factory.mktemp("crossval") / "run"
    crossval(data, out, SETTINGS, folds=[1], trees=TREES)
    first = json.loads((out / "summary.json").read_text())
    assert (first["folds"], first["missing_folds"]) == ([1], [0])
    crossval(data, out, SETTINGS, trees=TREES)
    return out


def test_pooled_predictions_are_the_folds_and_cover_the_cohort(data, run):
    pooled = read_predictions(run / "predictions.csv")
    folds = [read_predictions(run / f"fold_{index}" / "predictions.csv") for index in (0, 1)]
    pd.testing.assert_frame_equal(pooled, pd.concat(folds, ignore_index=True))
    assert sorted(pooled["nodule_id"]) == sorted(read_cohort(data).index)
    expected = [f"{key}_{part}" for key in SETTINGS.targets for part in ("true", "predicted")]
    assert list(pooled.columns) == ["nodule_id", "patient_id", "fold", *expected]


def test_true_values_are_the_cohorts(data, run):
    pooled, cohort = read_predictions(run / "predictions.csv"), read_cohort(data)
    rows = cohort.loc[pooled["nodule_id"]]
    assert np.array_equal(pooled["malignancy_true"], rows["label"])
    for biomarker in BIOMARKERS:
        assert np.allclose(pooled[f"{biomarker.key}_true"], rows[biomarker.key])


def test_the_summary_covers_every_target(run):
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["folds"], summary["missing_folds"]) == ([0, 1], [])
    assert set(SETTINGS.targets) <= set(summary["metrics"])


def test_baselines_and_the_bottleneck_stand_beside_the_model(run):
    summary = json.loads((run / "summary.json").read_text())
    pooled = read_predictions(run / "predictions.csv")
    assert (summary["absent"], summary["radiomics_trees"]) == ({}, TREES)
    for name in ("radiomics", "readers_logistic"):
        table = read_predictions(run / "baselines" / f"{name}.csv")
        assert list(table["nodule_id"]) == list(pooled["nodule_id"])
        auc = roc_auc_score(table["malignancy_true"], table["malignancy_predicted"])
        assert summary["baselines"][name]["malignancy"]["auc"]["value"] == pytest.approx(auc)
        own = summary["metrics"]["malignancy"]["auc"]["value"]
        difference = summary["baselines"][f"model_minus_{name}"]["malignancy"]["auc"]["value"]
        assert difference == pytest.approx(own - auc)
    table = read_predictions(run / "bottleneck.csv")
    auc = roc_auc_score(table["malignancy_true"], table["malignancy_predicted"])
    assert summary["bottleneck"]["metrics"]["auc"]["value"] == pytest.approx(auc)
    assert summary["bottleneck"]["bottleneck_minus_model"]["auc"]["value"] == pytest.approx(auc - own)
    assert len(summary["bottleneck"]["interventions"]["in_order"]) == 8


def test_a_run_outlives_what_its_baselines_lack(data, run, tmp_path, capsys):
    folder, again = shutil.copytree(data, tmp_path / "data"), shutil.copytree(run, tmp_path / "run")
    for name in ("summary.json", "radiomics.csv", "bottleneck.csv"):
        (again / name).unlink()
    shutil.rmtree(folder / "masks")
    crossval(folder, again, SETTINGS, trees=TREES)
    told = capsys.readouterr().out
    assert told.count("kept from before") == 2
    assert "No radiomics: " in told
    assert "is missing; run `lidc-cdam extract` again." in told
    summary, before = (json.loads((place / "summary.json").read_text()) for place in (again, run))
    assert summary["metrics"] == before["metrics"]
    assert "radiomics" not in summary["baselines"]
    assert summary["bottleneck"]["metrics"] == before["bottleneck"]["metrics"]
    assert not (again / "baselines" / "radiomics.csv").exists()


def test_a_negative_number_of_trees_is_refused(data, tmp_path):
    with pytest.raises(LidcCdamError, match="--trees must be at least 0"):
        crossval(data, tmp_path / "run", SETTINGS, trees=-1)
    assert not (tmp_path / "run").exists()


def test_the_config_is_resolved_and_can_be_run_again(data, run):
    stored = yaml.safe_load((run / "config.yaml").read_text())
    assert (stored.pop("data"), stored.pop("splits")) == (str(data), str(data / "splits.json"))
    assert TrainingSettings(**stored) == SETTINGS


def test_a_finished_run_says_so_and_does_nothing(data, run, monkeypatch, capsys):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    monkeypatch.setattr(NoduleTask, "training_step", lambda *_: pytest.fail("trained again"))
    crossval(data, run, SETTINGS, trees=TREES)
    assert capsys.readouterr().out == f"All 2 folds are finished already: {run / 'summary.json'}.\n"
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_a_run_of_an_older_version_gets_its_latents_without_training(data, run, tmp_path, monkeypatch):
    again = shutil.copytree(run, tmp_path / "run")
    (again / "fold_1" / "latents.npz").unlink()
    monkeypatch.setattr(NoduleTask, "training_step", lambda *_: pytest.fail("trained again"))
    crossval(data, again, SETTINGS, trees=TREES)
    assert (again / "fold_1" / "latents.npz").exists()


def test_a_run_of_another_task_is_refused(data, run):
    with pytest.raises(LidcCdamError, match=r"was made by `crossval` with targets = .*choose another --out"):
        crossval(data, run, TrainingSettings(**{**SETTINGS.as_dict(), "targets": "malignancy"}), trees=TREES)


def test_a_wrong_fold_is_refused_before_anything_is_trained(data, tmp_path):
    with pytest.raises(LidcCdamError, match="A fold must be one of 0 to 1, the folds of the splits; got 7"):
        crossval(data, tmp_path / "run", SETTINGS, folds=[0, 7], trees=TREES)
    assert not (tmp_path / "run" / "fold_0").exists()


def test_no_fold_at_all_is_told(data, tmp_path):
    with pytest.raises(LidcCdamError, match="--folds must name at least one fold, from 0 to 1; got none"):
        crossval(data, tmp_path / "run", SETTINGS, folds=[], trees=TREES)


def test_the_frame_of_cut_outs_is_printed_beside_the_ruler_and_only_where_there_is_one():
    figure = {"value": 0.9, "low": 0.85, "high": 0.95}
    both = {"malignancy": {"accuracy": figure, "auc": figure}}
    summary = {"metrics": both, "noise_floor": {}, "baselines": {"ruler": both}}
    assert "cut-outs" not in " ".join(told_summary(summary))
    frame = {"malignancy": {"auc": {**figure, "value": 0.88}}}
    lines = told_summary({**summary, "baselines": {"ruler": both, "unread_frame": frame}})
    assert "the share of a crop that was read alone has the AUC 0.880 (0.850 to 0.950)" in lines[-1]


def test_the_table_is_printed_with_intervals(data, tmp_path, capsys):
    crossval(data, tmp_path / "run", SETTINGS, folds=[0], trees=TREES)
    told = capsys.readouterr().out
    assert "mean reader diameter with one threshold" in told
    assert "readers' noise floor" in told
    assert "Still missing: folds 1; the same command without --folds adds them." in told


def test_predict_is_the_mean_over_the_folds(data, run, tmp_path, capsys):
    predict(run, data, tmp_path / "new.csv")
    assert "24 of them belong to patients that this run was trained on" in capsys.readouterr().out
    table = read_predictions(tmp_path / "new.csv", "predict")
    assert set(table["fold"]) == {-1}
    assert list(table["nodule_id"]) == list(read_cohort(data).index)
    pooled = read_predictions(run / "predictions.csv").set_index("nodule_id")
    assert list(table.columns)[3:] == list(pooled.columns)[2:]
    predict(run, data, tmp_path / "new.csv")
    assert "predicted already" in capsys.readouterr().out


def test_predict_averages_logits_and_readers_values(data, run, tmp_path):
    from lidc_cdam.artifacts import read_dataset
    from lidc_cdam.intensity import Statistics
    from lidc_cdam.model import NoduleModel
    from training.data import evaluation_images, read_cubes
    from training.inference import predict_nodules

    names = list(read_dataset(data).nodules)
    images = evaluation_images(read_cubes(data, names), names, ["axial"])
    values = []
    for index in (0, 1):
        statistics = Statistics.read(run / f"fold_{index}" / "statistics.json")
        outputs = predict_nodules(NoduleModel.load(run / f"fold_{index}"), statistics.intensity, images)
        scaled = statistics.scaling.to_reader_scale(outputs)
        scaled[:, 0] = outputs[:, 0]
        values.append(scaled)
    expected = np.mean(values, axis=0)
    expected[:, 0] = 1 / (1 + np.exp(-expected[:, 0]))
    predict(run, data, tmp_path / "new.csv")
    table = read_predictions(tmp_path / "new.csv", "predict").set_index("nodule_id").loc[names]
    found = table[[f"{key}_predicted" for key in SETTINGS.targets]].to_numpy()
    assert np.allclose(found, expected, rtol=1e-6)


def test_predict_leaves_unknown_truth_empty(data, run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(data, other)
    cohort = pd.read_csv(other / "cohort.csv")
    cohort["label"] = cohort["label"].astype(float).where(cohort.index > 0)
    cohort.to_csv(other / "cohort.csv", index=False)
    predict(run, other, tmp_path / "new.csv")
    table = read_predictions(tmp_path / "new.csv", "predict")
    assert table["malignancy_true"].isna().tolist() == [True] + [False] * 23
    assert table["malignancy_predicted"].notna().all()


def test_predictions_of_other_crops_are_not_taken_for_these(data, run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(data, other)
    predict(run, other, tmp_path / "new.csv")
    stored = json.loads((other / "dataset.json").read_text())
    stored["nodules"][next(iter(stored["nodules"]))]["source"] = "dicom"
    (other / "dataset.json").write_text(json.dumps(stored))
    with pytest.raises(LidcCdamError, match=r"crops = .*choose another --out FILE"):
        predict(run, other, tmp_path / "new.csv")


def test_predict_without_a_run_is_told(data, tmp_path):
    with pytest.raises(LidcCdamError, match=r"--run must be a folder with a finished fold, but .* has none"):
        predict(tmp_path, data, tmp_path / "new.csv")


def test_a_prediction_that_failed_does_not_claim_its_name(data, run, tmp_path):
    out = tmp_path / "predicted.csv"
    provenance.begin(tmp_path, "predict/predicted.csv", {"views": ["sagittal"]})
    predict(run, data, out)
    assert len(read_predictions(out)) == 24
    with pytest.raises(LidcCdamError, match="must be a CSV file"):
        predict(run, data, tmp_path)


def test_a_model_of_another_task_predicts_nothing(data, run, tmp_path):
    other = shutil.copytree(run, tmp_path / "run")
    config = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(config.replace("- malignancy", "- diameter"))
    with pytest.raises(LidcCdamError, match="one of another task"):
        predict(other, data, tmp_path / "predicted.csv")
    assert not (tmp_path / "predicted.csv").exists()
