"""What a sweep leaves: a table of its trials, the best settings as a configuration, and two plots."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import optuna
import pandas as pd
import yaml
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna.trial import FrozenTrial, TrialState

from lidc_cdam.artifacts import write_table
from lidc_cdam.files import read_json, replacing, write_text
from training.run import Run

REASON = "reason"
"""Attribute of a failed trial: the error's sentence."""
KILLED = "its process was ended; a later trial went on with its settings"
LOSSES = "losses.json"
"""A confirmed trial's validation losses, one per fold."""
TRIALS, BEST, HISTORY, IMPORTANCE = "trials.csv", "best.yaml", "history.png", "importance.png"
COLUMNS = ("trial", "state", "val_loss_fold_0", "mean_val_loss", "reason")
Place = Callable[[Run, Mapping[str, Any]], Path]


def write_results(study: optuna.Study, run: Run, place: Place) -> None:
    """Write `trials.csv`, `best.yaml`, `history.png` and, with enough trials, `importance.png`.

    Args:
        study: the sweep's trials.
        run: the sweep's data and common settings.
        place: the folder of a trial's settings.
    """
    trials = study.get_trials(deepcopy=False)
    means = {trial.number: _mean_loss(place(run, trial.params)) for trial in trials}
    rows = [_row(trial, means[trial.number]) for trial in trials if trial.state != TrialState.WAITING]
    write_table(run.out / TRIALS, pd.DataFrame(rows), COLUMNS)
    ended = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    # A trial trained on every fold is preferred to one that was lucky on fold 0.
    best = min(ended, key=lambda trial: (np.isnan(means[trial.number]), means[trial.number], trial.value))
    _write_best(run, best, means[best.number])
    _draw_history(run.out / HISTORY, ended, trials)
    if len(ended) >= 3 and len({trial.value for trial in ended}) > 1:
        _draw_importance(run.out / IMPORTANCE, optuna.importance.get_param_importances(study))


def _mean_loss(folder: Path) -> float:
    path = folder / LOSSES
    return float(np.mean(read_json(path))) if path.exists() else float("nan")


def _row(trial: FrozenTrial, mean: float) -> dict[str, Any]:
    loss = trial.value if trial.state == TrialState.COMPLETE else float("nan")
    if trial.state == TrialState.FAIL:
        # A later trial with the same settings, and so in the same folder, went on.
        mean = float("nan")
    told = {"trial": trial.number, "state": trial.state.name.lower(), "val_loss_fold_0": loss, "mean_val_loss": mean}
    reason = trial.user_attrs.get(REASON, KILLED if trial.state == TrialState.FAIL else "")
    return {**told, "reason": reason, **trial.params}


def _write_best(run: Run, best: FrozenTrial, mean: float) -> None:
    figure = f"{best.value:.4f} on fold 0" if np.isnan(mean) else f"{mean:.4f}, mean over the folds"
    head = (
        f"# lidc-cdam crossval --data DATA --config {run.out / BEST} --out RUN\n"
        f"# Trial {best.number} of a sweep: validation loss {figure}. Test folds were not looked at.\n"
    )
    settings = replace(run.settings, **best.params).as_dict()
    write_text(run.out / BEST, head + yaml.safe_dump(settings, sort_keys=False))


def _draw_history(path: Path, ended: Sequence[FrozenTrial], trials: Sequence[FrozenTrial]) -> None:
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    numbers, losses = [trial.number for trial in ended], [float(trial.value or 0) for trial in ended]
    axes.plot(numbers, losses, "o", color="#0072b2", label="trial")
    last = max(trial.number for trial in trials)
    best = [*np.minimum.accumulate(losses), min(losses)]
    axes.step([*numbers, last], best, where="post", color="#d55e00", label="best so far")
    pruned = [trial for trial in trials if trial.state == TrialState.PRUNED and trial.intermediate_values]
    if pruned:
        lowest = [min(trial.intermediate_values.values()) for trial in pruned]
        axes.plot([trial.number for trial in pruned], lowest, "x", color="#767676", label="given up early")
    axes.set(xlabel="Trial", ylabel="Validation loss, fold 0")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    _save(figure, path)


def _draw_importance(path: Path, shares: Mapping[str, float]) -> None:
    figure = Figure(figsize=(6.4, 0.4 * len(shares) + 1.0), layout="constrained")
    axes = figure.subplots()
    names = sorted(shares, key=lambda name: shares[name])
    axes.barh(names, [shares[name] for name in names], color="#0072b2")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set(xlabel="Share of the variance of the validation loss (fANOVA)", xlim=(0, 1))
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    with replacing(path) as temporary, matplotlib.rc_context({"svg.hashsalt": "lidc-cdam"}):
        figure.savefig(temporary, dpi=150, metadata={"Software": None})
