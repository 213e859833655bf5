"""One fold on several devices: the same result as on one, the same files, the same sentences."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from lidc_cdam.backbones import BACKBONES
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.model import NoduleModel
from training import devices, module
from training.data import FoldData, read_cubes
from training.devices import check_devices, run_on_devices
from training.fit import train
from training.module import target_loss
from training.run import open_run
from training.settings import TrainingSettings

SETTINGS = TrainingSettings(
    targets="joint", epochs=3, batch_size=6, views=["axial"], max_lr=1e-4, average=0.9, clip_gradient=1.0, patience=3
)
FILES = {"model.safetensors", "model.json", "statistics.json", "history.csv", "predictions.csv", "validation.csv"}
PLAIN = BACKBONES["tiny"]
KEYS = ("malignancy", "margin", "diameter")


@pytest.fixture
def plain_backbone(monkeypatch):
    """`tiny` as other processes know it."""
    monkeypatch.setitem(BACKBONES, "tiny", PLAIN)


@pytest.mark.parametrize("parts", [(4, 4), (5, 3), (7, 1)])
@pytest.mark.parametrize("undecided", [(), (0, 1, 2, 3, 4), (2, 7)])
def test_the_mean_of_the_parts_gradients_is_that_of_the_whole_batch(monkeypatch, parts, undecided):
    generator = torch.Generator().manual_seed(1)
    outputs, wanted = torch.randn(2, 8, 3, generator=generator)
    wanted[:, 0] = (wanted[:, 0] > 0).float()
    wanted[list(undecided), 0] = float("nan")
    whole = outputs.clone().requires_grad_()
    loss = target_loss(whole, wanted, KEYS, "huber")
    loss.backward()
    shares = [slice(0, parts[0]), slice(parts[0], 8)]
    counts = {"images": [float(n) for n in parts], "decided": [float((~wanted[s, 0].isnan()).sum()) for s in shares]}
    losses, gradients = [], []
    for share in shares:
        # The counts of a part come in this order.
        means = iter([sum(counts["decided"]) / 2, sum(counts["images"]) / 2])
        monkeypatch.setattr(module, "mean_over_processes", lambda _, means=means: torch.tensor(next(means)))
        part = outputs[share].clone().requires_grad_()
        losses.append(target_loss(part, wanted[share], KEYS, "huber"))
        losses[-1].backward()
        gradients.append(part.grad / 2)
    assert (sum(losses) / 2).item() == pytest.approx(loss.item(), rel=1e-6)
    assert torch.allclose(torch.cat(gradients), whole.grad, atol=1e-7)


def test_shares_of_several_processes_are_the_batches_of_one(data, tmp_path, monkeypatch):
    run = open_run(data, tmp_path / "run", SETTINGS, None)
    fold = run.fold(0)
    images = FoldData(read_cubes(data, [*fold.train, *fold.val]), run.cohort, fold, SETTINGS)
    whole = [list(map(int, batch)) for batch in images.train_dataloader().batch_sampler]
    shares = []
    monkeypatch.setattr("training.data.processes", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr("training.data.place", lambda rank=rank: rank)
        shares.append(images.train_dataloader().batch_sampler)
        assert len(images.val_dataloader().dataset) in (1, 2)
    together = [sorted(first + second) for first, second in zip(*shares, strict=True)]
    assert together == [sorted(batch) for batch in whole]


@pytest.mark.parametrize(
    ("gpus", "asked", "sentence"),
    [
        (0, 3, r"--devices must be 1 to 2, the CPU cores \(there is no GPU\) that this process may use; got 3"),
        (0, 0, r"--devices must be 1 to 2, .*; got 0"),
        (1, 2, r"--devices must be 1 to 1, the GPUs that this process may use; got 2"),
    ],
)
def test_more_devices_than_there_are_is_refused_before_anything_is_written(
    data, tmp_path, monkeypatch, gpus, asked, sentence
):
    monkeypatch.setattr(devices, "cores", lambda: 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    check_devices(1)
    with pytest.raises(LidcCdamError, match=sentence):
        train(data, tmp_path / "run", SETTINGS, devices=asked)
    assert not (tmp_path / "run").exists()


def test_every_device_needs_an_image_of_each_batch(data, tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "cores", lambda: 8)
    with pytest.raises(
        LidcCdamError, match="--devices must be at most 3, the images of this fold's smallest batch; got 4"
    ):
        train(data, tmp_path / "run", SETTINGS, devices=4)


def command(data, out, *more):
    """The words of a training in another process."""
    words = {name: value for name, value in SETTINGS.as_dict().items() if value is not None}
    options = [
        f"--{name.replace('_', '-')}={','.join(value) if isinstance(value, list) else str(value).lower()}"
        for name, value in words.items()
    ]
    return [sys.executable, "-m", "lidc_cdam.cli", "train", f"--data={data}", f"--out={out}", *options, *more]


@pytest.mark.slow
@pytest.mark.usefixtures("plain_backbone")
def test_two_processes_train_what_one_trains(data, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = dict(os.environ)
    train(data, tmp_path / "one", SETTINGS)
    train(data, tmp_path / "two", SETTINGS, devices=2)
    assert dict(os.environ) == before
    one, two = (tmp_path / name / "fold_0" for name in ("one", "two"))
    assert {path.name for path in two.iterdir()} == {*FILES, "provenance.json"}
    first, second = (pd.read_csv(folder / "history.csv") for folder in (one, two))
    pd.testing.assert_frame_equal(first, second, rtol=1e-4)
    for here, there in zip(NoduleModel.load(one).parameters(), NoduleModel.load(two).parameters(), strict=True):
        assert torch.allclose(here, there, atol=2e-5)
    told = capfd.readouterr()
    assert told.err == ""
    assert told.out.count("is best on validation") == 2
    assert json.loads((two / "provenance.json").read_text())["train"]["results"]["devices"] == 2


@pytest.mark.slow
@pytest.mark.usefixtures("plain_backbone")
def test_two_killed_processes_go_on_and_end_as_two_that_were_not(data, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    train(data, tmp_path / "whole", SETTINGS, devices=2)
    out = tmp_path / "killed"
    with subprocess.Popen(command(data, out, "--devices=2"), cwd=Path(devices.__file__).parents[1]) as process:
        while not (out / "fold_0" / "last.ckpt").exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert not (out / "fold_0" / "predictions.csv").exists()
    train(data, out, SETTINGS, devices=2)
    for name in FILES:
        assert (out / "fold_0" / name).read_bytes() == (tmp_path / "whole" / "fold_0" / name).read_bytes(), name


def fail(kind):
    """What a process of several does here."""
    if kind == "sentence" and os.environ["LOCAL_RANK"] == "1":
        raise LidcCdamError("Fold 0 must have a finite loss.")
    if kind == "killed" and os.environ["LOCAL_RANK"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "interrupted":
        os.kill(os.getpid(), signal.SIGINT)
    if kind != "well":
        time.sleep(60)


@pytest.mark.slow
def test_how_processes_end_is_told():
    run_on_devices(fail, 2, "Fold 0", "well")
    with pytest.raises(LidcCdamError, match=r"^Fold 0 must have a finite loss\.$"):
        run_on_devices(fail, 2, "Fold 0", "sentence")
    with pytest.raises(LidcCdamError, match=r"Fold 0 needs all of its 2 processes, but one was ended \(SIGKILL\)"):
        run_on_devices(fail, 2, "Fold 0", "killed")
    with pytest.raises(KeyboardInterrupt):
        run_on_devices(fail, 2, "Fold 0", "interrupted")
