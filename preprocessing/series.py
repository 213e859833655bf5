"""Find CT series in a folder of DICOM, whatever its layout, and read HU slices on demand.

Positions are DICOM patient coordinates (LPS), mm; row and column indices count from 0.
"""

import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import isfinite
from pathlib import Path
from typing import Any, cast

import numpy as np
import pydicom
from jaxtyping import Int16, Shaped
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID, CTImageStorage

from lidc_cdam.errors import LidcCdamError
from lidc_cdam.progress import track
from lidc_cdam.quality import SYNTHETIC
from preprocessing.crops import Frame
from preprocessing.headers import Layout, pixel_layout, read_header

PHANTOM = "lidc-cdam phantom"
"""SeriesDescription of a phantom's slices."""
SAME_Z_MM = 0.02
"""Slices nearer than this lie at one z (the finest spacing of LIDC-IDRI is 0.45 mm)."""
UNEVEN = 0.02
"""Share of the median spacing by which a step may differ before the spacing counts as irregular."""
GAP = 2.1
"""A step of more than this many median spacings is a gap. Two are known spacing changes (LIDC-IDRI-0672)."""
OFF_AXIS = 1e-3
"""Greatest part of a series' normal, or of the drift between its slices, that may lie in the axial plane."""


UNREADABLE = (
    OSError,
    EOFError,
    InvalidDicomError,
    ValueError,
    RuntimeError,
    AttributeError,
    KeyError,
    TypeError,
    UserWarning,
)
"""What pydicom and its decoders raise on damaged files."""


@dataclass(frozen=True)
class Slice:
    """One file of a series."""

    path: Path
    z_mm: float
    """Third coordinate of ImagePositionPatient."""
    corner_mm: tuple[float, float]
    """x and y of the first pixel's centre."""
    number: int
    """InstanceNumber; 0 where there is none."""
    description: str = ""
    """SeriesDescription."""


@dataclass(frozen=True)
class Series:
    """One CT series: its files by ascending z, duplicates included."""

    series_uid: str
    slices: tuple[Slice, ...]
    shape: tuple[int, int]
    """Rows and columns of each slice."""
    spacing_mm: tuple[float, float]
    """Distance of neighbouring rows and of neighbouring columns (PixelSpacing)."""
    orientation: tuple[float, ...]
    """ImageOrientationPatient: the direction in which the column index grows, then that of the row index."""

    @property
    def positions_mm(self) -> tuple[float, ...]:
        """The different z, ascending."""
        return tuple(group[0].z_mm for group in self.by_position)

    @cached_property
    def by_position(self) -> list[tuple[Slice, ...]]:
        """The files at each z, ascending; several where slices are duplicated."""
        groups: list[list[Slice]] = []
        for one in self.slices:
            if groups and one.z_mm - groups[-1][0].z_mm < SAME_Z_MM:
                groups[-1].append(one)
            else:
                groups.append([one])
        return [tuple(sorted(group, key=lambda one: (one.number, str(one.path)))) for group in groups]

    def flags(self) -> tuple[str, ...]:
        """What is wrong with the series' slices, each a short phrase."""
        duplicated = len(self.slices) > len(self.positions_mm)
        synthetic = any(one.description == PHANTOM for one in self.slices)
        return (
            *((SYNTHETIC,) if synthetic else ()),
            *(("duplicate slices",) if duplicated else ()),
            *spacing_flags(self.positions_mm),
        )

    def frame(self) -> Frame:
        """Where the pixels lie in the patient.

        Raises:
            LidcCdamError: the slices are not axial, or drift sideways from one to the next (a tilted gantry).
        """
        columns, rows = np.array(self.orientation[:3]), np.array(self.orientation[3:])
        corners = np.array([one.corner_mm for one in self.slices])
        drift = np.ptp(corners, axis=0).max() / max(self.slices[-1].z_mm - self.slices[0].z_mm, 1.0)
        if max(abs(columns[2]), abs(rows[2]), drift) > OFF_AXIS:
            raise LidcCdamError(
                f"Series {self.series_uid} must have axial slices stacked along z, but its orientation is "
                f"{self.orientation} and its slices drift by {drift:.3f} mm per mm."
            )
        x, y = (float(value) for value in corners[0])
        return Frame(
            (x, y), self.spacing_mm, (float(columns[0]), float(columns[1])), (float(rows[0]), float(rows[1])), True
        )


def spacing_flags(z_mm: Sequence[float]) -> tuple[str, ...]:
    """`irregular z` and `gap` where ascending positions have them."""
    steps = np.diff(z_mm)
    if len(steps) < 2:
        return ()
    median = float(np.median(steps))
    irregular = bool((np.abs(steps - median) > max(UNEVEN * median, SAME_Z_MM)).any())
    return (*(("irregular z",) if irregular else ()), *(("gap",) if (steps > GAP * median).any() else ()))


@dataclass(frozen=True)
class SeriesIndex:
    """What a DICOM root holds."""

    root: Path
    series: dict[str, Series]
    """The CT series by SeriesInstanceUID."""
    others: dict[str, int]
    """Number of files left out, by kind."""

    def summary(self) -> str:
        """What was found, in words."""
        slices = sum(len(series.slices) for series in self.series.values())
        left = "".join(f", {count} x {kind}" for kind, count in sorted(self.others.items()))
        return f"{len(self.series)} wanted CT series with {slices} slices{left}"


def index_series(root: Path, wanted: Collection[str] | None = None) -> SeriesIndex:
    """Index the CT slices below a folder by SeriesInstanceUID, from their headers, in one pass.

    Any layout and any file name will do. Only CT Image Storage is kept; everything else is counted by kind.

    Args:
        root: folder of DICOM files.
        wanted: SeriesInstanceUIDs to keep; all by default. Files of other CT series are counted.

    Raises:
        LidcCdamError: the root is missing, is not a folder, or is empty.
    """
    if not root.is_dir():
        raise LidcCdamError(f"--dicom must be a folder of DICOM files, but {root} is {_what_is(root)}.")
    paths = list(_files(root))
    if not paths:
        raise LidcCdamError(f"--dicom must be a folder of DICOM files, but {root} is empty.")
    others: Counter[str] = Counter()
    grids: dict[str, defaultdict[tuple[Any, ...], list[Slice]]] = defaultdict(lambda: defaultdict(list))
    for path in track(paths, "Reading headers"):
        found = _read_slice(path, wanted)
        if isinstance(found, str):
            others[found] += 1
        else:
            series_uid, grid, one = found
            grids[series_uid][grid].append(one)
    series = {}
    for series_uid, parts in grids.items():
        grid, slices = max(parts.items(), key=lambda part: len(part[1]))
        strays = sum(map(len, parts.values())) - len(slices)
        if strays:
            others["CT image off its series' grid"] += strays
        ordered = sorted(slices, key=lambda one: (one.z_mm, one.number, str(one.path)))
        series[series_uid] = Series(series_uid, tuple(ordered), grid[0], grid[1], grid[2])
    return SeriesIndex(root, series, dict(others))


class SlicePixels:
    """A slice's pixels: rows of a plain file are read when asked for; any other file is decoded whole, once."""

    def __init__(self, path: Path) -> None:
        """Look at the file.

        Raises:
            LidcCdamError: the file's pixels cannot be read.
        """
        self.path = path
        with _naming(path):
            self._layout = pixel_layout(path)
            self._decoded = None if self._layout is not None else _decode(path)

    def hu(
        self, rows: tuple[int, int] | None = None, columns: tuple[int, int] | None = None
    ) -> Int16[np.ndarray, "row column"]:
        """Hounsfield units, rounded to whole ones.

        Args:
            rows: half-open range of rows; all by default.
            columns: half-open range of columns; all by default.

        Raises:
            LidcCdamError: the file's pixels cannot be read.
        """
        across = slice(*columns) if columns else slice(None)
        with _naming(self.path):
            if self._layout is not None:
                stored = _read_rows(self.path, self._layout, rows)[:, across]
                return _to_hu(stored, self._layout.slope, self._layout.intercept)
        whole = cast(Int16[np.ndarray, "row column"], self._decoded)
        return whole[slice(*rows) if rows else slice(None), across]


def read_hu(one: Slice) -> Int16[np.ndarray, "row column"]:
    """A slice in Hounsfield units, rounded to whole ones.

    Raises:
        LidcCdamError: the file's pixels cannot be read.
    """
    return SlicePixels(one.path).hu()


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn what a damaged file makes of its readers into a sentence that names it."""
    try:
        yield
    except UNREADABLE as error:
        raise LidcCdamError(
            f"{path} is damaged: its pixels cannot be read ({_first_line(error)}); fetch the file again."
        ) from error


def _read_rows(path: Path, layout: Layout, rows: tuple[int, int] | None) -> Shaped[np.ndarray, "row column"]:
    height, width = layout.shape
    first, last = rows or (0, height)
    with path.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        if size < layout.offset + 2 * height * width:
            raise EOFError(f"{size} bytes instead of {layout.offset + 2 * height * width}")
        stream.seek(layout.offset + 2 * first * width)
        raw = stream.read(2 * (last - first) * width)
    return np.frombuffer(raw, dtype=layout.dtype).reshape(last - first, width)


def _decode(path: Path) -> Int16[np.ndarray, "row column"]:
    with warnings.catch_warnings():
        # pydicom only warns of compressed pixels that end too early.
        warnings.filterwarnings("error", message="End of file reached")
        dataset = pydicom.dcmread(path)
    stored: np.ndarray = dataset.pixel_array
    if stored.shape != (dataset.Rows, dataset.Columns):
        raise ValueError(f"they have the shape {stored.shape}")
    return _to_hu(stored, float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0)))


def _to_hu(stored: Shaped[np.ndarray, "row column"], slope: float, intercept: float) -> Int16[np.ndarray, "row column"]:
    limits = np.iinfo(np.int16)
    if slope == 1 and intercept.is_integer():
        whole = stored.astype(np.int32) + int(intercept)
        return np.clip(whole, limits.min, limits.max).astype(np.int16)
    return np.clip(np.rint(stored * slope + intercept), limits.min, limits.max).astype(np.int16)


def _files(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        folders.sort()
        yield from (Path(folder, name) for name in sorted(names))


def _read_slice(path: Path, wanted: Collection[str] | None) -> tuple[str, tuple[Any, ...], Slice] | str:
    """A CT slice with its series and grid, or the kind of what the file is instead."""
    try:
        header = read_header(path)
    except (OSError, ValueError):
        return "unreadable file"
    if header is None:
        return "not DICOM"
    kind = header.get("SOPClassUID", "")
    if kind != CTImageStorage:
        return UID(kind).name if kind else "DICOM of no kind"
    series_uid = header.get("SeriesInstanceUID", "")
    if wanted is not None and series_uid not in wanted:
        return "CT image of a series not asked for"
    try:
        x, y, z = _numbers(header["ImagePositionPatient"])
        orientation = _numbers(header["ImageOrientationPatient"])
        row_mm, column_mm = _numbers(header["PixelSpacing"])
        shape = (int(header["Rows"]), int(header["Columns"]))
        number = int(_numbers(header.get("InstanceNumber") or "0")[0])
        description = header.get("SeriesDescription", "")
    except (KeyError, ValueError):
        return "CT image without a position"
    if len(orientation) != 6 or min(row_mm, column_mm, *shape) <= 0:
        return "CT image without a position"
    return series_uid, (shape, (row_mm, column_mm), orientation), Slice(path, z, (x, y), number, description)


@lru_cache(maxsize=64)
def _numbers(text: str) -> tuple[float, ...]:
    numbers = tuple(float(part) for part in text.split("\\"))
    if not all(map(isfinite, numbers)):
        raise ValueError(f"not finite: {text}")
    return numbers


def _what_is(root: Path) -> str:
    return "a file" if root.exists() else "missing"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]
