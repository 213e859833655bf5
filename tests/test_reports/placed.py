"""A made-up run on nodules that were extracted from synthetic DICOM, so that their crops lie in a patient."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, radians, sin
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import small_lidc
import yaml
from dicom_factory import AXIAL, Stack
from pydicom.datadict import DicomDictionary
from pydicom.dataset import Dataset
from test_reports import world

from lidc_cdam import artifacts, provenance
from lidc_cdam.artifacts import Maps
from lidc_cdam.files import replacing
from lidc_cdam.vocabulary import TARGETS
from preprocessing.extract import extract

FRAME = "1.2.826.0.1.3680043.8.498.3"
CANARIES = {
    "PatientName": "Canaria^Serinus",
    "PatientBirthDate": "19470312",
    "AccessionNumber": "CANARYACC77",
    "StudyDate": "19991231",
    "SeriesDate": "19991230",
    "AcquisitionDate": "19991229",
    "ContentDate": "19991228",
    "InstitutionName": "Canary General",
    "ReferringPhysicianName": "Finch^Doctor",
    "OperatorsName": "Wren^Operator",
    "StudyID": "CANARYSTUDY",
    "StudyDescription": "CANARY DESCRIPTION",
    "StationName": "CANARYSTATION",
    "PatientComments": "canary comment",
}
"""What no output may hold."""
FIELD, DAY = "CANARYFIELD", "18470312"
"""Likewise: in every other element of text, and in every other date."""
GROUPS = (0x0008, 0x0010, 0x0018, 0x0020, 0x0032, 0x0038, 0x0040, 0x4000, 0x4008)


def planted() -> dict[str, object]:
    """A value for each element of the data dictionary that can hold words or a date, but the PatientID."""
    kinds = dict.fromkeys(("LO", "SH", "ST", "LT", "UT", "UC", "PN"), FIELD) | {"DA": DAY, "DT": f"{DAY}112233"}
    values: dict[str, object] = {
        keyword: kinds[kind]
        for tag, (kind, _, _, _, keyword) in DicomDictionary.items()
        if kind in kinds and tag >> 16 in GROUPS and keyword not in ("", "PatientID")
    }
    nested = Dataset()
    nested.RequestedProcedureDescription = nested.ScheduledProcedureStepID = FIELD
    return {**values, "RequestAttributesSequence": [nested], **CANARIES}


def plant_private(path: Path) -> None:
    """Put a private element into a file."""
    read = pydicom.dcmread(path)
    read.private_block(0x0029, FIELD, create=True).add_new(0x10, "LO", FIELD)
    with replacing(path) as temporary:
        read.save_as(temporary)


def turned(degrees: float) -> tuple[float, ...]:
    """Rows and columns turned in the plane."""
    c, s = cos(radians(degrees)), sin(radians(degrees))
    return (c, s, 0.0, -s, c, 0.0)


ORIENTATIONS: dict[str, tuple[tuple[float, ...], tuple[float, float]]] = {
    "axial": (AXIAL, small_lidc.CORNER_MM),
    "flipped": ((-1.0, 0.0, 0.0, 0.0, -1.0, 0.0), (190.0, 180.0)),
    "turned": (turned(20.0), (-60.0, -200.0)),
}
"""ImageOrientationPatient and the position of the first pixel, by name."""


@dataclass(frozen=True)
class Placed:
    """Where the artefacts lie."""

    data: Path
    run: Path
    dicom: Path
    nodules: tuple[str, ...]


def make(root: Path, orientation: str = "axial", keys: Sequence[str] = tuple(TARGETS)) -> Placed:
    """Write DICOM, extract from it, and make a run with predictions and maps of every target."""
    directions, corner = ORIENTATIONS[orientation]
    (scan,) = {nodule.scan for nodule in small_lidc.nodules()}
    plain = small_lidc.stack_of(scan)
    stack = Stack(
        plain.hu,
        plain.z_mm,
        series_uid=scan.series_uid,
        shape=plain.shape,
        spacing_mm=plain.spacing_mm,
        corner_mm=corner,
        orientation=directions,
        values={**planted(), "FrameOfReferenceUID": FRAME, "SliceThickness": 2.5},
    )
    dicom, data = root / "dicom", root / "data"
    for path in stack.write(dicom / scan.series_uid):
        plant_private(path)
    small_lidc.write_cohort(data)
    extract(data, dicom=dicom)
    nodules = tuple(artifacts.read_dataset(data).nodules)
    return Placed(data, _run(root / "run", data, nodules, keys), dicom, nodules)


def _run(run: Path, data: Path, nodules: Sequence[str], keys: Sequence[str]) -> Path:
    run.mkdir(parents=True)
    config = {"data": str(data), "splits": None, "backbone": "tiny", "targets": list(keys), "views": ["axial"]}
    (run / artifacts.CONFIG).write_text(yaml.safe_dump(config), encoding="utf-8")
    cohort, generator, rows = artifacts.read_cohort(data), np.random.default_rng(5), []
    for nodule_id in nodules:
        facts = cohort.loc[nodule_id]
        row = {"nodule_id": nodule_id, "patient_id": facts["patient_id"], "fold": 0}
        for key in keys:
            truth = float(facts["label" if key == "malignancy" else key])
            row |= {f"{key}_true": truth, f"{key}_predicted": 0.7 if key == "malignancy" else truth + 0.4}
        rows.append(row)
        maps = Maps(world.scores(generator, len(keys)), tuple(keys), ("axial",), (16,))
        artifacts.write_maps(artifacts.maps_path(run, 0, "cdam", nodule_id), maps)
    artifacts.write_predictions(run / artifacts.PREDICTIONS, pd.DataFrame(rows))
    folder = artifacts.fold_folder(run, 0)
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    provenance.begin(run, "crossval", {"targets": list(keys)}).finish()
    return run
