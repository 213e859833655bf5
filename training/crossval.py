"""Train all folds, pool their test predictions and measure them beside other answers: stage `crossval`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from lidc_cdam.artifacts import (
    LATENTS,
    PREDICTIONS,
    SUMMARY,
    Fold,
    fold_folder,
    predicted_keys,
    read_dataset,
    read_predictions,
    read_readings,
    write_predictions,
)
from lidc_cdam.clusters import LOCAL
from lidc_cdam.compute import HERE, Pool, Workers
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.files import alone, write_json
from lidc_cdam.metrics.prediction import summarise
from lidc_cdam.progress import say
from lidc_cdam.runs import shown_words
from lidc_cdam.vocabulary import MALIGNANCY, TARGETS
from training.baselines import TREES, Baselines, baseline_path, fit_baselines
from training.bottleneck import FILE as BOTTLENECK
from training.bottleneck import fit_bottleneck, has_bottleneck, measure_bottleneck, write_bottleneck
from training.data import read_cubes
from training.devices import check_devices
from training.fit import fit_fold, fold_record, told_fold
from training.folds import train_side_by_side
from training.loggers import check_loggers
from training.plots import draw_figures
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
    trees: int = TREES,
    workers: Workers = HERE,
    devices: int = 1,
) -> None:
    """Train the folds, pool their test predictions and measure them.

    Folds are trained one after another, or with --workers side by side, each with its share of this machine's cores and
    its own fold_<k>/train.log. Finished folds are kept, so a run can be interrupted, or filled a few folds at a time.
    Beside the model stand, on the same nodules and folds: a ruler, classical radiomics, logistic regression on the
    readers' biomarkers, one reader and the readers' noise floor; figures go into OUT/figures.

    Args:
        data: Folder of crops with cohort.csv and splits.json.
        out: Run folder.
        settings: What to predict, with which model, learnt how.
        folds: Which folds, counted from 0, as 0,2; none trains all.
        splits: File of folds; DATA/splits.json by default.
        log: Also log to tensorboard, mlflow or wandb, several by comma (offline, in each fold's folder); history.csv is
            always written.
        trees: Trees in each forest of the radiomics baseline; 0 leaves that baseline out.
        workers: Folds that are trained at the same time, and where.
        devices: GPUs that share each batch of a fold (without a GPU, processes); the result is that of one up to
            rounding.

    Raises:
        LidcCdamError: an input is missing or does not fit, `out` holds another configuration, or a fold failed.
    """
    if trees < 0:
        raise LidcCdamError(f"--trees must be at least 0 (no radiomics baseline); got {trees}.")
    check_loggers(log or ())
    if workers.engine == LOCAL:
        check_devices(devices)
    run = replace(open_run(data, out, settings, splits, folds=folds), log=tuple(log or ()), devices=devices)
    every = range(len(run.splits.folds))
    if run.record.finished and (out / SUMMARY).exists() and all(_is_complete(run, index) for index in every):
        say(f"All {len(run.splits.folds)} folds are finished already: {out / SUMMARY}.")
        return
    asked = sorted(set(range(len(run.splits.folds)) if folds is None else folds))
    if not asked:
        raise LidcCdamError(f"--folds must name at least one fold, from 0 to {len(run.splits.folds) - 1}; got none.")
    chosen = [run.fold(index) for index in asked]
    pending = {index: fold for index, fold in zip(asked, chosen, strict=True) if not _is_complete(run, index)}
    _train_folds(run, asked, pending, workers, splits)
    with alone(out, f"Another process pools the folds of {out}; waiting for it."):
        pool(run, trees)


def is_finished(run: Run, index: int) -> bool:
    """Whether a fold has all its files; claims nothing."""
    return (fold_folder(run.out, index) / PREDICTIONS).exists() and fold_record(run, index).finished


def _is_complete(run: Run, index: int) -> bool:
    """Whether a finished fold has its latents too, which older versions did not write."""
    return is_finished(run, index) and (fold_folder(run.out, index) / LATENTS).exists()


def _train_folds(
    run: Run, asked: Sequence[int], pending: Mapping[int, Fold], workers: Workers, splits: Path | None
) -> None:
    if pending and not Pool(workers).in_process:
        for index in set(asked) - set(pending):
            say(f"{told_fold(run, index)}, kept from before.")
        train_side_by_side(run, list(pending), workers, splits)
        return
    names = dict.fromkeys(
        key for fold in pending.values() for part in (fold.train, fold.val, fold.test) for key in part
    )
    cubes = read_cubes(run.data, list(names), run.settings.shown, run.out)
    for index in asked:
        fresh = fit_fold(run, index, cubes)
        say(f"{told_fold(run, index)}{'' if fresh else ', kept from before'}.")


def pool(run: Run, trees: int = TREES) -> None:
    """Write what the finished folds make together, and say what is still missing.

    `predictions.csv`, `baselines/`, `bottleneck.csv` (with all eight biomarkers), `summary.json` and `figures/`.

    Args:
        run: the run.
        trees: trees in each forest of the radiomics baseline.
    """
    every = range(len(run.splits.folds))
    done = [index for index in every if is_finished(run, index)]
    tables = [read_predictions(fold_folder(run.out, index) / PREDICTIONS) for index in done]
    predictions = pd.concat(tables, ignore_index=True)
    write_predictions(run.out / PREDICTIONS, predictions)
    missing = [index for index in every if index not in done]
    shown = shown_words(run.settings.as_dict())
    summary = {**_measure(run, predictions, trees), "shown": shown, "folds": done, "missing_folds": missing}
    write_json(run.out / SUMMARY, summary)
    figures = draw_figures(run.out, run.cohort)
    for line in told_summary(summary):
        say(line)
    for line in shown:
        say(line)
    say(f"{len(predictions)} nodules predicted by models that did not see them; written to {run.out / SUMMARY}.")
    say(f"{len(figures)} figures are in {figures[0].parent}." if figures else "There is nothing to draw.")
    if missing:
        say(f"Still missing: folds {', '.join(map(str, missing))}; the same command without --folds adds them.")
    else:
        run.record.finish(nodules=len(predictions), folds=done)


def _measure(run: Run, predictions: pd.DataFrame, trees: int) -> dict[str, Any]:
    """The run's figures beside those of the baselines, and the concept bottleneck."""
    keys = predicted_keys(predictions)
    concepts = has_bottleneck(keys)
    targets = [target for target in TARGETS.values() if target.key in keys or (concepts and target is MALIGNANCY)]
    baselines = fit_baselines(run, predictions, targets, trees)
    for name, table in baselines.tables.items():
        write_predictions(baseline_path(run.out, name), table)
    for name in baselines.absent:
        # What an earlier pooling wrote does not belong to this one.
        baseline_path(run.out, name).unlink(missing_ok=True)
    padded = {key: record.padded_share for key, record in read_dataset(run.data).nodules.items()}
    readings = read_readings(run.data)
    summary = summarise(predictions, run.cohort, readings, run.splits, padded, rivals=baselines.tables)
    section, absent = _bottleneck(run, predictions, baselines) if concepts else ({}, {})
    return {**summary, **section, "absent": {**baselines.absent, **absent}, "radiomics_trees": trees}


def _bottleneck(run: Run, predictions: pd.DataFrame, baselines: Baselines) -> tuple[dict[str, Any], dict[str, str]]:
    """The section of the summary, or the reason why there is none."""
    try:
        found = fit_bottleneck(run, predictions)
    except LidcCdamError as error:
        (run.out / BOTTLENECK).unlink(missing_ok=True)
        return {}, {"bottleneck": str(error)}
    write_bottleneck(run.out, found.table)
    return {"bottleneck": measure_bottleneck(found, {"model": predictions, **baselines.tables})}, {}
