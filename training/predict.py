"""Apply a finished run to other nodules: stage `predict`."""

from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float64

from lidc_cdam import provenance
from lidc_cdam.artifacts import (
    COHORT,
    PREDICTIONS,
    fold_folder,
    read_cohort,
    read_dataset,
    read_predictions,
    write_predictions,
)
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.intensity import STATISTICS, Statistics
from lidc_cdam.model import DESCRIPTION, WEIGHTS, NoduleModel
from lidc_cdam.progress import say, track
from lidc_cdam.runs import fold_numbers, read_config
from lidc_cdam.vocabulary import resolve_targets
from training.data import Cubes, column_of, evaluation_images, read_cubes
from training.inference import mean_over_models, predict_nodules, predictions_table
from training.settings import Shown

MEAN_OVER_FOLDS = -1
"""What the column `fold` holds where every fold of a run had its say."""


def predict(run: Path, data: Path, out: Path) -> None:
    """Predict every extracted nodule of a folder: the mean over a run's folds, written as a predictions table.

    The column `fold` holds -1; a nodule without the readers' value has an empty `<key>_true`.

    Args:
        run: Run folder of `crossval`.
        data: Folder of other crops.
        out: CSV file to write.

    Raises:
        LidcCdamError: the run has no finished fold, an input is missing or does not fit.
    """
    folders, config = finished_folds(run), read_config(run)
    views = list(config["views"])
    cohort, dataset = read_cohort(data), read_dataset(data)
    nodule_ids = [key for key in cohort.index if key in dataset.nodules]
    if not nodule_ids:
        raise LidcCdamError(f"{data} must hold crops of its cohort, but it has none; run `lidc-cdam extract` first.")
    for folder in folders:
        Statistics.read(folder / STATISTICS).require_grid(data, dataset.grid)
    inputs: dict[str, Path | str] = {"cohort": data / COHORT, "crops": dataset.digest(nodule_ids)}
    for folder in folders:
        inputs |= {f"{folder.name}/{name}": folder / name for name in (WEIGHTS, DESCRIPTION, STATISTICS)}
    if out.is_dir():
        raise LidcCdamError(f"--out must be a CSV file, but {out} is a folder; name a file in it.")
    if not out.exists():
        provenance.forget(out.parent, f"predict/{out.name}")
    record = provenance.begin(out.parent, f"predict/{out.name}", {"views": views}, inputs, "choose another --out FILE")
    if record.finished and out.exists():
        say(f"{len(nodule_ids)} nodules are predicted already: {out}.")
        return
    cubes = read_cubes(data, nodule_ids, Shown.of(config), out.parent)
    targets = resolve_targets(config["targets"])
    predicted = _predict_folds(folders, cubes, nodule_ids, views, tuple(target.key for target in targets))
    truth = cohort.loc[nodule_ids, [column_of(target) for target in targets]].to_numpy(dtype=np.float64)
    table = predictions_table(cohort.loc[nodule_ids], MEAN_OVER_FOLDS, targets, truth, predicted)
    write_predictions(out, table)
    record.finish(nodules=len(table), folds=len(folders))
    say(f"{len(table)} nodules predicted by the mean over {len(folders)} folds: {out}.")
    _tell_known(run, table)


def finished_folds(run: Path) -> list[Path]:
    """Folders of a run's finished folds, by index.

    Raises:
        LidcCdamError: there is none.
    """
    found = [fold_folder(run, number) for number in fold_numbers(run, provenance.FILE)]
    folders = [folder for folder in found if (provenance.read_record(folder, "train") or {}).get("finished")]
    if not folders:
        raise LidcCdamError(
            f"--run must be a folder with a finished fold, but {run} has none; run `lidc-cdam crossval`."
        )
    return folders


def _predict_folds(
    folders: list[Path], cubes: Cubes, nodule_ids: list[str], views: list[str], keys: tuple[str, ...]
) -> Float64[np.ndarray, "nodule target"]:
    images = evaluation_images(cubes, nodule_ids, views)
    outputs, scalings = [], []
    for folder in track(folders, "Predicting"):
        model, statistics = NoduleModel.load(folder), Statistics.read(folder / STATISTICS)
        if model.targets != keys or statistics.scaling.keys != keys:
            raise LidcCdamError(
                f"{folder} must hold a model of the run's targets {', '.join(keys)}, but it holds one of another task "
                f"({', '.join(model.targets)}); train the fold again."
            )
        features = cubes.scaled_features(nodule_ids, statistics.features)
        outputs.append(predict_nodules(model, statistics.intensity, images, features))
        scalings.append(statistics.scaling)
    return mean_over_models(outputs, scalings)


def _tell_known(run: Path, table: pd.DataFrame) -> None:
    if not (run / PREDICTIONS).exists():
        return
    seen = table["patient_id"].isin(read_predictions(run / PREDICTIONS)["patient_id"])
    if seen.any():
        say(
            f"{int(seen.sum())} of them belong to patients that this run was trained on: "
            f"their out-of-fold predictions are in {run / PREDICTIONS}."
        )
