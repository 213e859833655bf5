"""A sweep: what it writes, that it goes on after a kill, that no test nodule decides anything."""

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml

from lidc_cdam.artifacts import SPLITS, read_splits, write_splits
from lidc_cdam.cli import main
from lidc_cdam.errors import LidcCdamError
from training import sweep as module
from training.settings import TrainingSettings
from training.space import read_space
from training.sweep import sweep

SETTINGS = TrainingSettings(epochs=2, batch_size=8, views=["axial"])
SPACE = {"max_lr": {"low": 1e-4, "high": 1e-2, "log": True}, "batch_size": {"choices": [8, 12]}}


@pytest.fixture
def space(tmp_path: Path) -> str:
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump(SPACE))
    return str(path)


def test_a_sweep_leaves_a_table_and_a_configuration_that_train_takes(data: Path, tmp_path: Path, space: str) -> None:
    out = tmp_path / "sweep"
    sweep(data, out, SETTINGS, space, trials=3, confirm=1)
    table = pd.read_csv(out / "trials.csv")
    assert list(table["trial"]) == [0, 1, 2]
    assert table["mean_val_loss"].notna().sum() == 1
    best = yaml.safe_load((out / "best.yaml").read_text())
    row = table.loc[table["mean_val_loss"].notna()].iloc[0]
    assert best["max_lr"] == pytest.approx(row["max_lr"])
    assert table["val_loss_fold_0"].min() == row["val_loss_fold_0"]
    assert (out / "history.png").stat().st_size > 1000
    assert (
        main(["crossval", "--data", str(data), "--config", str(out / "best.yaml"), "--out", str(tmp_path / "run")]) == 0
    )


def test_an_interrupted_sweep_ends_as_an_uninterrupted_one(
    data: Path, tmp_path: Path, space: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    sweep(data, whole, SETTINGS, space, trials=2, confirm=1)
    real, calls = module.train_fold, []

    def killed(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            raise SystemError("as if the process had been killed")
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, "train_fold", killed)
        with pytest.raises(SystemError):
            sweep(data, broken, SETTINGS, space, trials=2, confirm=1)
    sweep(data, broken, SETTINGS, space, trials=2, confirm=1)
    one, other = (yaml.safe_load((folder / "best.yaml").read_text()) for folder in (whole, broken))
    assert one == other
    rows = pd.read_csv(broken / "trials.csv").set_index("state")
    assert rows.loc["fail", "reason"] == "its process was ended; a later trial went on with its settings"
    assert pd.isna(rows.loc["fail", "mean_val_loss"])


def test_test_nodules_decide_nothing(data: Path, tmp_path: Path, space: str) -> None:
    """With the labels and crops of fold 0's test nodules out of reach, a sweep of fold 0 ends the same."""
    splits = read_splits(data / SPLITS)
    only = type(splits)(splits.protocol, splits.seed, splits.cohort_sha256, splits.folds[:1], splits.shared_patients)
    write_splits(tmp_path / "one.json", only)
    sweep(data, tmp_path / "a", SETTINGS, space, trials=1, confirm=1, splits=tmp_path / "one.json")
    seen = []
    real = module.read_cubes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            module, "read_cubes", lambda folder, names, *more: seen.extend(names) or real(folder, names, *more)
        )
        sweep(data, tmp_path / "b", SETTINGS, space, trials=1, confirm=1, splits=tmp_path / "one.json")
    assert not set(seen) & set(splits.folds[0].test)
    losses = [
        json.loads(next(folder.glob("trials/*/losses.json")).read_text()) for folder in (tmp_path / "a", tmp_path / "b")
    ]
    assert losses[0] == losses[1]


def test_a_trial_that_fails_is_a_row_with_its_reason(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "hot.yaml"
    path.write_text(yaml.safe_dump({"max_lr": {"choices": [1e30]}}))
    with pytest.raises(
        LidcCdamError, match=r"No trial of the sweep .* has ended with a result; the first of 2 failures"
    ):
        sweep(data, tmp_path / "out", SETTINGS, str(path), trials=2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_lrr: {low: 1, high: 2}", "unknown setting 'max_lrr'; the nearest known one is 'max_lr'"),
        ("dropout: {low: 0.5, high: 0.1}", "low <= high"),
        ("max_lr: {low: 0, high: 1, log: true}", "above 0 where log is true"),
        ("dropout: 3", "must give dropout as"),
        ("- 1", "must hold settings with ranges"),
        ("{", "must be YAML"),
    ],
)
def test_a_wrong_space_is_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(text)
    with pytest.raises(LidcCdamError, match=message):
        read_space(str(path), SETTINGS)


def test_all_means_every_parameter_tensor_of_the_backbone() -> None:
    ranges = read_space("paper", TrainingSettings(backbone="deit_small16"))
    assert (ranges["trainable_layers"].low, ranges["trainable_layers"].high) == (10, 150)
