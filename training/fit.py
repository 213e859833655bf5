"""Train one fold: stage `train`."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch

from lidc_cdam import provenance
from lidc_cdam.artifacts import (
    LATENTS,
    PREDICTIONS,
    Fold,
    Latents,
    fold_folder,
    write_latents,
    write_predictions,
    write_table,
)
from lidc_cdam.backbones import build_backbone, freeze_all_but_last
from lidc_cdam.files import alone
from lidc_cdam.intensity import STATISTICS, Intensity, Statistics
from lidc_cdam.model import NoduleModel
from lidc_cdam.progress import say
from training.data import Cubes, FoldData, evaluation_images, read_cubes, read_truth
from training.devices import check_devices, run_on_devices
from training.inference import embed_nodules, predict_nodules, predictions_table
from training.lightning import EpochBar, Keeper, Patience, build_trainer, contained, enough_memory, quiet
from training.loggers import check_loggers, open_loggers
from training.module import NoduleTask
from training.run import Run, open_run
from training.settings import TrainingSettings

CHECKPOINT = "last.ckpt"
"""Everything that going on after an interruption needs; removed when the fold is finished."""
HISTORY = "history.csv"
VALIDATION = "validation.csv"
"""The validation nodules' predictions, in the form of `predictions.csv`: choices after training may look at them."""
INITIAL = 4
"""Stream of random numbers of the initial weights (`augment` and `module` have the others)."""


def train(
    data: Path,
    out: Path,
    settings: TrainingSettings,
    fold: int = 0,
    splits: Path | None = None,
    log: list[str] | None = None,
    devices: int = 1,
) -> None:
    """Train one fold; its best validation epoch predicts its test nodules, which never choose anything.

    Args:
        data: Folder of crops with cohort.csv and splits.json.
        out: Run folder; the fold goes into its `fold_<k>`, and `crossval` can add the others.
        settings: What to predict, with which model, learnt how.
        fold: Which fold, counted from 0.
        splits: File of folds; DATA/splits.json by default.
        log: Also log to tensorboard, mlflow or wandb, several by comma (offline, in the fold's folder); history.csv is
            always written.
        devices: GPUs that share each batch (without a GPU, processes); the result is that of one up to rounding.

    Raises:
        LidcCdamError: an input is missing or does not fit, or `out` holds another configuration.
    """
    check_loggers(log or ())
    check_devices(devices)
    run = replace(open_run(data, out, settings, splits, folds=[fold]), log=tuple(log or ()), devices=devices)
    chosen = run.fold(fold)
    if fit_fold(run, fold, read_cubes(data, [*chosen.train, *chosen.val, *chosen.test], settings.shown, out)):
        say(f"{told_fold(run, fold)}; written to {fold_folder(out, fold)}.")
    else:
        say(f"Fold {fold} is finished already: {fold_folder(out, fold)}.")


def fold_record(run: Run, index: int) -> provenance.Record:
    """A fold's own record; `finished` says that all its files are there."""
    folder = fold_folder(run.out, index)
    return provenance.begin(folder, "train", {**run.settings.as_dict(), "fold": index}, run.inputs)


def fit_fold(run: Run, index: int, cubes: Cubes) -> bool:
    """Train a fold, or go on with it, and write its files; False if that was done before.

    A fold that an older version finished without latents gets them, without training.

    Args:
        run: the run.
        index: the fold, from 0.
        cubes: HU cubes of at least the fold's nodules.

    Raises:
        LidcCdamError: the fold is empty, the training diverged, or the checkpoint is damaged.
    """
    folder = fold_folder(run.out, index)
    with alone(folder, f"Another process trains fold {index} of {run.out}; waiting for it."):
        record = fold_record(run, index)
        if record.finished:
            if not (folder / LATENTS).exists():
                intensity = Statistics.read(folder / STATISTICS).intensity
                _write_latents(run, index, cubes, NoduleModel.load(folder), intensity)
            return False
        _write_fold(run, index, cubes, record)
    return True


def _write_fold(run: Run, index: int, cubes: Cubes, record: provenance.Record) -> None:
    fold, folder = run.fold(index), fold_folder(run.out, index)
    checkpoint = folder / CHECKPOINT
    model, data, keeper = train_fold(run, index, cubes, checkpoint)
    data.statistics.write(folder / STATISTICS)
    history = pd.DataFrame(keeper.history)
    write_table(folder / HISTORY, history, ("epoch", "train_loss", "val_loss"))
    for_validation = replace(fold, test=fold.val)
    write_predictions(folder / VALIDATION, predict_fold(model, data, cubes, run, for_validation, index))
    if data.final_kernel is not None:
        # Its epoch is chosen: from here on the validation nodules may be learnt from, as the baselines do.
        model.side_head = data.final_kernel.eval()
    model.save(folder)
    write_predictions(folder / PREDICTIONS, predict_fold(model, data, cubes, run, fold, index))
    _write_latents(run, index, cubes, model, data.statistics.intensity)
    record.finish(best_epoch=keeper.best_epoch, epochs=len(history), devices=run.devices)
    checkpoint.unlink(missing_ok=True)


def _write_latents(run: Run, index: int, cubes: Cubes, model: NoduleModel, intensity: Intensity) -> None:
    """Where the fold's model puts all its nodules: reports look for a nodule's like among the training nodules."""
    fold = run.fold(index)
    roles = {"train": fold.train, "val": fold.val, "test": fold.test}
    named = [(key, role) for role, part in roles.items() for key in part]
    nodule_ids, given = (tuple(column) for column in zip(*named, strict=True))
    vectors = embed_nodules(model, intensity, evaluation_images(cubes, nodule_ids, run.settings.views))
    write_latents(fold_folder(run.out, index) / LATENTS, Latents(nodule_ids, given, vectors))


def train_fold(
    run: Run, index: int, cubes: Cubes, checkpoint: Path, callbacks: Sequence[pl.Callback] = ()
) -> tuple[NoduleModel, FoldData, Keeper]:
    """Train a fold, or go on with it, up to its best validation epoch; its test nodules are not looked at.

    Args:
        run: the run.
        index: the fold, from 0.
        cubes: HU cubes of at least the fold's training and validation nodules.
        checkpoint: where each finished epoch is kept.
        callbacks: what else listens to the training.

    Returns:
        The model with the best epoch's weights, in evaluation mode; the fold's data; the history.

    Raises:
        LidcCdamError: the training diverged, or the checkpoint is damaged.
    """
    with quiet(), contained():
        data, task, keeper = _prepare(run, index, cubes, checkpoint)
        if run.devices == 1:
            _fit(run, index, task, data, [keeper, *callbacks], checkpoint)
        else:
            data.check_shares(run.devices)
            run_on_devices(share_fold, run.devices, f"Fold {index}", run, index, cubes, checkpoint)
            keeper.read(checkpoint, run.claim(index))
    task.model.load_state_dict(keeper.best)
    return task.model.eval(), data, keeper


def share_fold(run: Run, index: int, cubes: Cubes, checkpoint: Path) -> None:
    """One process's part of a fold on several devices; what it learns is in the checkpoint."""
    with quiet(), contained():
        data, task, keeper = _prepare(run, index, cubes, checkpoint)
        _fit(run, index, task, data, [keeper], checkpoint)


def _prepare(run: Run, index: int, cubes: Cubes, checkpoint: Path) -> tuple[FoldData, NoduleTask, Keeper]:
    data = FoldData(cubes, run.cohort, run.fold(index), run.settings, run.grid)
    return data, _build_task(run.settings, index, data), Keeper(checkpoint, f"Fold {index}")


def _build_task(settings: TrainingSettings, index: int, data: FoldData) -> NoduleTask:
    torch.manual_seed(int(np.random.SeedSequence((settings.seed, index, INITIAL)).generate_state(1)[0]))
    shown = settings.shown
    channels = shown.channels.count
    backbone = build_backbone(settings.backbone, settings.weights, settings.image_size, settings.dropout, channels)
    freeze_all_but_last(backbone, settings.trainable_layers)
    beside = data.statistics.features
    features = len(beside.names) if beside is not None else 0
    model = NoduleModel(backbone, settings.targets, settings.head, settings.backbone, features, data.kernel)
    steps = settings.epochs * data.batches_per_epoch
    return NoduleTask(model, data.statistics.intensity, settings, steps)


def _fit(
    run: Run, index: int, task: NoduleTask, data: FoldData, listeners: Sequence[pl.Callback], checkpoint: Path
) -> None:
    callbacks = [*listeners, EpochBar(f"Fold {index} ({index + 1} of {len(run.splits.folds)})")]
    if run.settings.patience is not None:
        callbacks.append(Patience(run.settings.patience))
    title = f"{run.out.name}, fold {index}"
    # Of several processes, the first one tells.
    log = () if int(os.environ.get("LOCAL_RANK", 0)) and run.devices > 1 else run.log
    with open_loggers(log, checkpoint.parent, title, run.settings.as_dict()) as loggers:
        trainer = build_trainer(run.settings, callbacks, checkpoint.parent, loggers, run.claim(index), run.devices)
        with enough_memory(f"Fold {index}", run.settings.batch_size):
            trainer.fit(task, datamodule=data, ckpt_path=checkpoint if checkpoint.exists() else None)


def predict_fold(model: NoduleModel, data: FoldData, cubes: Cubes, run: Run, fold: Fold, index: int) -> pd.DataFrame:
    """The test nodules' predictions as `RUN/fold_k/predictions.csv` holds them."""
    targets = run.settings.resolved_targets
    images = evaluation_images(cubes, fold.test, run.settings.views)
    features = cubes.scaled_features(fold.test, data.statistics.features)
    outputs = predict_nodules(model, data.statistics.intensity, images, features)
    predicted = data.statistics.scaling.to_reader_scale(outputs)
    nodules = run.cohort.loc[list(fold.test)]
    return predictions_table(nodules, index, targets, read_truth(run.cohort, fold.test, targets), predicted)


def told_fold(run: Run, index: int) -> str:
    """A finished fold in words, from its files: the epoch that validation chose and what it reached there."""
    folder = fold_folder(run.out, index)
    history = pd.read_csv(folder / HISTORY)
    best = history.iloc[int(history["val_loss"].to_numpy().argmin())]
    names = {"val_loss": "loss", "val_auc": "AUC", "val_z_mse": "z-scored MSE"}
    reached = ", ".join(f"{title} {best[name]:.3f}" for name, title in names.items() if name in history)
    return f"Fold {index}: epoch {int(best['epoch'])} of {len(history)} is best on validation ({reached})"
