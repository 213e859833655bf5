"""A small made-up run: every artefact that a report reads, written through the artefacts' own writers."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from lidc_cdam import artifacts, crop_files, provenance
from lidc_cdam.artifacts import Dataset, Fold, Latents, Maps, NoduleRecord, Splits
from lidc_cdam.crop_files import Crop
from lidc_cdam.map_files import random_maps_path
from lidc_cdam.vocabulary import BIOMARKERS, TARGETS

SIDE = 32
GRID = 16


@dataclass(frozen=True)
class World:
    """Where the artefacts lie."""

    data: Path
    biomarkers: Path
    malignancy: Path
    nodules: tuple[str, ...]


def make(root: Path, count: int = 3, flags: tuple[str, ...] = (), padded: int = 4, maps: bool = True) -> World:
    """Write a data folder and two finished runs (biomarkers, malignancy) with maps and `explainers.csv`."""
    nodules = tuple(f"LIDC-IDRI-{1 + index:04d}_n01" for index in range(count))
    data = root / "data"
    generator = np.random.default_rng(7)
    cohort, readings = _tables(nodules, generator)
    artifacts.write_table(data / artifacts.COHORT, cohort, artifacts.COHORT_COLUMNS)
    artifacts.write_table(data / artifacts.READINGS, readings, artifacts.READING_COLUMNS)
    records = {}
    for index, nodule in enumerate(nodules):
        crop_files.write_crop(data, nodule, crop(generator, radius_mm=4 + index % 8, padded=padded))
        records[nodule] = NoduleRecord(nodule, "pack", "scan", 2 * padded / SIDE, 0.7, 1.25, flags)
    artifacts.write_dataset(data, Dataset({"preset": "all", "padding_hu": crop_files.PADDING_HU}, records))
    half = len(nodules) // 2
    folds = (Fold(nodules[half:], (), nodules[:half]), Fold(nodules[:half], (), nodules[half:]))
    artifacts.write_splits(data / artifacts.SPLITS, Splits("sound", 1, "0" * 64, folds, 0.0))
    runs = [
        _run(root / name, data, cohort, keys, half, generator, maps)
        for name, keys in (("biomarkers", [b.key for b in BIOMARKERS]), ("malignancy", ["malignancy"]))
    ]
    return World(data, *runs, nodules)


def crop(generator: np.random.Generator, radius_mm: float = 6, padded: int = 4) -> Crop:
    """A ball in noisy lung; each reader's ball is half a millimetre smaller; `padded` slices missing on both ends."""
    z, y, x = np.indices((SIDE, SIDE, SIDE))
    distance = np.sqrt((z - 16) ** 2 + (y - 16) ** 2 + (x - 16) ** 2)
    hu = np.where(distance < radius_mm, 30, -840) + generator.normal(0, 25, distance.shape)
    readers = sum((distance < radius_mm + 1 - 0.5 * reader).astype(np.uint8) for reader in range(4))
    if padded:
        for end in (slice(0, padded), slice(SIDE - padded, SIDE)):
            hu[end], readers[end] = crop_files.PADDING_HU, 0
    return Crop(hu.astype(np.int16), np.asarray(readers, dtype=np.uint8), (0.0, 0.0, 0.0))


def _tables(nodules: tuple[str, ...], generator: np.random.Generator) -> tuple[pd.DataFrame, pd.DataFrame]:
    cohort, readings = [], []
    for index, nodule in enumerate(nodules):
        identity = {"nodule_id": nodule, "patient_id": nodule.split("_")[0]}
        rows = []
        for reader in range(4):
            ratings = {key: int(generator.integers(1, 6)) for key in artifacts.RATINGS}
            rows.append({**identity, "annotation_id": 10 * index + reader, **ratings, "diameter": 8.0 + index + reader})
        malignancy = (2.0, 4.5)[index % 2]
        means = {b.key: float(np.mean([row[b.key] for row in rows])) for b in BIOMARKERS}
        spread = {f"{b.key}_sd": 0.5 for b in BIOMARKERS}
        cohort.append(
            {**identity, "study_uid": "1.2", "series_uid": "1.2.3", "annotation_ids": "1;2;3;4", "readers": 4}
            | {"malignancy": malignancy, "label": int(malignancy > 3), **means, **spread, "reason": ""}
        )
        readings += rows
    return pd.DataFrame(cohort), pd.DataFrame(readings)


def _run(
    run: Path, data: Path, cohort: pd.DataFrame, keys: list[str], half: int, generator: np.random.Generator, maps: bool
) -> Path:
    run.mkdir(parents=True)
    config = {"data": str(data), "splits": str(data / artifacts.SPLITS), "backbone": "tiny", "targets": keys}
    (run / artifacts.CONFIG).write_text(yaml.safe_dump({**config, "views": ["axial"]}), encoding="utf-8")
    rows, measures = [], []
    for index, facts in enumerate(cohort.to_dict("records")):
        fold = 0 if index < half else 1
        identity = {"nodule_id": facts["nodule_id"], "patient_id": facts["patient_id"], "fold": fold}
        rows.append(identity | _predictions(facts, keys, generator))
        if maps:
            path = artifacts.maps_path(run, fold, "cdam", facts["nodule_id"])
            made = Maps(scores(generator, len(keys)), tuple(keys), ("axial",), (16,))
            artifacts.write_maps(path, made)
            write_random_maps(run, fold, facts["nodule_id"], made)
        for key in keys:
            for method, metric, value in MEASURED:
                measures.append({**identity, "method": method, "target": key, "metric": metric, "value": value})
    artifacts.write_predictions(run / artifacts.PREDICTIONS, pd.DataFrame(rows))
    if maps:
        artifacts.write_table(run / artifacts.EXPLAINERS, pd.DataFrame(measures), artifacts.EXPLAINER_COLUMNS)
    for fold in (0, 1):
        folder = artifacts.fold_folder(run, fold)
        folder.mkdir(exist_ok=True)
        (folder / "model.safetensors").write_bytes(bytes([fold]))
        _validation(folder, keys, generator)
        roles = tuple("test" if row["fold"] == fold else "train" for row in rows)
        vectors = generator.normal(size=(len(rows), 8)).astype(np.float32)
        artifacts.write_latents(folder / artifacts.LATENTS, Latents(tuple(cohort["nodule_id"]), roles, vectors))
    provenance.begin(run, "crossval", {"targets": keys}).finish()
    return run


def write_random_maps(run: Path, fold: int, nodule: str, maps: Maps, sign: float = 1.0) -> Maps:
    """Maps of noise, of the same shape but a hundredth of the size, as `evaluate` keeps them."""
    noise = np.random.default_rng(len(nodule) + fold).normal(size=maps.scores.shape)
    random = Maps((sign * 2e-4 * noise).astype(np.float32), maps.targets, maps.views, maps.slices)
    artifacts.write_maps(random_maps_path(run, fold, "cdam", nodule), random)
    return random


MEASURED = (
    ("cdam", "relevance_mass", 0.62),
    ("cdam", "relevance_mass_chance", 0.18),
    ("cdam", "pointing_game", 1.0),
    ("cdam", "fidelity", 12.5),
    ("cdam", "randomised_embedding", -0.314),
    ("random", "fidelity", -0.25),
)
"""Method, metric and value of what `evaluate` would have measured."""


def _validation(folder: Path, keys: list[str], generator: np.random.Generator) -> None:
    """Forty nodules that no other table names, with small errors."""
    names = [f"VAL-{index}" for index in range(40)]
    table = pd.DataFrame({"nodule_id": names, "patient_id": names, "fold": 0})
    for key in keys:
        rating = TARGETS[key].kind != "probability"
        truth = generator.uniform(1, 5, 40).round(1) if rating else np.arange(40) % 2
        noise = generator.normal(0, 0.5 if rating else 0.1, 40)
        table[f"{key}_true"] = truth
        table[f"{key}_predicted"] = truth + noise if rating else np.clip(0.3 + 0.4 * truth + noise, 0, 1)
    artifacts.write_predictions(folder / "validation.csv", table)


def _predictions(facts: dict[str, object], keys: list[str], generator: np.random.Generator) -> dict[str, float]:
    values = {}
    for key in keys:
        truth = float(facts["label" if key == "malignancy" else key])  # type: ignore[arg-type]
        probability = TARGETS[key].kind == "probability"
        guess = generator.uniform(0.05, 0.95) if probability else truth + generator.normal(0, 0.6)
        values |= {f"{key}_true": truth, f"{key}_predicted": float(guess)}
    return values


def scores(generator: np.random.Generator, targets: int) -> np.ndarray:
    """Smooth signed maps that are strongest in the middle."""
    row, column = np.indices((GRID, GRID)) - (GRID - 1) / 2
    made = []
    for _ in range(targets):
        shift, sign = generator.normal(0, 2, 2), generator.choice([-1, 1])
        body = np.exp(-((row - shift[0]) ** 2 + (column - shift[1]) ** 2) / 8)
        ring = np.exp(-((np.hypot(row, column) - 4.5) ** 2) / 2)
        made.append(sign * 0.02 * body - 0.7 * sign * 0.02 * ring + generator.normal(0, 0.001, row.shape))
    return np.asarray(made, dtype=np.float32)[:, None, None]
