"""A run's folder: its claim, its resolved configuration, and what it reads."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from lidc_cdam import provenance
from lidc_cdam.artifacts import COHORT, CONFIG, SPLITS, Fold, Splits, read_cohort, read_dataset, read_splits
from lidc_cdam.backbones import weights_file
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.files import held, write_text
from lidc_cdam.geometry import Grid
from lidc_cdam.provenance import Record
from lidc_cdam.vocabulary import MALIGNANCY
from training.data import read_truth
from training.settings import TrainingSettings

STAGE = "crossval"
"""Name of the run's record; `train` and `crossval` fill the same folder."""


@dataclass(frozen=True)
class Run:
    """One configuration on one set of folds, in one output folder."""

    data: Path
    out: Path
    settings: TrainingSettings
    cohort: pd.DataFrame
    splits: Splits
    undecided: tuple[str, ...]
    """Extracted nodules without a malignancy label, which training may also learn biomarkers from."""
    inputs: dict[str, Path | str]
    """What decides the result besides the settings, for `provenance.begin`."""
    record: Record
    grid: Grid
    """Of the folder's cubes."""
    log: tuple[str, ...] = ()
    """Where else curves go: keys of `loggers.LOGGERS`."""
    devices: int = 1
    """Processes that train a fold together, each on a device of its own."""

    def claim(self, index: int) -> str:
        """Digest of what a fold's checkpoint belongs to."""
        digests = {
            name: provenance.sha256(source) if isinstance(source, Path) else source
            for name, source in self.inputs.items()
        }
        return provenance.sha256_of([self.settings.as_dict(), digests, index])

    def fold(self, index: int) -> Fold:
        """One fold's nodules by role; with `indeterminate`, undecided nodules of no other role's patients train too.

        Raises:
            LidcCdamError: there is no such fold, or it has no nodules to train or to validate on, or none to test; or
                nothing to tell benign from malignant by.
        """
        if not 0 <= index < len(self.splits.folds):
            raise LidcCdamError(
                f"A fold must be one of 0 to {len(self.splits.folds) - 1}, the folds of the splits; "
                f"got {index} from --fold or --folds."
            )
        fold = self.splits.folds[index]
        for role, part in (("training", fold.train), ("validation", fold.val), ("test", fold.test)):
            if not part:
                raise LidcCdamError(
                    f"Fold {index} must have {role} nodules, but it has none; "
                    f"extract more nodules, then run `lidc-cdam split` again."
                )
        if MALIGNANCY.key in self.settings.targets:
            self._check_classes(index, fold)
        if not self.settings.indeterminate:
            return fold
        patients = self.cohort["patient_id"]
        taken = set(patients[[*fold.val, *fold.test]])
        return replace(fold, train=(*fold.train, *(key for key in self.undecided if patients[key] not in taken)))

    def check(self, index: int) -> None:
        """Whether a fold can be trained, as far as the tables tell.

        Raises:
            LidcCdamError: as `fold`, or a nodule has no value for a target.
        """
        fold, targets = self.fold(index), self.settings.resolved_targets
        read_truth(self.cohort, fold.train, targets, self.settings.indeterminate)
        read_truth(self.cohort, (*fold.val, *fold.test), targets)

    def _check_classes(self, index: int, fold: Fold) -> None:
        """Both classes must be there to learn from and to choose an epoch by; a test fold may have one alone."""
        labels = self.cohort["label"]
        for role, part in (("training", fold.train), ("validation", fold.val)):
            found = set(labels.reindex(list(part)).dropna().astype(int))
            if len(found) == 1:
                raise LidcCdamError(
                    f"Fold {index} must have benign and malignant {role} nodules to predict malignancy, but all of its "
                    f"{len(part)} are {'malignant' if 1 in found else 'benign'}; extract more nodules, then run "
                    f"`lidc-cdam split` again, or choose other --targets."
                )


def open_run(
    data: Path,
    out: Path,
    settings: TrainingSettings,
    splits: Path | None,
    stage: str = STAGE,
    more: Mapping[str, Any] | None = None,
    folds: Sequence[int] | None = None,
) -> Run:
    """Claim an output folder for one configuration and write its `config.yaml`.

    Args:
        data: folder of crops.
        out: the run's folder.
        settings: what decides the training.
        splits: the folds; `DATA/splits.json` by default.
        stage: name of the record.
        more: what decides the result besides the settings.
        folds: those that will be trained, from 0; all by default. A folder is not claimed for one that cannot be.

    Raises:
        LidcCdamError: an input is missing, the splits belong to another cohort, a fold cannot be trained, or the folder
            belongs to another configuration.
    """
    place = splits or data / SPLITS
    dataset, cohort, divided = read_dataset(data), read_cohort(data), read_splits(place)
    check_splits(place, divided, data, cohort)
    absent = [key for fold in divided.folds for part in (fold.train, fold.val, fold.test) for key in part]
    absent = [key for key in absent if key not in dataset.nodules]
    if absent:
        raise LidcCdamError(
            f"{place} must name extracted nodules, but {absent[0]} has no crop in {data}; "
            f"run `lidc-cdam extract`, then `lidc-cdam split` again."
        )
    inputs: dict[str, Path | str] = {
        "cohort": data / COHORT,
        "splits": provenance.sha256_of([asdict(fold) for fold in divided.folds]),
        "crops": dataset.digest([key for fold in divided.folds for key in fold.test]),
    }
    undecided = tuple(key for key in cohort.index[cohort["label"].isna()] if key in dataset.nodules)
    if settings.indeterminate:
        inputs["undecided"] = dataset.digest(undecided)
    if settings.weights is not None:
        # Found or fetched before the folder is claimed, so that a machine without a network leaves no claim behind.
        inputs["weights"] = weights_file(settings.backbone, str(settings.weights))
    record = Record(out, stage, finished=False)
    run = Run(data, out, settings, cohort, divided, undecided, inputs, record, dataset.grid)
    for index in range(len(divided.folds)) if folds is None else folds:
        run.check(index)
    record = provenance.begin(out, stage, {**settings.as_dict(), **(more or {})}, inputs)
    config = {"data": str(data.resolve()), "splits": str(place.resolve()), **settings.as_dict()}
    if not (out / CONFIG).exists():
        with held(out, name=".claim", wait=True):
            write_text(out / CONFIG, yaml.safe_dump(config, sort_keys=False))
    return replace(run, record=record)


def check_splits(place: Path, splits: Splits, data: Path, cohort: pd.DataFrame) -> None:
    """Refuse folds that divide another cohort than the folder's.

    Raises:
        LidcCdamError: they do.
    """
    unknown = [key for fold in splits.folds for key in fold.test if key not in cohort.index]
    if unknown or splits.cohort_sha256 != provenance.sha256(data / COHORT):
        raise LidcCdamError(
            f"{place} must divide the cohort of {data}, but it was made from another one; "
            f"run `lidc-cdam split --data {data}` again, or choose other --splits."
        )
