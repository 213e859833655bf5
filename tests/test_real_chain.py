"""The whole chain on real nodules by the command line: the sample pack in, explained reports out."""

from pathlib import Path

import pandas as pd
import pytest

from lidc_cdam import artifacts
from lidc_cdam.cli import main
from lidc_cdam.files import read_json

NODULES = ("LIDC-IDRI-0709_n02", "LIDC-IDRI-0007_n01", "LIDC-IDRI-0072_n01", "LIDC-IDRI-0715_n01")


def call(*words: object) -> None:
    """One command that must succeed."""
    assert main([str(word) for word in words]) == 0


@pytest.mark.data
def test_real_nodules_become_explained_reports(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    call("cohort", "--preset", "all", "--out", data)
    call("extract", "--data", data, "--pack", shared_data / "nodule-pack")
    shown = capsys.readouterr().out
    assert "holds 1132 nodules, 1124 of the cohort's 1378" in shown
    assert "1124 cubes, 711 of them with a malignancy label" in shown
    call("split", "--data", data, "--protocol", "sound")
    splits = artifacts.read_splits(data / artifacts.SPLITS)
    assert sorted(key for fold in splits.folds for key in fold.test) == sorted(
        key for fold in splits.folds[:1] for part in (fold.train, fold.val, fold.test) for key in part
    )
    call("crossval", "--data", data, "--config", "biomarkers_tiny", "--out", run, "--epochs", 1, "--folds", 0)
    call("explain", "--run", run)
    call("evaluate", "--run", run, "--methods", "cdam,random", "--fidelity-nodules", 2, "--steps", 2)
    tested = pd.read_csv(run / artifacts.PREDICTIONS)["nodule_id"]
    shown = [key for key in NODULES if key in set(tested)] or list(tested[:2])
    call("report", "--run", run, "--out", tmp_path / "report", "--nodules", ",".join(shown))

    summary = read_json(run / artifacts.SUMMARY)
    assert summary["nodules"] == len(tested) == len(splits.folds[0].test)
    assert summary["metrics"]["diameter"]["z_mse"]["value"] < 1
    assert summary["noise_floor"]["biomarkers"] == pytest.approx(0.23, abs=0.05)
    comparison = read_json(run / "explainers.json")["methods"]
    chance = comparison["random"]["all"]["relevance_mass_chance"]["value"]
    assert comparison["random"]["all"]["relevance_mass"]["value"] == pytest.approx(chance, abs=0.03)
    for key in shown:
        assert (tmp_path / "report" / f"{key}.pdf").read_bytes().startswith(b"%PDF")
        assert "Research use only" in (tmp_path / "report" / f"{key}.html").read_text()
