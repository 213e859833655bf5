"""Curves elsewhere: what each logger leaves, that it changes no result, and that nothing leaves the fold's folder."""

import os
import socket
import sqlite3
from importlib.util import find_spec

import pytest

from lidc_cdam.errors import LidcCdamError
from training import loggers
from training.fit import train
from training.loggers import LOGGERS, surroundings
from training.settings import TrainingSettings

SETTINGS = TrainingSettings(epochs=2, batch_size=8, views=["axial"])
FILES = {
    "model.safetensors",
    "model.json",
    "statistics.json",
    "history.csv",
    "predictions.csv",
    "validation.csv",
    "latents.npz",
}
LEFT = {"tensorboard": {"tensorboard"}, "mlflow": {"mlflow.db"}, "wandb": {"wandb"}}


@pytest.fixture(scope="module")
def plain(data, tmp_path_factory):
    run = tmp_path_factory.mktemp("plain") / "run"
    for fold in (0, 1):
        train(data, run, SETTINGS, fold)
    return run


@pytest.fixture
def sealed(tmp_path, monkeypatch):
    """A home and a current folder of its own, and no way out."""
    for name in ("home", "cwd"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "cwd")
    real = socket.socket.connect

    def connect(self, address):
        assert self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "localhost", "::1"), address
        return real(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)
    return tmp_path


def installed(name):
    """Skip without a package, which is not imported: MLFlow reads its variables when it is."""
    if find_spec(name) is None:
        pytest.skip(f"{name} is not installed (pip install lidc-cdam[log])")


@pytest.mark.parametrize("name", LOGGERS)
# What the packages themselves use that is outdated.
@pytest.mark.filterwarnings("default")
def test_each_logger_stays_in_the_folds_folder_and_changes_no_result(name, data, plain, sealed, capfd):
    installed(name)
    before = dict(os.environ)
    for fold in (0, 1):
        train(data, sealed / "run", SETTINGS, fold, log=[name])
    assert dict(os.environ) == before
    for fold in ("fold_0", "fold_1"):
        found = sealed / "run" / fold
        assert {path.name for path in found.iterdir()} == {*FILES, "provenance.json"} | LEFT[name]
        assert all((found / each).read_bytes() == (plain / fold / each).read_bytes() for each in FILES)
        if name == "wandb":
            # A run of its own for each fold.
            assert len(list((found / name).glob("offline-run-*/*.wandb"))) == 1
    assert not list((sealed / "home").iterdir())
    assert not list((sealed / "cwd").iterdir())
    told = capfd.readouterr()
    assert "wandb" not in told.out
    assert "INFO" not in told.err
    assert "wandb" not in told.err


def test_mlflow_holds_the_curves_of_each_fold(data, sealed):
    installed("mlflow")
    train(data, sealed / "run", SETTINGS, fold=1, log=["mlflow"])
    with sqlite3.connect(sealed / "run" / "fold_1" / "mlflow.db") as base:
        names = [row[0] for row in base.execute("select name from runs")]
        values = base.execute("select value from metrics where key = 'val_loss' order by step").fetchall()
        places = {row[0] for row in base.execute("select artifact_location from experiments where name = 'lidc-cdam'")}
    assert names == ["run, fold 1"]
    assert len(values) == SETTINGS.epochs
    assert places == {(sealed / "run" / "fold_1" / "mlflow").as_uri()}


def test_nothing_may_be_reported(tmp_path):
    around = surroundings(tmp_path)
    assert around["WANDB_MODE"] == "offline"
    assert around["WANDB_ERROR_REPORTING"] == "false"
    assert around["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert all(around[name].startswith(str(tmp_path)) for name in around if name.endswith("_DIR"))


def test_an_unknown_or_missing_logger_is_refused_before_anything_is_trained(data, tmp_path, monkeypatch):
    with pytest.raises(LidcCdamError, match="--log must name any of tensorboard, mlflow, wandb; got 'paper'"):
        train(data, tmp_path / "run", SETTINGS, log=["paper"])
    monkeypatch.setattr(loggers, "find_spec", lambda _: None)
    with pytest.raises(LidcCdamError, match=r"run `pip install lidc-cdam\[log\]`"):
        train(data, tmp_path / "run", SETTINGS, log=["wandb"])
    assert not (tmp_path / "run").exists()
