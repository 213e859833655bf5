"""The CT series that exported objects refer to: its slices' headers, without anything that identifies a person."""

import os
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pydicom
from jaxtyping import Float
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import CTImageStorage

from lidc_cdam.errors import LidcCdamError
from lidc_cdam.progress import track
from reports.export.subject import Layer

NEEDED = (
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "Modality",
    "Rows",
    "Columns",
    "PixelSpacing",
    "ImagePositionPatient",
    "ImageOrientationPatient",
)
"""What is taken from a source slice; nothing else of it can reach an output."""
MOST_NAME = 64
"""Characters of a DICOM name's component, with the mark at its end."""
KEPT = (*NEEDED, "SliceThickness")


def find_sources(root: Path, series_uids: Collection[str]) -> dict[str, list[Path]]:
    """Files of CT series below a folder, by SeriesInstanceUID.

    Folders named by a series' UID, as The Cancer Imaging Archive and the Imaging Data Commons name them, are looked
    into first; only if a series is not found so, the headers of all other files are read.

    Args:
        root: folder of DICOM files, in any layout.
        series_uids: the series wanted.

    Raises:
        LidcCdamError: the folder is missing.
    """
    if not root.is_dir():
        raise LidcCdamError(f"--dicom must be a folder of DICOM files, but {root} is no folder.")
    files: list[Path] = []
    named: dict[str, list[Path]] = {}
    for folder, _, names in os.walk(root, followlinks=True):
        paths = [Path(folder) / name for name in sorted(names) if not name.startswith(".")]
        uid = next((uid for uid in series_uids if Path(folder).name in (uid, f"CT_{uid}")), None)
        if uid is None:
            files += paths
        else:
            named.setdefault(uid, []).extend(paths)
    missing = {uid for uid in series_uids if uid not in named}
    if missing:
        for path in track(sorted(files), "Reading headers"):
            uid = _series_of(path)
            if uid in missing:
                named.setdefault(uid, []).append(path)
    return named


def _series_of(path: Path) -> str:
    try:
        return str(
            pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["SeriesInstanceUID"]).SeriesInstanceUID
        )
    except (InvalidDicomError, AttributeError, OSError, EOFError, ValueError):
        return ""


def read_source(paths: Collection[Path], patient_id: str) -> list[Dataset]:
    """Headers of a series' CT slices along its normal, reduced to what a reference needs.

    Of slices at one position the first by file name is kept. The patient is the cohort's pseudonym; names, dates,
    accession and every other element stay behind.

    Args:
        paths: files of one series.
        patient_id: the pseudonym.

    Raises:
        LidcCdamError: no file is a CT slice with a position, or the slices lie on different grids.
    """
    slices: dict[float, Dataset] = {}
    for path in sorted(paths):
        header = _header(path)
        if header is not None:
            slices.setdefault(round(float(normal(header) @ position(header)), 3), header)
    found = [slices[place] for place in sorted(slices)]
    if not found:
        raise LidcCdamError(
            "The nodule's series below --dicom must hold CT slices with positions, but has none; export it as nifti."
        )
    grids = {(one.Rows, one.Columns, *map(float, one.ImageOrientationPatient)) for one in found}
    if len(grids) > 1:
        raise LidcCdamError(
            f"The slices of series {found[0].SeriesInstanceUID} must share one grid, but they have {len(grids)}; "
            f"export its nodules with --format nifti."
        )
    return [_reduced(one, patient_id) for one in found]


def _header(path: Path) -> Dataset | None:
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True)
    except (InvalidDicomError, OSError, EOFError, ValueError):
        return None
    right = header.get("SOPClassUID") == CTImageStorage and all(name in header for name in NEEDED)
    return header if right else None


def _reduced(header: Dataset, patient_id: str) -> Dataset:
    kept = Dataset()
    for name in KEPT:
        if name in header:
            setattr(kept, name, getattr(header, name))
    kept.PatientID, kept.PatientName = patient_id, person_name(patient_id)
    for name in ("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "AccessionNumber", "StudyID"):
        setattr(kept, name, "")
    # Free words of the scanner in the source, such as its operator's landmark.
    kept.ReferringPhysicianName = kept.PositionReferenceIndicator = ""
    kept.file_meta = FileMetaDataset()
    kept.file_meta.TransferSyntaxUID = header.file_meta.TransferSyntaxUID
    return kept


def near(source: Sequence[Dataset], layer: Layer) -> list[Dataset]:
    """The slices that pass through a layer's box or beside it; never none."""
    corners = layer.corners_mm @ normal(source[0])
    heights = np.array([position(one) @ normal(one) for one in source])
    inside = (heights >= corners.min()) & (heights <= corners.max())
    inside[np.abs(heights - corners.mean()).argmin()] = True
    return [one for one, chosen in zip(source, inside, strict=True) if chosen]


def person_name(patient_id: str) -> str:
    """The pseudonym as a DICOM name of one component.

    Raises:
        LidcCdamError: DICOM's identifiers and names cannot hold it (PS3.5 6.2, LO and PN).
    """
    if not 0 < len(patient_id) < MOST_NAME or not patient_id.isprintable() or set(patient_id) & set("\\^="):
        raise LidcCdamError(
            f"patient_id must be 1 to {MOST_NAME - 1} printable characters without \\, ^ and = to stand in DICOM, but "
            f"got {patient_id[:40]!a} of {len(patient_id)}; export the nodule as nifti or nrrd."
        )
    return f"{patient_id}^"


def position(header: Dataset) -> Float[np.ndarray, "3"]:
    """Centre (x, y, z) of a slice's first pixel, LPS, mm."""
    return np.array([float(value) for value in header.ImagePositionPatient])


def directions(header: Dataset) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
    """Steps, mm, from a pixel to the next one in its row (the column index grows) and to that in its column."""
    cosines = np.array([float(value) for value in header.ImageOrientationPatient])
    between_rows, between_columns = (float(value) for value in header.PixelSpacing)
    return cosines[:3] * between_columns, cosines[3:] * between_rows


def normal(header: Dataset) -> Float[np.ndarray, "3"]:
    """Unit vector at right angles to a slice."""
    across, down = directions(header)
    found = np.cross(across, down)
    unit: np.ndarray = found / np.linalg.norm(found)
    return unit
