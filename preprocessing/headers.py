"""The few header elements that say where a CT slice lies, read from a file's first kilobytes.

A DICOM root holds a quarter of a million files, of which extraction decodes a few; so finding them must cost next to
nothing. The common encodings are scanned directly (DICOM PS3.5, chapter 7); whatever is unusual is left to pydicom.
"""

import struct
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.errors import BytesLengthException, InvalidDicomError

PREAMBLE = 132
FIRST_BYTES = 8192
IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
SYNTAX = "TransferSyntaxUID"
UNSCANNED = ("", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99")
"""Unknown, big endian and deflated: pydicom reads them."""
BROKEN = (
    InvalidDicomError,
    BytesLengthException,
    EOFError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
)
"""What pydicom and its decoders raise on damaged bytes."""

PLACE: dict[int, str] = {
    0x00080016: "SOPClassUID",
    0x0008103E: "SeriesDescription",
    0x0020000E: "SeriesInstanceUID",
    0x00200013: "InstanceNumber",
    0x00200032: "ImagePositionPatient",
    0x00200037: "ImageOrientationPatient",
    0x00280010: "Rows",
    0x00280011: "Columns",
    0x00280030: "PixelSpacing",
    0x00280103: "PixelRepresentation",
    0x00281052: "RescaleIntercept",
    0x00281053: "RescaleSlope",
    0x00282110: "LossyImageCompression",
}
"""Elements that place a slice and say how its values are written."""
LAYOUT: dict[int, str] = {
    0x00280002: "SamplesPerPixel",
    0x00280010: "Rows",
    0x00280011: "Columns",
    0x00280100: "BitsAllocated",
    0x00280103: "PixelRepresentation",
    0x00281052: "RescaleIntercept",
    0x00281053: "RescaleSlope",
}
"""Elements that tell how plain pixel data lie in a file."""
_PIXELS = 0x7FE00010
_TRANSFER_SYNTAX = 0x00020010
_WHOLE_NUMBERS = frozenset({0x00280002, 0x00280010, 0x00280011, 0x00280100, 0x00280103})
_LONG = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
"""Value representations whose length takes four bytes."""
_AFTER_PLACE = max(PLACE) + 1
_ELEMENT = struct.Struct("<HH2sH")
_LENGTH = struct.Struct("<I")


def read_header(path: Path) -> dict[str, str] | None:
    """Those elements of `PLACE` that a file has and its `SYNTAX`, as text (several values joined by a backslash).

    Returns:
        None where the file is not DICOM (no `DICM` after the preamble).

    Raises:
        ValueError: the file says it is DICOM but its header cannot be read.
        OSError: the file cannot be opened.
    """
    raw = _first_bytes(path)
    if raw[PREAMBLE - 4 : PREAMBLE] != b"DICM":
        return None
    scanned = _scan(raw, PLACE, _AFTER_PLACE)
    return scanned.values | {SYNTAX: scanned.syntax} if scanned is not None else _with_pydicom(path)


@dataclass(frozen=True)
class Layout:
    """Where and how uncompressed 16-bit pixels lie in a file."""

    offset: int
    """First byte."""
    shape: tuple[int, int]
    """Rows and columns."""
    dtype: str
    """numpy's name of the stored type."""
    slope: float
    intercept: float


def _first_bytes(path: Path) -> bytes:
    # Without a buffer, because there is one read.
    with path.open("rb", buffering=0) as stream:
        return stream.read(FIRST_BYTES)


def pixel_layout(path: Path) -> Layout | None:
    """The layout of a file's pixels; None where they are not plain or the header is unusual.

    Raises:
        ValueError: an element comes twice with different values.
        OSError: the file cannot be opened.
    """
    scanned = _scan(_first_bytes(path), LAYOUT, _PIXELS)
    if scanned is None or scanned.syntax not in (IMPLICIT, EXPLICIT) or scanned.tag != _PIXELS:
        return None
    values = scanned.values
    try:
        shape = (int(values["Rows"]), int(values["Columns"]))
        plain = values["BitsAllocated"] == "16" and values.get("SamplesPerPixel", "1") == "1"
        dtype = {"0": "<u2", "1": "<i2"}[values["PixelRepresentation"]]
        slope, intercept = float(values.get("RescaleSlope") or 1), float(values.get("RescaleIntercept") or 0)
    except (KeyError, ValueError):
        return None
    if not plain or scanned.length != 2 * shape[0] * shape[1]:
        return None
    return Layout(scanned.start, shape, dtype, slope, intercept)


@dataclass(frozen=True)
class _Scanned:
    values: dict[str, str]
    syntax: str
    tag: int
    """First element at or after the one to stop at."""
    start: int
    """Of its value."""
    length: int


def _scan(raw: bytes, names: Mapping[int, str], stop: int) -> _Scanned | None:
    """The named elements before `stop`; None when the bytes hold anything but plain elements until there.

    Raises:
        ValueError: a named element comes twice with different values, so neither can be trusted.
    """
    # A quarter of a million files pass through this loop: what it does for each of their elements is kept short.
    values: dict[str, str] = {}
    element_at, name_of, long = _ELEMENT.unpack_from, names.get, _LONG
    offset, size, syntax, implicit, in_preface = PREAMBLE, len(raw), "", False, True
    while offset + 12 <= size:
        group, element, representation, length = element_at(raw, offset)
        tag = group << 16 | element
        if in_preface and group > 2:
            if syntax in UNSCANNED:
                return None
            implicit, in_preface = syntax == IMPLICIT, False
        start = offset + 8
        if implicit:
            (length,) = _LENGTH.unpack_from(raw, offset + 4)
        elif representation in long:
            (length,) = _LENGTH.unpack_from(raw, start)
            start += 4
        if tag >= stop:
            return _Scanned(values, syntax, tag, start, length)
        offset = start + length
        if offset > size:
            return None
        name = name_of(tag)
        if name is not None:
            value = raw[start:offset]
            text = str(int.from_bytes(value, "little")) if tag in _WHOLE_NUMBERS else _text(value)
            if values.setdefault(name, text) != text:
                raise ValueError(f"{name} comes twice, as {values[name]} and as {text}")
        elif tag == _TRANSFER_SYNTAX:
            syntax = _text(raw[start:offset])
    return None


def _text(value: bytes) -> str:
    return value.decode("ascii", "replace").strip("\0 ")


def _with_pydicom(path: Path) -> dict[str, str]:
    try:
        with warnings.catch_warnings():
            # What pydicom doubts and still reads is judged by its values.
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(PLACE.values()))
            values = {name: dataset.get(name) for name in PLACE.values()}
            values[SYNTAX] = dataset.file_meta.get(SYNTAX)
    except BROKEN as error:
        raise ValueError(f"{path} is damaged: its DICOM header cannot be read") from error
    texts = {name: value for name, value in values.items() if value is not None}
    return {
        name: "\\".join(map(str, value)) if isinstance(value, pydicom.multival.MultiValue) else str(value)
        for name, value in texts.items()
    }
