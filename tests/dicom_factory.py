"""Small synthetic DICOM files for tests: CT slices with given pixels, place and identifiers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, JPEGTransferSyntaxes, generate_uid

SERIES_UID = "1.2.826.0.1.3680043.8.498.1"
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)

Hu = Callable[[np.ndarray, np.ndarray, float], np.ndarray]


@dataclass(frozen=True)
class Stack:
    """A CT series to write: where its pixels lie, and HU as a function of patient position (x, y, z)."""

    hu: Hu
    z_mm: tuple[float, ...]
    series_uid: str = SERIES_UID
    shape: tuple[int, int] = (64, 64)
    spacing_mm: tuple[float, float] = (0.75, 0.75)
    corner_mm: tuple[float, float] = (0.0, 0.0)
    orientation: tuple[float, ...] = AXIAL
    slope: float = 1
    intercept: float = -1024
    syntax: str = ExplicitVRLittleEndian
    signed: bool = True
    values: Mapping[str, object] = field(default_factory=dict)
    """Further elements of every slice."""

    def slice_hu(self, z: float) -> np.ndarray:
        """HU [row, column] at a height."""
        row, column = np.mgrid[: self.shape[0], : self.shape[1]]
        across, down = column * self.spacing_mm[1], row * self.spacing_mm[0]
        x, y = (
            self.corner_mm[axis] + across * self.orientation[axis] + down * self.orientation[3 + axis]
            for axis in (0, 1)
        )
        return self.hu(x, y, z)

    def write(self, folder: Path, name: str = "1-{:03d}.dcm") -> list[Path]:
        """Write all slices; returns their files in the order of `z_mm`."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / name.format(number) for number in range(1, len(self.z_mm) + 1)]
        for number, (path, z) in enumerate(zip(paths, self.z_mm, strict=True), start=1):
            stored = np.rint((self.slice_hu(z) - self.intercept) / self.slope)
            stored = stored.astype(np.int16 if self.signed else np.uint16)
            write_slice(path, stored, self, z, number)
        return paths


def write_slice(path: Path, stored: np.ndarray, stack: Stack, z: float, number: int) -> None:
    """Write one CT slice with given stored values."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.file_meta.TransferSyntaxUID = UID(stack.syntax)
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID
    dataset.Modality = "CT"
    dataset.PatientID = "phantom"
    dataset.StudyInstanceUID = "1.2.826.0.1.3680043.8.498.2"
    dataset.SeriesInstanceUID = stack.series_uid
    dataset.InstanceNumber = number
    dataset.ImagePositionPatient = [*stack.corner_mm, z]
    dataset.ImageOrientationPatient = list(stack.orientation)
    dataset.PixelSpacing = list(stack.spacing_mm)
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = stored.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelRepresentation = 1 if stored.dtype == np.int16 else 0
    dataset.RescaleIntercept, dataset.RescaleSlope = stack.intercept, stack.slope
    for name, value in stack.values.items():
        setattr(dataset, name, value)
    if dataset.file_meta.TransferSyntaxUID in JPEGTransferSyntaxes:
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    if dataset.file_meta.TransferSyntaxUID.is_compressed:
        dataset.set_pixel_data(stored, "MONOCHROME2", 16)
        dataset.compress(stack.syntax)
    else:
        dataset.PixelData = stored.tobytes()
        dataset["PixelData"].VR = "OW"
    dataset.save_as(path, enforce_file_format=True)
    if stack.syntax in JPEGTransferSyntaxes:
        compress_with_gdcm(path, stack.syntax)


def compress_with_gdcm(path: Path, syntax: str) -> None:
    """Change a file's transfer syntax to one that pydicom cannot write."""
    import gdcm

    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(path))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()


def edit(path: Path, **values: object) -> None:
    """Change elements of a file; None deletes one."""
    from pydicom import dcmread

    dataset = dcmread(path)
    for name, value in values.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)


def flat(hu: float) -> Hu:
    """The same HU everywhere."""
    return lambda x, y, z: np.full(x.shape, hu)


def linear(weights: Sequence[float], offset: float = 0.0) -> Hu:
    """HU linear in x, y and z."""
    a, b, c = weights
    return lambda x, y, z: offset + a * x + b * y + c * z
