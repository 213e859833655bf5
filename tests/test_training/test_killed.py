"""A training that SIGKILL ends at any moment goes on and ends with the bytes of one that nothing ended."""

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from lidc_cdam.backbones import BACKBONES
from training import fit
from training.fit import train
from training.module import NoduleTask
from training.settings import TrainingSettings

SETTINGS = TrainingSettings(
    targets="joint", epochs=9, batch_size=4, views=["axial"], dropout=0.1, max_lr=3e-3, average=0.9, patience=2
)
FILES = (
    "model.safetensors",
    "model.json",
    "statistics.json",
    "history.csv",
    "predictions.csv",
    "validation.csv",
    "latents.npz",
)
PROCESSES = multiprocessing.get_context("forkserver")


def die(*_):
    """What pulling the plug does to a process."""
    os.kill(os.getpid(), signal.SIGKILL)


def train_until(moment, data, out, backbone):
    """Train in a process of its own, which dies at a moment."""
    torch.set_num_threads(1)
    BACKBONES["tiny"] = backbone
    patch = pytest.MonkeyPatch()
    name, *place = moment
    if name == "step":
        step = NoduleTask.training_step
        patch.setattr(
            NoduleTask,
            "training_step",
            lambda self, batch, index: die() if [self.current_epoch, index] == place else step(self, batch, index),
        )
    if name in ("write", "rename"):
        method, writes = ("write_bytes", []) if name == "write" else ("replace", [])
        real = getattr(Path, method)

        def dying(self, argument):
            writes.append(self.name.endswith("last.ckpt"))
            if sum(writes) != place[0]:
                return real(self, argument)
            real(self, bytes(argument)[: len(argument) // 2] if name == "write" else argument)
            return die()

        patch.setattr(Path, method, dying)
    if name == "validation":
        patch.setattr(NoduleTask, "on_validation_epoch_end", die)
    if name == "files":
        patch.setattr(fit, "write_predictions", die)
    train(data, out, SETTINGS)


def run(moment, data, out):
    """Start a training that dies, or not."""
    process = PROCESSES.Process(target=train_until, args=(moment, data, out, BACKBONES["tiny"]))
    process.start()
    return process


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """What nothing ended, and the seconds that it took."""
    PROCESSES.set_forkserver_preload(["training.fit"])
    out = tmp_path_factory.mktemp("whole") / "run"
    for place in ("first", "run"):
        began = time.monotonic()
        process = run(("never",), data, out.parent / place)
        process.join()
        assert process.exitcode == 0
    history = pd.read_csv(out / "fold_0" / "history.csv")
    assert 3 < len(history) < SETTINGS.epochs, "early stopping must be what ends it"
    assert len(history) == history["val_loss"].idxmin() + SETTINGS.patience + 1
    assert same(out.parent / "first", out)
    return out, time.monotonic() - began


def same(first, second):
    return all((first / "fold_0" / name).read_bytes() == (second / "fold_0" / name).read_bytes() for name in FILES)


MOMENTS = [
    [("step", 0, 1)],
    [("step", 2, 0), ("step", 3, 1)],
    [("write", 1)],
    [("write", 3)],
    [("rename", 2)],
    [("validation",)],
    [("files",), ("files",)],
]


@pytest.mark.parametrize("moments", MOMENTS, ids=str)
def test_killed_at_a_moment(data, whole, tmp_path, moments):
    out = tmp_path / "run"
    for moment in moments:
        process = run(moment, data, out)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert not (out / "fold_0" / "predictions.csv").exists()
    process = run(("never",), data, out)
    process.join()
    assert process.exitcode == 0
    assert same(out, whole[0])
    assert {path.name for path in (out / "fold_0").iterdir()} == {*FILES, "provenance.json"}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_killed_at_random_again_and_again(data, whole, tmp_path, seed):
    finished, seconds = whole
    draw, out, deaths = random.Random(seed), tmp_path / "run", 0
    while not (out / "fold_0" / "predictions.csv").exists():
        process = run(("never",), data, out)
        # Ever later, so that a machine that has become slow ends too.
        process.join(draw.uniform(0.1, 0.9) * seconds * (1 + deaths / 4))
        deaths += process.is_alive()
        process.kill()
        process.join()
    assert deaths
    process = run(("never",), data, out)
    process.join()
    assert same(out, finished)
