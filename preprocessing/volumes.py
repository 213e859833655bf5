"""Scans as volume files (MetaImage, NRRD, NIfTI) named by SeriesInstanceUID, the form of LUNA16.

The readings are pixel indices of the DICOM series, so a volume is read in the index order of DICOM: rows and columns as
in the pixel array, slices by ascending z. A volume says where its voxels lie in the patient, but not how the DICOM
pixels lay, of which LIDC-IDRI knows two kinds: rows to the back and columns to the left, or both turned round.
"""

import gzip
import struct
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from jaxtyping import Int16, Shaped

from lidc_cdam.errors import LidcCdamError
from lidc_cdam.quality import INCOMPLETE_SERIES, TURNED
from preprocessing.annotations import IndexBox, Nodule, Scan, consensus, reader_counts
from preprocessing.crops import Block, Frame
from preprocessing.series import OFF_AXIS, spacing_flags
from preprocessing.tree import files_below

FORMATS = (".mhd", ".mha", ".nrrd", ".nhdr", ".nii.gz", ".nii")
"""Endings, in the order in which one is chosen where a series has several."""
MATRIX = 512
"""Rows and columns of every CT slice of LIDC-IDRI."""
SAME_Z_MM = 0.1
"""A volume's slices lie at equal steps, so rounding of the DICOM's positions adds up."""
SAME_SPACING_MM = 1e-3
TURNED_PATIENTS = frozenset(
    f"LIDC-IDRI-{number:04d}" for number in (262, 291, 311, 313, 415, 423, 671, 697, 785, 796, 850, 938)
)
"""Patients whose DICOM pixels grow to the right and to the front (reported for QIICR's lidc2dicom, issue 9)."""
CLEAR_HU = 100.0
"""By how much nodules must stand out more from their surroundings in one orientation than in the other."""
AROUND = 5
"""Pixels of surroundings on each side."""
WITNESSES = 3
"""Nodules, the largest first, that are asked for the orientation."""


@dataclass(frozen=True)
class Volume:
    """One scan's file."""

    series_uid: str
    path: Path
    shape: tuple[int, int] = (MATRIX, MATRIX)
    """Rows and columns."""


def find_volumes(root: Path, wanted: Collection[str]) -> dict[str, Volume]:
    """The volumes below a folder that are named by one of some SeriesInstanceUIDs, by that.

    Raises:
        LidcCdamError: the folder is missing, is not a folder, or cannot be listed.
    """
    if not root.is_dir():
        is_what = "a file" if root.exists() else "missing"
        raise LidcCdamError(f"--volumes must be a folder of volume files, but {root} is {is_what}.")
    found: dict[str, list[tuple[int, Path]]] = {}
    try:
        for file in files_below(str(root), Counter()):
            ending = next((ending for ending in FORMATS if file.name.endswith(ending)), "")
            series_uid = file.name.removesuffix(ending)
            if ending and series_uid in wanted:
                choice = (FORMATS.index(ending), Path(file.folder, file.name))
                found.setdefault(series_uid, []).append(choice)
    except PermissionError as error:
        raise LidcCdamError(f"--volumes must be a folder that you may read, but {error.filename} refuses.") from error
    return {series_uid: Volume(series_uid, min(choices)[1]) for series_uid, choices in found.items()}


class VolumeReader:
    """Reads boxes of one scan from its volume; a box's indices are those of the readings."""

    def __init__(self, volume: Volume, nodules: Sequence[Nodule]) -> None:
        """Look at the file and match its slices with the scan's.

        Raises:
            LidcCdamError: the file cannot be read, or is not the scan's volume.
        """
        self.scan = nodules[0].scan
        self.path = volume.path
        self._reader = _header(volume.path)
        _check_grid(self._reader, volume.path, self.scan)
        self._place = self._match_slices()
        self._flags = spacing_flags(self.scan.slice_z_mm)
        if (self._place < 0).any():
            self._flags = (*self._flags, INCOMPLETE_SERIES)
        self._flipped = self._orient(nodules)
        self.frame = self._frame()

    def read(self, nodule: Nodule, box: IndexBox) -> Block:
        """The HU and reader counts of a box.

        Raises:
            LidcCdamError: a slice of it is missing, or its voxels cannot be read or are no HU.
        """
        counts, _ = reader_counts(nodule, box)
        return Block(self._hu(box, self._flipped), counts, box, self.frame, self.scan.slice_z_mm[slice(*box.slice)])

    def forget(self, before: int) -> None:
        """Nothing is kept of single slices."""

    def flags(self, box: IndexBox) -> tuple[str, ...]:
        """Data-quality flags of a box that was read: those of its scan."""
        return self._flags

    def _match_slices(self) -> Shaped[np.ndarray, " slice"]:
        """The volume's slice, counted by ascending z, of each of the scan's; -1 where it has none."""
        step, origin = self._reader.GetSpacing()[2], self._reader.GetOrigin()[2]
        number = self._reader.GetSize()[2]
        lowest = origin if self._reader.GetDirection()[8] > 0 else origin - (number - 1) * step
        heights = np.array(self.scan.slice_z_mm)
        place = np.rint((heights - lowest) / step).astype(int)
        inside = (place >= 0) & (place < number)
        matched = np.abs(lowest + place * step - heights) < SAME_Z_MM
        between = np.diff(place[inside])
        if not inside.any() or not matched[inside].all() or (between != 1).any():
            raise LidcCdamError(
                f"{self.path} must have its slices at the z of the readings, {_span(heights)}, but has {number} from "
                f"{lowest:g} mm in steps of {step:g} mm; convert the scan's own DICOM series, or use --dicom."
            )
        return np.where(inside, place, -1)

    def _orient(self, nodules: Sequence[Nodule]) -> tuple[bool, bool]:
        """Whether rows and columns must be reversed to be in DICOM's order."""
        directions = self._reader.GetDirection()
        row_sign, column_sign = np.sign(directions[4]), np.sign(directions[0])
        usual, turned = ((bool(row_sign != sign), bool(column_sign != sign)) for sign in (1, -1))
        expected = turned if self.scan.patient_id in TURNED_PATIENTS else usual
        if expected == (False, False):
            return expected
        margin = self._contrast(nodules, usual) - self._contrast(nodules, turned)
        if abs(margin) < CLEAR_HU:
            raise LidcCdamError(
                f"{self.path} must have the axes of the DICOM series, but has the directions "
                f"{tuple(round(value, 3) for value in directions)}, and the readings do not tell how it was turned; "
                f"convert the scan's DICOM series without reorienting it, or use --dicom."
            )
        self._flags = (*self._flags, TURNED)
        return usual if margin > 0 else turned

    def _contrast(self, nodules: Sequence[Nodule], flipped: tuple[bool, bool]) -> float:
        """Mean HU of the consensus less that of its surroundings, over the largest nodules: high where they fit."""
        boxes = sorted(((consensus(nodule)[1], nodule) for nodule in nodules), key=lambda pair: -np.prod(pair[0].shape))
        differences = []
        for tight, nodule in boxes[:WITNESSES]:
            rows, columns = (
                (max(start - AROUND, 0), min(stop + AROUND, MATRIX)) for start, stop in (tight.row, tight.column)
            )
            box = IndexBox(rows, columns, tight.slice)
            counts, _ = reader_counts(nodule, box)
            hu = self._hu(box, flipped)
            differences.append(hu[2 * counts.astype(int) >= len(nodule.readings)].mean() - hu[counts == 0].mean())
        return float(np.mean(differences))

    def _hu(self, box: IndexBox, flipped: tuple[bool, bool]) -> Int16[np.ndarray, "row column slice"]:
        """A box's HU in DICOM's order."""
        place = self._place[slice(*box.slice)]
        if (place < 0).any():
            raise LidcCdamError(
                f"{self.path} must have a slice at each z of the readings, but {int((place < 0).sum())} of those "
                f"around the nodule are missing; convert the whole DICOM series."
            )
        rows, columns = (
            (MATRIX - stop, MATRIX - start) if flip else (start, stop)
            for (start, stop), flip in zip((box.row, box.column), flipped, strict=True)
        )
        number = self._reader.GetSize()[2]
        descending = self._reader.GetDirection()[8] < 0
        first = number - 1 - int(place[-1]) if descending else int(place[0])
        voxels = self._voxels(columns, rows, (first, first + len(place)))
        steps = [slice(None, None, -1) if flip else slice(None) for flip in (*flipped, descending)]
        return _to_hu(voxels.transpose(1, 2, 0)[tuple(steps)], self.path)

    def _voxels(self, *ranges: tuple[int, int]) -> Shaped[np.ndarray, "slice row column"]:
        """Voxels of a box, by ranges of the file's own three indices."""
        if self._streams:
            self._reader.SetExtractIndex([start for start, _ in ranges])
            self._reader.SetExtractSize([stop - start for start, stop in ranges])
            with _naming(self.path):
                part: np.ndarray = sitk.GetArrayFromImage(self._reader.Execute())
            return part
        return self._whole[tuple(slice(*one) for one in reversed(ranges))]

    @cached_property
    def _streams(self) -> bool:
        """Whether parts of the file can be read: uncompressed MetaImage; else each part would cost the whole."""
        if self.path.suffix not in (".mhd", ".mha"):
            return False
        with self.path.open("rb") as stream:
            return b"CompressedData = True" not in stream.read(4096)

    @cached_property
    def _whole(self) -> Shaped[np.ndarray, "slice row column"]:
        with _naming(self.path):
            if self.path.name.endswith(FORMATS[-2:]):
                _check_nifti(self.path, int(np.prod(self._reader.GetSize())))
            voxels: np.ndarray = sitk.GetArrayFromImage(sitk.ReadImage(str(self.path)))
        return voxels

    def _frame(self) -> Frame:
        """Where DICOM's rows and columns lie in the patient."""
        direction = np.array(self._reader.GetDirection()).reshape(3, 3)[:2]
        spacing, corner = self._reader.GetSpacing(), np.array(self._reader.GetOrigin()[:2])
        along = {}
        for name, axis, flip in (("rows", 1, self._flipped[0]), ("columns", 0, self._flipped[1])):
            last = corner + (MATRIX - 1) * spacing[axis] * direction[:, axis]
            corner = last if flip else corner
            along[name] = (-direction[:, axis] if flip else direction[:, axis]).tolist()
        x, y = corner.tolist()
        return Frame((x, y), (spacing[1], spacing[0]), tuple(along["columns"]), tuple(along["rows"]), True)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn what a damaged file makes of its readers into a sentence that names it."""
    try:
        yield
    except (OSError, EOFError, RuntimeError, MemoryError, zlib.error, struct.error) as error:
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        reason = lines[-1].split("): ")[-1].removeprefix("Reason: ")[:160]
        # ITK says this of voxels that end too early, too.
        reason = "they are missing or too few" if reason == "No such file or directory" else reason
        raise LidcCdamError(
            f"{path} is damaged or incomplete: its voxels cannot be read ({reason}); make the file again."
        ) from error


def _check_nifti(path: Path, voxels: int) -> None:
    """Refuse a NIfTI file that ends too early, for which ITK makes up voxels without a word.

    Raises:
        EOFError, OSError, zlib.error, struct.error: it does, or its compression is damaged.
    """
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
        header = stream.read(540)
        order = "<" if header[:4] in (b"\x5c\x01\0\0", b"\x1c\x02\0\0") else ">"
        is_second = struct.unpack_from(f"{order}i", header)[0] == 540
        (bits,) = struct.unpack_from(f"{order}h", header, 14 if is_second else 72)
        (start,) = struct.unpack_from(f"{order}q" if is_second else f"{order}f", header, 168 if is_second else 108)
        found = len(header) + sum(len(part) for part in iter(lambda: stream.read(1 << 20), b""))
    if found < start + voxels * bits // 8:
        raise EOFError(f"{found} bytes instead of {start + voxels * bits // 8:g}")


def _header(path: Path) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    with _naming(path):
        reader.ReadImageInformation()
    return reader


def _check_grid(reader: sitk.ImageFileReader, path: Path, scan: Scan) -> None:
    """Refuse a volume that is not the scan's slices, one upon the other."""
    size = reader.GetSize()
    if reader.GetDimension() != 3 or reader.GetNumberOfComponents() != 1 or size[:2] != (MATRIX, MATRIX):
        shape = " x ".join(map(str, size))
        raise LidcCdamError(
            f"{path} must hold {MATRIX} x {MATRIX} x slices single values, as the DICOM series does, but holds {shape} "
            f"with {reader.GetNumberOfComponents()} each; convert the series without cropping or resampling it."
        )
    direction = np.array(reader.GetDirection()).reshape(3, 3)
    if np.abs(np.abs(direction) - np.eye(3)).max() > OFF_AXIS:
        raise LidcCdamError(
            f"{path} must have its axes along the patient's left, back and head (or against them), but has the "
            f"directions {direction.round(3).tolist()}; convert the DICOM series without reorienting it."
        )
    found = reader.GetSpacing()[:2]
    if max(abs(one - scan.pixel_spacing_mm) for one in found) > SAME_SPACING_MM:
        raise LidcCdamError(
            f"{path} must have the scan's pixel spacing of {scan.pixel_spacing_mm:g} mm, but has {found[0]:g} and "
            f"{found[1]:g} mm; it is another scan's or was resampled."
        )


def _to_hu(voxels: Shaped[np.ndarray, "row column slice"], path: Path) -> Int16[np.ndarray, "row column slice"]:
    if not np.isfinite(voxels).all():
        raise LidcCdamError(f"{path} must hold numbers, but some voxels around the nodule are none; make it again.")
    if voxels.min() >= 0:
        raise LidcCdamError(
            f"{path} must hold Hounsfield units, but no voxel around the nodule is below 0; convert the DICOM series "
            f"with its rescale slope and intercept."
        )
    limits = np.iinfo(np.int16)
    hu: np.ndarray = np.clip(np.rint(voxels), limits.min, limits.max).astype(np.int16)
    return hu


def _span(heights: Shaped[np.ndarray, " slice"]) -> str:
    return f"{len(heights)} from {heights[0]:g} to {heights[-1]:g} mm"
