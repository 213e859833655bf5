"""A phantom as DICOM: one CT Image Storage file a slice, with the scan's own identifiers, spacing and positions."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, UInt16
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from lidc_cdam.files import replacing
from lidc_cdam.progress import track
from preprocessing.annotations import Scan
from preprocessing.slices import PHANTOM

INTERCEPT = -1024
ORIENTATION = (1, 0, 0, 0, 1, 0)
"""ImageOrientationPatient: columns grow to the patient's left, rows to the back."""
IMAGE_SIDE = 512
"""Rows and columns of a slice."""
SLAB = 8
"""Slices sampled at a time: enough to be fast, few enough to stay small in memory."""

Slices = Callable[[Float[np.ndarray, " slice"]], Float32[np.ndarray, "slice row column"]]


def write_series(scan: Scan, hu: Slices, folder: Path, seed: int = 0) -> Path:
    """Write a series as `<patient>/<study>/<series>/1-NNN.dcm`, from the head down; files that exist are kept.

    Args:
        scan: whose identifiers, spacing and z positions to use.
        hu: HU of whole slices [slice, row, column] at given z, mm.
        folder: the DICOM root.
        seed: the phantom's seed; it takes part in the instances' UIDs.

    Returns:
        The series' folder.
    """
    series = folder / scan.patient_id / scan.study_uid / scan.series_uid
    numbered = list(enumerate(sorted(scan.slice_z_mm, reverse=True), start=1))
    missing = [(number, z) for number, z in numbered if not slice_path(series, number).exists()]
    for first in track(range(0, len(missing), SLAB), f"Writing phantom scan {scan.patient_id}"):
        slab = missing[first : first + SLAB][::-1]
        images = hu(np.array([z for _, z in slab]))
        for (number, z), image in zip(slab, images, strict=True):
            _write(slice_path(series, number), _dataset(scan, number, z, _stored(image), seed))
    return series


def slice_path(series: Path, number: int) -> Path:
    """File of a slice in a series' folder, counted from 1."""
    return series / f"1-{number:03d}.dcm"


def in_plane_origin_mm(scan: Scan, size: int = IMAGE_SIDE) -> tuple[float, float]:
    """Patient position (x, y) of the first pixel: the image's middle lies on the patient axis."""
    return (-size / 2 * scan.pixel_spacing_mm, -size / 2 * scan.pixel_spacing_mm)


def _stored(image: Float32[np.ndarray, "row column"]) -> UInt16[np.ndarray, "row column"]:
    return np.asarray(np.clip(np.rint(image) - INTERCEPT, 0, 4095), np.uint16)


def _decimal(value: float) -> str:
    """A decimal string, at most 16 characters (DICOM PS3.5, value representation DS)."""
    return f"{value:.10g}"


def _write(path: Path, dataset: Dataset) -> None:
    with replacing(path) as temporary:
        dataset.save_as(temporary, enforce_file_format=True)


def _dataset(scan: Scan, number: int, z_mm: float, pixels: UInt16[np.ndarray, "row column"], seed: int) -> Dataset:
    x, y = in_plane_origin_mm(scan, pixels.shape[1])
    instance = generate_uid(entropy_srcs=[PHANTOM, scan.series_uid, str(seed), str(number)])
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = instance
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    values = {
        "SpecificCharacterSet": "ISO_IR 100",
        "ImageType": ["DERIVED", "PRIMARY", "AXIAL"],
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": instance,
        "Modality": "CT",
        "Manufacturer": "lidc-cdam",
        "SeriesDescription": PHANTOM,
        "PatientName": "Phantom",
        "PatientID": scan.patient_id,
        "PatientIdentityRemoved": "YES",
        "StudyInstanceUID": scan.study_uid,
        "SeriesInstanceUID": scan.series_uid,
        "FrameOfReferenceUID": generate_uid(entropy_srcs=[PHANTOM, scan.series_uid]),
        "SeriesNumber": 1,
        "InstanceNumber": number,
        "SliceThickness": _decimal(scan.slice_thickness_mm),
        "PixelSpacing": [_decimal(scan.pixel_spacing_mm)] * 2,
        "ImageOrientationPatient": list(ORIENTATION),
        "ImagePositionPatient": [_decimal(x), _decimal(y), _decimal(z_mm)],
        "SliceLocation": _decimal(z_mm),
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "BitsAllocated": 16,
        "BitsStored": 12,
        "HighBit": 11,
        "PixelRepresentation": 0,
        "RescaleIntercept": INTERCEPT,
        "RescaleSlope": 1,
        "RescaleType": "HU",
        "WindowCenter": -600,
        "WindowWidth": 1600,
        **dict.fromkeys(("StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "StudyID"), ""),
        **dict.fromkeys(
            ("PatientBirthDate", "PatientSex", "KVP", "AcquisitionNumber", "PositionReferenceIndicator"), ""
        ),
    }
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    dataset.PixelData = pixels.astype("<u2").tobytes()
    return dataset
