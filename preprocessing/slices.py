"""One CT slice as its header describes it.

Positions are DICOM patient coordinates (LPS), mm.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import isfinite
from pathlib import Path

import pydicom
from pydicom.uid import UID, CTImageStorage, JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless

from preprocessing.headers import SYNTAX, read_header

PHANTOM = "lidc-cdam phantom"
"""SeriesDescription of a phantom's slices."""
MAX_SIDE = 4096
"""Most rows or columns of a CT slice; a header that says more is damaged."""
SPACING_LIMITS_MM = (0.01, 10.0)
FARTHEST_MM = 1e5
"""Greatest coordinate of a position."""
SKEW = 0.01
"""Greatest departure of the in-plane directions from unit length and a right angle."""
LOSSY_SYNTAXES = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless)
INCOMPLETE = "CT image with an incomplete header"
DAMAGED = "CT image with a damaged header"
UNREADABLE = "unreadable file"


@dataclass(frozen=True, slots=True)
class Common:
    """What the slices of one series usually have in common; held once in memory."""

    series_uid: str
    shape: tuple[int, int]
    """Rows and columns."""
    spacing_mm: tuple[float, float]
    """Distance of neighbouring rows and of neighbouring columns (PixelSpacing)."""
    orientation: tuple[float, ...]
    """ImageOrientationPatient: the direction in which the column index grows, then that of the row index."""
    encoding: tuple[float, float, str]
    """RescaleSlope, RescaleIntercept, PixelRepresentation."""
    syntax: str
    """Transfer syntax UID."""
    lossy: bool
    """Whether the pixels ever went through lossy compression."""
    description: str
    """SeriesDescription of a phantom; empty for others, whose free words are not kept."""


@dataclass(frozen=True, slots=True)
class Slice:
    """One file of a series."""

    folder: str
    name: str
    """Of the file in its folder."""
    z_mm: float
    """Third coordinate of ImagePositionPatient."""
    corner_mm: tuple[float, float]
    """x and y of the first pixel's centre."""
    number: int
    """InstanceNumber; 0 where there is none."""
    common: Common

    @property
    def path(self) -> Path:
        """The file; made when asked for, since an index holds a quarter of a million."""
        return Path(self.folder, self.name)


def read_slice(folder: str, name: str) -> Slice | str:
    """A CT slice, or the kind of what the file is instead."""
    try:
        header = read_header(f"{folder}/{name}")
    except (OSError, ValueError):
        return UNREADABLE
    if header is None:
        return "not DICOM"
    kind = header.get("SOPClassUID", "")
    if kind != CTImageStorage:
        return _kind_name(kind)
    try:
        place = _numbers(header["ImagePositionPatient"])
        common = _common(
            header["SeriesInstanceUID"],
            (header["Rows"], header["Columns"]),
            header["PixelSpacing"],
            header["ImageOrientationPatient"],
            (header["RescaleSlope"], header["RescaleIntercept"], header["PixelRepresentation"]),
            header.get(SYNTAX, ""),
            header.get("LossyImageCompression") == "01" or header.get(SYNTAX) in LOSSY_SYNTAXES,
            PHANTOM if header.get("SeriesDescription") == PHANTOM else "",
        )
        number = int(_numbers(header.get("InstanceNumber") or "0")[0])
    except KeyError:
        return INCOMPLETE
    except ValueError:
        return DAMAGED
    if len(place) != 3 or max(map(abs, place)) > FARTHEST_MM:
        return DAMAGED
    return Slice(folder, name, place[2], (place[0], place[1]), number, common)


def _kind_name(sop_class: str) -> str:
    """A SOP class in words; a damaged one must not reach the screen."""
    uid = UID(sop_class, validation_mode=pydicom.config.IGNORE)
    return str(uid.name) if uid.is_valid else "DICOM of no known kind"


@lru_cache(maxsize=256)
def _common(
    series_uid: str,
    size: tuple[str, str],
    spacing: str,
    orientation: str,
    encoding: tuple[str, str, str],
    syntax: str,
    lossy: bool,
    description: str,
) -> Common:
    """The texts of a header as numbers; cached because the next slice's are the same.

    Raises:
        ValueError: they are not what a CT slice can have.
    """
    shape = (int(size[0]), int(size[1]))
    row_mm, column_mm = _numbers(spacing)
    directions = _numbers(orientation)
    (slope,), (intercept,) = _numbers(encoding[0]), _numbers(encoding[1])
    low, high = SPACING_LIMITS_MM
    sound = (
        1 <= min(shape) <= max(shape) <= MAX_SIDE
        and low <= min(row_mm, column_mm) <= max(row_mm, column_mm) <= high
        and _is_right_angle(directions)
        and slope > 0
        and series_uid
    )
    if not sound:
        raise ValueError("no CT slice has these values")
    rescale = (slope, intercept, encoding[2])
    return Common(series_uid, shape, (row_mm, column_mm), directions, rescale, syntax, lossy, description)


def _is_right_angle(directions: tuple[float, ...]) -> bool:
    if len(directions) != 6:
        return False
    columns, rows = directions[:3], directions[3:]
    products = (_dot(columns, columns) - 1, _dot(rows, rows) - 1, _dot(columns, rows))
    return max(map(abs, products)) <= SKEW


def _dot(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def _numbers(text: str) -> tuple[float, ...]:
    numbers = tuple(float(part) for part in text.split("\\"))
    if not all(map(isfinite, numbers)):
        raise ValueError(f"not finite: {text}")
    return numbers
