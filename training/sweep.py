"""Search settings with Optuna: stage `sweep`. Trials see training and validation nodules, never a test nodule.

A trial first trains fold 0, and is given up once its validation loss falls behind the median of the earlier trials at
the same epoch. The best trials are then trained on every fold, and the lowest mean validation loss over the folds wins.
Several `sweep` commands may work on one folder at once: a journal file tells them what the others draw.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytorch_lightning as pl
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from lidc_cdam import provenance
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.files import held, read_json, write_json
from lidc_cdam.progress import say
from training.data import Cubes, read_cubes
from training.fit import train_fold
from training.run import Run, open_run
from training.settings import TrainingSettings
from training.space import Range, read_space
from training.sweep_results import BEST, LOSSES, REASON, write_results

STAGE = "sweep"
JOURNAL = "journal.log"
FOLDER = "folder"
"""Attribute of a trial: the name of its folder."""
WARM_UP_TRIALS, WARM_UP_EPOCHS = 4, 2
"""Trials and epochs before the first trial may be given up."""


def sweep(
    data: Path,
    out: Path,
    settings: TrainingSettings,
    space: str = "paper",
    trials: int = 20,
    confirm: int = 3,
    splits: Path | None = None,
) -> None:
    """Search for the settings with the lowest validation loss; test folds are never looked at.

    The journal, `trials.csv`, `best.yaml` (a configuration for `crossval`) and plots go into OUT. The same command goes
    on where it stopped, and may run in several shells at once.

    Args:
        data: Folder of crops with cohort.csv and splits.json.
        out: Folder of the sweep.
        settings: What all trials have in common; what the space names is drawn anew for each.
        space: Ranges to draw from: paper, scratch, or the path of a YAML file.
        trials: Trials on fold 0, those of all shells together.
        confirm: How many of the best are then trained on every fold.
        splits: File of folds; DATA/splits.json by default.

    Raises:
        LidcCdamError: an input is missing or does not fit, or every trial failed.
    """
    for flag, value in (("trials", trials), ("confirm", confirm)):
        if value < 1:
            raise LidcCdamError(f"--{flag} must be at least 1; got {value}.")
    ranges = read_space(space, settings)
    run = open_run(data, out, settings, splits, STAGE, {"space": {key: one.as_dict() for key, one in ranges.items()}})
    folds = [run.fold(index) for index in range(len(run.splits.folds))]
    names = dict.fromkeys(key for fold in folds for part in (fold.train, fold.val) for key in part)
    cubes = read_cubes(data, list(names), settings.shown, out)
    with _quiet_optuna():
        search = Search(_open_study(out), run, cubes, ranges)
        search.release_dead()
        search.draw(trials)
        search.confirm(confirm)
        write_results(search.study, run, trial_folder)
    say(f"The best settings are in {out / BEST}: `lidc-cdam crossval --data {data} --config {out / BEST} --out RUN`.")


@contextmanager
def _quiet_optuna() -> Iterator[None]:
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(level)


def _open_study(out: Path) -> optuna.Study:
    path = str(out / JOURNAL)
    storage = JournalStorage(JournalFileBackend(path, lock_obj=JournalFileOpenLock(path)))
    pruner = optuna.pruners.MedianPruner(n_startup_trials=WARM_UP_TRIALS, n_warmup_steps=WARM_UP_EPOCHS)
    return optuna.create_study(study_name=STAGE, storage=storage, pruner=pruner, load_if_exists=True)


@dataclass(frozen=True)
class Search:
    """One process's share of a sweep."""

    study: optuna.Study
    run: Run
    cubes: Cubes
    ranges: Mapping[str, Range]

    def release_dead(self) -> None:
        """Take up what killed processes left: their trials are drawn again and go on from their checkpoints."""
        for trial in self._trials(TrialState.RUNNING):
            with held(self.run.out / "trials" / trial.user_attrs.get(FOLDER, "unnamed")) as mine:
                if mine:
                    self.study.tell(trial.number, state=TrialState.FAIL)
                    self.study.enqueue_trial(trial.params)

    def draw(self, trials: int) -> None:
        """Trials on fold 0 until there are enough of them, under way or done, in all shells."""
        while len(self._begun()) < trials:
            # Seeded by the number of trials begun, an interrupted sweep draws as one that was not.
            self.study.sampler = optuna.samplers.TPESampler(
                seed=self.run.settings.seed + len(self._begun()), n_startup_trials=WARM_UP_TRIALS, constant_liar=True
            )
            trial = self.study.ask()
            values = {name: one.draw(trial, name) for name, one in self.ranges.items()}
            trial.set_user_attr(FOLDER, trial_folder(self.run, values).name)
            with held(trial_folder(self.run, values)):
                self._try(trial, values)

    def confirm(self, count: int) -> None:
        """Train the best trials on every fold; those that another shell trains are left to it."""
        for trial in self._best(count):
            folder = trial_folder(self.run, trial.params)
            with held(folder) as mine:
                if not mine:
                    continue
                losses = [self._loss(folder, trial.params, index) for index in range(len(self.run.splits.folds))]
                write_json(folder / LOSSES, losses)
                say(f"Trial {trial.number}: mean validation loss {np.mean(losses):.4f} over {len(losses)} folds.")

    def _begun(self) -> list[FrozenTrial]:
        """All trials but those of killed processes."""
        counted = self._trials(TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
        return [*counted, *self._failed()]

    def _failed(self) -> list[FrozenTrial]:
        return [trial for trial in self._trials(TrialState.FAIL) if REASON in trial.user_attrs]

    def _best(self, count: int) -> list[FrozenTrial]:
        """The trials with the lowest loss on fold 0.

        Raises:
            LidcCdamError: no trial ended.
        """
        ended = sorted(self._trials(TrialState.COMPLETE), key=lambda trial: (trial.value, trial.number))
        if not ended:
            reasons = [trial.user_attrs[REASON] for trial in self._failed()]
            told = f"the first of {len(reasons)} failures: {reasons[0]}" if reasons else "others are still under way."
            raise LidcCdamError(f"No trial of the sweep in {self.run.out} has ended with a result; {told}")
        return ended[:count]

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=states)

    def _try(self, trial: optuna.Trial, values: Mapping[str, Any]) -> None:
        told = ", ".join(
            f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()
        )
        try:
            loss = self._loss(trial_folder(self.run, values), values, 0, trial)
        except optuna.TrialPruned:
            self.study.tell(trial, state=TrialState.PRUNED)
            say(f"Trial {trial.number}: given up early ({told}).")
        except LidcCdamError as error:
            trial.set_user_attr(REASON, str(error))
            self.study.tell(trial, state=TrialState.FAIL)
            say(f"Trial {trial.number}: failed ({told}): {error}")
        else:
            self.study.tell(trial, loss)
            say(f"Trial {trial.number}: validation loss {loss:.4f} on fold 0 ({told}).")

    def _loss(self, folder: Path, values: Mapping[str, Any], index: int, trial: optuna.Trial | None = None) -> float:
        """The lowest validation loss of a fold with drawn settings; kept in a file, so it is trained once."""
        kept = folder / f"fold_{index}.json"
        if kept.exists():
            return float(read_json(kept))
        run = replace(self.run, settings=replace(self.run.settings, **values))
        checkpoint = folder / f"fold_{index}.ckpt"
        listeners = [] if trial is None else [_Pruner(trial)]
        _, _, keeper = train_fold(run, index, self.cubes, checkpoint, listeners)
        loss = min(row["val_loss"] for row in keeper.history)
        write_json(kept, loss)
        checkpoint.unlink(missing_ok=True)
        return loss


def trial_folder(run: Run, values: Mapping[str, Any]) -> Path:
    """Where a trial keeps its checkpoints and losses; the same settings have the same folder."""
    return run.out / "trials" / provenance.sha256_of(dict(values))[:12]


class _Pruner(pl.Callback):
    """Tells a trial each epoch's validation loss, and ends a training that falls behind."""

    def __init__(self, trial: optuna.Trial) -> None:
        super().__init__()
        self._trial = trial

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report, and stop if the trial should be given up."""
        self._trial.report(float(trainer.callback_metrics["val_loss"]), trainer.current_epoch)
        if self._trial.should_prune():
            raise optuna.TrialPruned
