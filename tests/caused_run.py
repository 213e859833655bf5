"""A small world for `evaluate --phantom` and `--claims`: balls with known causes and a run of untrained tiny models."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml

from lidc_cdam.artifacts import (
    COHORT_COLUMNS,
    Dataset,
    NoduleRecord,
    fold_folder,
    write_dataset,
    write_predictions,
    write_table,
)
from lidc_cdam.backbones import build_backbone
from lidc_cdam.cause_files import Counterfactuals, write_causes, write_counterfactuals
from lidc_cdam.crop_files import Crop, write_crop
from lidc_cdam.intensity import Intensity, Scaling, Statistics
from lidc_cdam.map_files import crop_digest
from lidc_cdam.model import NoduleModel
from lidc_cdam.vocabulary import BIOMARKERS

TARGETS = ("margin", "spiculation", "diameter")
VIEWS = ("axial", "coronal")
NODULES = tuple(f"LIDC-IDRI-{number:04d}_n01" for number in range(4))
KEYS = tuple(biomarker.key for biomarker in BIOMARKERS)


def distance(radius: float) -> np.ndarray:
    z, y, x = np.indices((32, 32, 32)) - 16
    return np.sqrt(z**2 + y**2 + x**2) - radius


def causes_of(radius: float) -> dict[str, np.ndarray]:
    """Margin has a shell, spiculation rods along every axis, the others the body."""
    away = distance(radius)
    rods = np.zeros((32, 32, 32), bool)
    rods[16, 16], rods[16, :, 16], rods[:, 16, 16] = True, True, True
    masks = dict.fromkeys(KEYS, away < 0)
    return masks | {"margin": np.abs(away) < 1.5, "spiculation": rods & (away > 0) & (away < 5)}


def write_phantom(data: Path, nodule_id: str, index: int) -> None:
    radius = 5.0 + index
    masks = causes_of(radius)
    hu = np.where(distance(radius) < 0, 30, -850) + np.random.default_rng(index).integers(-20, 20, (32, 32, 32))
    hu[masks["spiculation"]] = -300
    counts = 3 * (distance(radius) < 0)
    write_crop(data, nodule_id, Crop(hu.astype(np.int16), counts.astype(np.uint8), (0.0, 0.0, 0.0)))
    write_causes(data, nodule_id, masks)
    for key in KEYS:
        # Twice: without the cause, and with more of it.
        added = np.stack([np.where(masks[key], step, 0) for step in (-400, 300)]).astype(np.int16)
        found = Counterfactuals(3.0, np.array([1.0, 5.0]), added, crop_digest(data, nodule_id) or "")
        write_counterfactuals(data, nodule_id, key, found)


def write_data(data: Path) -> None:
    rows, records = [], {}
    for index, nodule_id in enumerate(NODULES):
        write_phantom(data, nodule_id, index)
        row = dict.fromkeys(COHORT_COLUMNS, 1.0 + index)
        identity = {"nodule_id": nodule_id, "patient_id": nodule_id[:14], "series_uid": "1.2", "readers": 3}
        rows.append({**row, **identity, "reason": ""})
        records[nodule_id] = NoduleRecord(nodule_id, "pack", "scan", 0.0, 0.7, 1.0, ("synthetic phantom",))
    write_table(data / "cohort.csv", pd.DataFrame(rows), COHORT_COLUMNS)
    write_dataset(data, Dataset({"preset": "all"}, records))


def write_run(folder: Path) -> Path:
    """`folder/data` and `folder/run`; two folds of two phantoms."""
    write_data(folder / "data")
    run = folder / "run"
    for fold in (0, 1):
        torch.manual_seed(fold)
        model = NoduleModel(build_backbone("tiny"), TARGETS)
        torch.nn.init.normal_(model.head.weight)
        model.save(fold_folder(run, fold))
        scaling = Scaling(TARGETS, (0.0,) * 3, (1.0,) * 3)
        Statistics(Intensity(0.3, 0.3), scaling).write(fold_folder(run, fold) / "statistics.json")
        own = NODULES[fold::2]
        table = pd.DataFrame({"nodule_id": own, "patient_id": [key[:14] for key in own], "fold": fold})
        write_predictions(fold_folder(run, fold) / "predictions.csv", table)
    config = {"data": str(folder / "data"), "views": list(VIEWS), "targets": list(TARGETS), "backbone": "tiny"}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    return run
