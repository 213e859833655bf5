"""Train all folds and pool their test predictions: stage `crossval`."""

from dataclasses import replace
from pathlib import Path

import pandas as pd

from lidc_cdam.artifacts import (
    PREDICTIONS,
    SUMMARY,
    fold_folder,
    read_dataset,
    read_predictions,
    read_readings,
    write_predictions,
)
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.files import write_json
from lidc_cdam.metrics.prediction import summarise
from lidc_cdam.progress import say
from training.data import Cubes, read_cubes
from training.fit import fit_fold, fold_record, told_fold
from training.loggers import check_loggers
from training.results import told_summary
from training.run import Run, open_run
from training.settings import TrainingSettings


def crossval(
    data: Path,
    out: Path,
    settings: TrainingSettings,
    folds: list[int] | None = None,
    splits: Path | None = None,
    log: list[str] | None = None,
) -> None:
    """Train the folds one after another, pool their test predictions and measure them.

    Finished folds are kept, so a run can be interrupted, or filled a few folds at a time.

    Args:
        data: Folder of crops with cohort.csv and splits.json.
        out: Run folder.
        settings: What to predict, with which model, learnt how.
        folds: Which folds, counted from 0, as 0,2; none trains all.
        splits: File of folds; DATA/splits.json by default.
        log: Also log to tensorboard, mlflow or wandb (offline, in each fold's folder); history.csv is always written.

    Raises:
        LidcCdamError: an input is missing or does not fit, or `out` holds another configuration.
    """
    check_loggers(log or ())
    run = replace(open_run(data, out, settings, splits), log=tuple(log or ()))
    if run.record.finished and (out / SUMMARY).exists():
        say(f"All {len(run.splits.folds)} folds are finished already: {out / SUMMARY}.")
        return
    asked = sorted(set(range(len(run.splits.folds)) if folds is None else folds))
    if not asked:
        raise LidcCdamError(f"--folds must name at least one fold, from 0 to {len(run.splits.folds) - 1}; got none.")
    chosen = [run.fold(index) for index in asked]
    pending = [fold for index, fold in zip(asked, chosen, strict=True) if not is_finished(run, index)]
    names = dict.fromkeys(key for fold in pending for part in (fold.train, fold.val, fold.test) for key in part)
    _train_folds(run, asked, read_cubes(data, list(names)))
    pool(run)


def is_finished(run: Run, index: int) -> bool:
    """Whether a fold has all its files; claims nothing."""
    return (fold_folder(run.out, index) / PREDICTIONS).exists() and fold_record(run, index).finished


def _train_folds(run: Run, asked: list[int], cubes: Cubes) -> None:
    for index in asked:
        fresh = fit_fold(run, index, cubes)
        say(f"{told_fold(run, index)}{'' if fresh else ', kept from before'}.")


def pool(run: Run) -> None:
    """Write `predictions.csv` and `summary.json` over the finished folds, and say what is still missing."""
    every = range(len(run.splits.folds))
    done = [index for index in every if is_finished(run, index)]
    tables = [read_predictions(fold_folder(run.out, index) / PREDICTIONS) for index in done]
    predictions = pd.concat(tables, ignore_index=True)
    write_predictions(run.out / PREDICTIONS, predictions)
    padded = {key: record.padded_share for key, record in read_dataset(run.data).nodules.items()}
    summary = summarise(predictions, run.cohort, read_readings(run.data), run.splits, padded)
    missing = [index for index in every if index not in done]
    write_json(run.out / SUMMARY, {**summary, "folds": done, "missing_folds": missing})
    for line in told_summary(summary):
        say(line)
    say(f"{len(predictions)} nodules predicted by models that did not see them; written to {run.out / SUMMARY}.")
    if missing:
        say(f"Still missing: folds {', '.join(map(str, missing))}; the same command without --folds adds them.")
    else:
        run.record.finish(nodules=len(predictions), folds=done)
