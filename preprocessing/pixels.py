"""The pixels of one DICOM slice in Hounsfield units: rows of plain files on demand, any other file decoded whole.

HU are what DICOM says: stored value x RescaleSlope + RescaleIntercept, for padding pixels too. GE's -2000 outside the
reconstructed circle thus becomes -2000 or -3024 HU, far below air, which the HU window of the models takes for air.
"""

import os
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import numpy as np
import pydicom
from jaxtyping import Int16, Shaped
from pydicom.pixels import get_decoder
from pydicom.uid import UID, JPEG2000TransferSyntaxes, JPEGLSTransferSyntaxes, JPEGTransferSyntaxes

from lidc_cdam.errors import LidcCdamError
from preprocessing.headers import BROKEN, Layout, pixel_layout
from preprocessing.slices import MAX_SIDE, Slice

EXTRA = "lidc-cdam[compressed]"
"""What to install for compressed pixels."""
_J2K_SIZE = b"\xff\x4f\xff\x51"
"""Start of a JPEG 2000 codestream and of its SIZ segment (ISO/IEC 15444-1, A.5.1)."""
_NO_FRAME = frozenset({0xC4, 0xC8, 0xCC})
"""Markers among 0xC0-0xCF that do not start a JPEG frame (ISO/IEC 10918-1, table B.1)."""
_JPEG_LS_FRAME = 0xF7


class MissingDecoderError(LidcCdamError):
    """No installed package decodes a file's compression."""


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


def lacks_decoder(syntax: str) -> str:
    """The name of a transfer syntax whose pixels no installed package decodes; empty where they can be read."""
    uid = UID(syntax, validation_mode=pydicom.config.IGNORE)
    if not uid.is_transfer_syntax or not uid.is_compressed or uid.is_deflated:
        return ""
    try:
        available = get_decoder(uid).is_available
    except NotImplementedError:
        available = False
    return "" if available else str(uid.name)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn what a damaged file makes of its readers into a sentence that names it."""
    try:
        yield
    except MissingDecoderError:
        raise
    except (OSError, UserWarning, *BROKEN) as error:
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
    """A whole slice through pydicom and its plugins.

    Raises:
        MissingDecoderError: the plugin for its compression is not installed.
    """
    with warnings.catch_warnings():
        # pydicom only warns of compressed pixels that end too early; what else it warns of, it reads all the same.
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message="End of file reached")
        dataset = pydicom.dcmread(path)
        syntax = dataset.file_meta.TransferSyntaxUID
        lacking = lacks_decoder(syntax)
        if lacking:
            raise MissingDecoderError(
                f"{path} is compressed ({lacking}), and no installed package decodes that; "
                f"install it with `pip install '{EXTRA}'`."
            )
        shape = (int(dataset.Rows), int(dataset.Columns))
        _check_size(dataset, shape)
        stored: np.ndarray = dataset.pixel_array
        slope, intercept = float(dataset.RescaleSlope), float(dataset.RescaleIntercept)
    if stored.shape != shape:
        raise ValueError(f"they have the shape {stored.shape}")
    return _to_hu(stored, slope, intercept)


def _check_size(dataset: pydicom.Dataset, shape: tuple[int, int]) -> None:
    """Refuse, before anything is decoded, sizes that a CT slice cannot have: decoders take memory for what they say.

    Raises:
        ValueError: the header, or the compressed data themselves, say another size.
    """
    frames, samples = int(dataset.get("NumberOfFrames") or 1), int(dataset.SamplesPerPixel)
    if not 1 <= min(shape) <= max(shape) <= MAX_SIDE or frames != 1 or samples != 1:
        raise ValueError(f"{frames} frames of {shape[0]} x {shape[1]} with {samples} samples are no CT slice")
    syntax = dataset.file_meta.TransferSyntaxUID
    coded = JPEG2000TransferSyntaxes + JPEGTransferSyntaxes + JPEGLSTransferSyntaxes
    found = _coded_size(dataset.PixelData, syntax in JPEG2000TransferSyntaxes) if syntax in coded else shape
    if found != shape:
        raise ValueError(f"{found[0]} x {found[1]} compressed pixels instead of {shape[0]} x {shape[1]}")


def _coded_size(data: bytes, is_jpeg_2000: bool) -> tuple[int, int]:
    """Rows and columns that encapsulated JPEG data say they hold; (0, 0) where they do not say it."""
    if is_jpeg_2000:
        place = data.find(_J2K_SIZE)
        if place < 0 or place + 24 > len(data):
            return 0, 0
        width, height, left, top = struct.unpack_from(">4I", data, place + 8)
        return height - top, width - left
    place = data.find(b"\xff\xd8\xff") + 2
    while 2 <= place <= len(data) - 9 and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == _JPEG_LS_FRAME or (0xC0 <= marker <= 0xCF and marker not in _NO_FRAME):
            height, width = struct.unpack_from(">2H", data, place + 5)
            return height, width
        (length,) = struct.unpack_from(">H", data, place + 2)
        place += 2 + max(length, 2)
    return 0, 0


def _to_hu(stored: Shaped[np.ndarray, "row column"], slope: float, intercept: float) -> Int16[np.ndarray, "row column"]:
    limits = np.iinfo(np.int16)
    if slope == 1 and intercept.is_integer():
        whole = stored.astype(np.int32) + int(intercept)
        return np.clip(whole, limits.min, limits.max).astype(np.int16)
    return np.clip(np.rint(stored * slope + intercept), limits.min, limits.max).astype(np.int16)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]
