"""What a training costs beside a bare PyTorch loop of the same model, batch and optimiser.

    python benchmarks/train.py [--backbones tiny,small] [--nodules 320] [--epochs 3] [--rounds 3] [--memory-epochs 10]

Prints one line a backbone: images per second of processor time, bare and here, their ratio (the median over rounds in
which the two take turns) and the share of the epoch that makes images ready; then the time of an epoch with the last 0,
20 and all parameter tensors learning, and the resident memory after the second and the last of many epochs.

The clock is the processor time of this process (the wall's with CUDA), which other work on the machine disturbs little.
The nodules are noise in memory. The bare loop has its images ready as normalised tensors of the model's size, and does
nothing but forward, loss, backward and step; here every image is drawn, turned, normalised and resized, and Lightning
drives. Validation is not counted on either side.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytorch_lightning as pl
import torch
from torch import Tensor

from lidc_cdam.artifacts import Fold
from lidc_cdam.backbones import BACKBONES, build_backbone, freeze_all_but_last
from lidc_cdam.model import NoduleModel
from training.data import Cubes, FoldData
from training.lightning import build_trainer, contained, quiet
from training.module import NoduleTask, target_loss
from training.schedules import build_optimiser
from training.settings import TrainingSettings

BATCH = 32
BAR = 0.9
LAYERS: dict[str, int | None] = {"0": 0, "20": 20, "all": None}


def clock() -> float:
    """Seconds of this process's processor time; of the wall where a GPU works."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def fold_data(settings: TrainingSettings, nodules: int) -> FoldData:
    """Noise with random labels; four nodules validate."""
    generator = np.random.default_rng(0)
    names = tuple(f"noise_{index}" for index in range(nodules + 4))
    cubes = generator.integers(-1000, 400, (len(names), 1, 32, 32, 32), dtype=np.int16)
    cohort = pd.DataFrame({"label": np.arange(len(names)) % 2}, index=list(names))
    sources = dict(zip(names, cubes, strict=True))
    return FoldData(Cubes(sources), cohort, Fold(names[:-4], names[-4:], ()), settings)


def fresh_model(settings: TrainingSettings) -> NoduleModel:
    """The model of a training, with random weights."""
    backbone = build_backbone(settings.backbone)
    freeze_all_but_last(backbone, settings.trainable_layers)
    return NoduleModel(backbone, settings.targets, settings.head, settings.backbone)


class Stopwatch(pl.Callback):
    """Processor time of the training part of each epoch, and this process's memory after it."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []
        self.mebibytes: list[float] = []
        self._start = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start."""
        self._start = clock()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop: the epoch's training is over."""
        self.seconds.append(clock() - self._start)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Weigh."""
        self.mebibytes.append(psutil.Process().memory_info().rss / 2**20)


def here(settings: TrainingSettings, data: FoldData) -> Stopwatch:
    """Train as `train` does, without its files."""
    watch = Stopwatch()
    with quiet(), contained(), tempfile.TemporaryDirectory() as folder:
        steps = settings.epochs * data.batches_per_epoch
        task = NoduleTask(fresh_model(settings), data.statistics.intensity, settings, steps)
        build_trainer(settings, [watch], Path(folder)).fit(task, datamodule=data)
    return watch


def bare(settings: TrainingSettings, batches: list[tuple[Tensor, Tensor]]) -> list[float]:
    """Seconds of each epoch of a loop that does nothing else."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = fresh_model(settings).to(device).train()
    ready = [(images.to(device), wanted.to(device)) for images, wanted in batches]
    optimiser, schedule = build_optimiser(model, settings, settings.epochs * len(ready))
    found = []
    for _ in range(settings.epochs):
        start = clock()
        for images, wanted in ready:
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                outputs = model(images).float()
            loss = target_loss(outputs, wanted, model.targets, settings.loss)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        found.append(clock() - start)
    return found


def ready_batches(settings: TrainingSettings, data: FoldData) -> tuple[list[tuple[Tensor, Tensor]], float]:
    """An epoch's normalised images and answers, and the seconds that making them takes."""
    size = BACKBONES[settings.backbone].image_size or 224
    start = clock()
    batches = [(data.statistics.intensity.apply(images, size), wanted) for images, _, wanted in data.train_dataloader()]
    return batches, clock() - start


@contextmanager
def one_thread() -> Iterator[None]:
    """Processor time counts every thread, also one that only waits for another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def throughput(name: str, nodules: int, epochs: int, rounds: int) -> str:
    """The first line of a backbone."""
    settings = TrainingSettings(backbone=name, views=["axial"], batch_size=BATCH, epochs=epochs)
    data = fold_data(settings, nodules)
    ratios, bares, heres, loads = [], [], [], []
    for _ in range(rounds):
        batches, loading = ready_batches(settings, data)
        plain = statistics.median(bare(settings, batches))
        own = statistics.median(here(settings, data).seconds)
        images = sum(len(wanted) for _, wanted in batches)
        ratios.append(plain / own)
        bares.append(images / plain)
        heres.append(images / own)
        loads.append(loading / own)
    ratio, bare_rate, here_rate, load = map(statistics.median, (ratios, bares, heres, loads))
    bar = "at least" if ratio >= BAR else "BELOW"
    return (
        f"{name}: bare {bare_rate:.0f} images/s, here {here_rate:.0f}, ratio {ratio:.2f} ({bar} {BAR}); "
        f"images are made ready in {load:.1%} of an epoch"
    )


def frozen(name: str, nodules: int, rounds: int) -> str:
    """Time of an epoch by how many parameter tensors learn."""
    found: dict[str, list[float]] = {label: [] for label in LAYERS}
    for _ in range(rounds):
        for label, count in LAYERS.items():
            settings = TrainingSettings(
                backbone=name, views=["axial"], batch_size=BATCH, epochs=2, trainable_layers=count
            )
            found[label].append(min(here(settings, fold_data(settings, nodules)).seconds))
    whole = found["all"]
    shares = {
        label: statistics.median(one / other for one, other in zip(times, whole, strict=True))
        for label, times in found.items()
    }
    return f"{name}: time of an epoch with " + ", ".join(
        f"{label} tensors learning {share:.2f}" for label, share in shares.items()
    )


def memory(name: str, nodules: int, epochs: int) -> str:
    """Memory over many epochs."""
    settings = TrainingSettings(backbone=name, views=["axial"], batch_size=BATCH, epochs=epochs)
    sizes = here(settings, fold_data(settings, nodules)).mebibytes
    return f"{name}: {sizes[1]:.0f} MiB resident after epoch 2, {sizes[-1]:.0f} after epoch {epochs}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--backbones", default="tiny,small")
    parser.add_argument("--nodules", type=int, default=320)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory-epochs", type=int, default=10)
    chosen = parser.parse_args()
    names = chosen.backbones.split(",")
    lines: list[Callable[[str], str]] = [
        lambda name: throughput(name, chosen.nodules, chosen.epochs, chosen.rounds),
        lambda name: frozen(name, chosen.nodules, chosen.rounds),
        lambda name: memory(name, min(chosen.nodules, 96), chosen.memory_epochs),
    ]
    with one_thread():
        for line in lines:
            for name in names:
                print(line(name), flush=True)


if __name__ == "__main__":
    main()
