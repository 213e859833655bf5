"""A small DATA folder whose labels can be seen in the images: malignant nodules are brighter and larger."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lidc_cdam.artifacts import (
    COHORT,
    COHORT_COLUMNS,
    READING_COLUMNS,
    READINGS,
    SPLITS,
    Dataset,
    Fold,
    NoduleRecord,
    Splits,
    write_dataset,
    write_splits,
    write_table,
)
from lidc_cdam.backbones import BACKBONES, Backbone
from lidc_cdam.crop_files import Crop, write_crop
from lidc_cdam.geometry import USUAL, Grid
from lidc_cdam.provenance import sha256
from lidc_cdam.vocabulary import BIOMARKERS, RATINGS


def make_data(folder: Path, nodules: int, folds: int = 2, seed: int = 0, grid: Grid = USUAL) -> Path:
    """`nodules` crops of as many patients, half of them malignant; each fold tests an equal part."""
    generator = np.random.default_rng(seed)
    names = [f"SYN-{index:03d}_n01" for index in range(nodules)]
    labels = np.arange(nodules) // folds % 2
    radii = np.where(labels, 8.0, 4.0) + generator.uniform(-1, 1, nodules)
    shape = (grid.side,) * 3
    distance = grid.spacing_mm * np.linalg.norm(np.indices(shape) - grid.central, axis=0)
    for name, label, radius in zip(names, labels, radii, strict=True):
        body = distance <= radius
        hu = generator.normal(-850, 60, shape) + body * (600 + 300 * label)
        crop = Crop(hu.astype(np.int16), (4 * body).astype(np.uint8), (0.0, 0.0, 0.0), grid.spacing_mm)
        write_crop(folder, name, crop)
    _write_tables(folder, names, labels, 2 * radii, generator)
    records = {name: NoduleRecord(name, "volume", "scan", 0.0, 0.7, 1.0) for name in names}
    write_dataset(folder, Dataset(asdict(grid), records))
    parts = [names[start::folds] for start in range(folds)]
    divided = [[name for part in parts if part is not test for name in part] for test in parts]
    roles = [
        Fold(tuple(rest[len(rest) // 4 :]), tuple(rest[: len(rest) // 4]), tuple(test))
        for rest, test in zip(divided, parts, strict=True)
    ]
    write_splits(folder / SPLITS, Splits("sound", 0, sha256(folder / COHORT), tuple(roles), 0.0))
    return folder


def _write_tables(
    folder: Path, names: list[str], labels: np.ndarray, diameters: np.ndarray, generator: np.random.Generator
) -> None:
    rows, readings = [], []
    for index, (name, label, diameter) in enumerate(zip(names, labels, diameters, strict=True)):
        patient = name.split("_")[0]
        values = {marker.key: float(generator.uniform(1, 5)) for marker in BIOMARKERS} | {"diameter": diameter}
        identity = {"nodule_id": name, "patient_id": patient, "study_uid": "1", "series_uid": f"1.{index}"}
        spread = {f"{marker.key}_sd": 0.5 for marker in BIOMARKERS}
        annotations = [str(4 * index + reader) for reader in range(4)]
        row = {"annotation_ids": " ".join(annotations), "readers": 4, "malignancy": 2 + 2 * label, "label": label}
        rows.append({**identity, **row, **values, **spread, "reason": ""})
        for reader, annotation in enumerate(annotations):
            ratings = dict.fromkeys(RATINGS, 2 + reader % 2) | {"malignancy": int(2 + 2 * label)}
            diameter_mm = diameter + 0.1 * reader
            readings.append(
                {
                    "nodule_id": name,
                    "patient_id": patient,
                    "annotation_id": annotation,
                    **ratings,
                    "diameter": diameter_mm,
                }
            )
    write_table(folder / COHORT, pd.DataFrame(rows), COHORT_COLUMNS)
    write_table(folder / READINGS, pd.DataFrame(readings), READING_COLUMNS)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 24 crops and two folds."""
    return make_data(tmp_path_factory.mktemp("training") / "data", 24)


@pytest.fixture(scope="module", autouse=True)
def _small_backbone() -> Iterator[None]:
    """`tiny`, smaller still: 4 x 4 tokens and two blocks, so that an epoch takes a fraction of a second."""
    row = BACKBONES["tiny"]
    small = Backbone(row.architecture, image_size=32, arguments={**row.arguments, "patch_size": 8, "depth": 2})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "tiny", small)
        yield


@pytest.fixture
def own_data(tmp_path: Path) -> Path:
    """The same, for a test that changes it."""
    return make_data(tmp_path / "data", 24)


@pytest.fixture(scope="module", autouse=True)
def _no_figures() -> Iterator[None]:
    """`crossval` draws nothing, which would be most of its time here; `test_plots.py` draws."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.crossval.draw_figures", lambda *_: [])
        yield
