"""A small world for the `explain` step: crops of noise and a run of two folds whose tiny models are not trained."""

import numpy as np
import pandas as pd
import torch
import yaml

from lidc_cdam import artifacts, crop_files
from lidc_cdam.artifacts import COHORT_COLUMNS, Dataset, NoduleRecord
from lidc_cdam.backbones import build_backbone
from lidc_cdam.crop_files import Crop
from lidc_cdam.intensity import Intensity, Scaling, Statistics
from lidc_cdam.model import NoduleModel

TARGETS = ("margin", "diameter")
VIEWS = ("axial", "coronal")
ORIGIN_MM = (-51.5, 20.25, 107.0)


def noise(seed):
    return np.random.default_rng(seed).integers(-1000, 400, (32, 32, 32)).astype(np.int16)


def write_hu(data, key, hu):
    crop_files.write_crop(data, key, Crop(hu, np.zeros_like(hu, np.uint8), ORIGIN_MM))


def write_data(data, ids):
    """Crops of noise with the tables that belong to them."""
    rows = [dict.fromkeys(COHORT_COLUMNS, 1) | {"nodule_id": key, "series_uid": f"1.2.{key}"} for key in ids]
    artifacts.write_table(data / "cohort.csv", pd.DataFrame(rows), COHORT_COLUMNS)
    records = {key: NoduleRecord(key, "pack", "scan", 0.0, 0.7, 1.25) for key in ids}
    artifacts.write_dataset(data, Dataset({"preset": "all"}, records))
    for seed, key in enumerate(ids):
        write_hu(data, key, noise(seed))


def write_fold(run, fold, ids):
    torch.manual_seed(fold)
    folder = artifacts.fold_folder(run, fold)
    NoduleModel(build_backbone("tiny"), TARGETS).save(folder)
    statistics = Statistics(Intensity(0.4, 0.3), Scaling(TARGETS, (0.0, 0.0), (1.0, 1.0)))
    statistics.write(folder / "statistics.json")
    table = pd.DataFrame({"nodule_id": ids, "patient_id": ids, "fold": fold})
    artifacts.write_predictions(folder / "predictions.csv", table)


def write_run(folder):
    """`folder/data` and `folder/run`; fold 0 tests nodules a and b, fold 1 nodule c."""
    write_data(folder / "data", ["a", "b", "c"])
    run = folder / "run"
    write_fold(run, 0, ["a", "b"])
    write_fold(run, 1, ["c"])
    config = {"data": str(folder / "data"), "views": list(VIEWS), "targets": list(TARGETS)}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    return run
