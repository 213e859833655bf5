import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_factory import Stack, edit, flat, linear
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels import get_decoder
from pydicom.uid import (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from lidc_cdam.errors import LidcCdamError
from lidc_cdam.quality import LOSSY
from preprocessing.pixels import SlicePixels, lacks_decoder, read_hu
from preprocessing.series import Series, index_series

PLAIN = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
JPEG = (JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless)
LOSSLESS = (*PLAIN, RLELossless, *JPEG)


def write(folder: Path, **settings: object) -> Path:
    """One slice of HU that rise over rows and columns."""
    made = Stack(**{"hu": linear((7, 3, 0), -900), "z_mm": (10.0,), "shape": (64, 80), **settings})
    (path,) = made.write(folder)
    return path


def indexed(folder: Path) -> Series:
    (series,) = index_series(folder).series.values()
    return series


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize(("slope", "intercept"), [(1, -1024), (2, -1000), (0.5, -900.5)])
@pytest.mark.parametrize("syntax", LOSSLESS)
def test_hu_equal_pydicom(tmp_path: Path, slope: float, intercept: float, syntax: str, signed: bool) -> None:
    path = write(tmp_path, slope=slope, intercept=intercept, syntax=syntax, signed=signed)
    dataset = pydicom.dcmread(path)
    assert dataset.file_meta.TransferSyntaxUID == syntax
    wanted = np.rint(dataset.pixel_array * float(slope) + intercept)
    assert abs(wanted[3, 5] - (-900 + 0.75 * (7 * 5 + 3 * 3))) <= slope
    hu = read_hu(indexed(tmp_path).slices[0])
    assert hu.dtype == np.int16
    np.testing.assert_array_equal(hu, wanted)
    np.testing.assert_array_equal(SlicePixels(path).hu((3, 9), (2, 20)), wanted[3:9, 2:20])


def test_padding_pixels_are_what_dicom_says(tmp_path: Path) -> None:
    path = write(tmp_path, hu=flat(-3024), values={"PixelPaddingValue": -2000})
    assert (SlicePixels(path).hu() == -3024).all()


def test_lossy_pixels_are_read_and_flagged(tmp_path: Path) -> None:
    bits = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    path = write(tmp_path, slope=4, intercept=-1000, signed=False, values=bits, syntax=ExplicitVRLittleEndian)
    from dicom_factory import compress_with_gdcm

    dataset = pydicom.dcmread(path)
    stored = np.frombuffer(dataset.PixelData, np.uint16).reshape(64, 80)
    dataset.PixelData = stored.astype(np.uint8).tobytes()
    dataset.save_as(path)
    compress_with_gdcm(path, JPEGBaseline8Bit)
    series = indexed(tmp_path)
    assert LOSSY in series.flags()
    np.testing.assert_allclose(read_hu(series.slices[0]), stored * 4.0 - 1000, atol=40)


@pytest.mark.parametrize("syntax", [RLELossless, *JPEG])
def test_a_missing_decoder_is_named_with_its_remedy(
    tmp_path: Path, syntax: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, syntax=syntax)
    assert lacks_decoder(syntax) == ""
    monkeypatch.setattr(get_decoder(syntax), "_available", {})
    name = pydicom.uid.UID(syntax).name
    assert lacks_decoder(syntax) == name
    with pytest.raises(LidcCdamError) as caught:
        SlicePixels(path)
    assert str(caught.value) == (
        f"{path} is compressed ({name}), and no installed package decodes that; "
        f"install it with `pip install 'lidc-cdam[compressed]'`."
    )


@pytest.mark.parametrize("syntax", ["", "1.2.3", *PLAIN, "1.2.840.10008.1.2.1.99"])
def test_what_is_not_compressed_needs_no_decoder(syntax: str) -> None:
    assert lacks_decoder(syntax) == ""
    assert lacks_decoder("1.2.840.10008.1.2.4.100") != "", "a film is not decoded"


@pytest.mark.parametrize(("syntax", "lost"), [(PLAIN[0], 1), (PLAIN[1], 300), *((one, 300) for one in LOSSLESS[2:])])
def test_truncated_pixels_are_named(tmp_path: Path, lost: int, syntax: str) -> None:
    noise = np.random.default_rng(0).integers(-1000, 400, (64, 64))
    path = write(tmp_path, hu=lambda x, y, z: noise, shape=(64, 64), syntax=syntax)
    path.write_bytes(path.read_bytes()[:-lost])
    with pytest.raises(LidcCdamError, match=r"1-001\.dcm is damaged: its pixels cannot be read .*fetch the file again"):
        read_hu(indexed(tmp_path).slices[0])


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"Rows": 60000}, "no CT slice"),
        ({"NumberOfFrames": 10**6}, "no CT slice"),
        ({"SamplesPerPixel": 3}, "no CT slice"),
        ({"Columns": 81}, "64 x 80 compressed pixels instead of 64 x 81"),
    ],
)
@pytest.mark.parametrize("syntax", JPEG)
def test_hostile_sizes_are_refused_before_decoding(
    tmp_path: Path, syntax: str, values: dict[str, int], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, syntax=syntax)
    edit(path, **values)
    monkeypatch.setattr(pydicom.Dataset, "pixel_array", property(lambda self: pytest.fail("decoded")))
    with pytest.raises(LidcCdamError, match=reason):
        SlicePixels(path)


def _widened_j2k(data: bytes) -> bytes:
    return data[:8] + struct.pack(">2I", 2**31, 2**31) + data[16:]


def _widened_jpeg(data: bytes) -> bytes:
    place = next(i for i in range(len(data)) if data[i] == 0xFF and data[i + 1] in (0xC3, 0xF7))
    return data[: place + 5] + struct.pack(">2H", 65000, 65000) + data[place + 9 :]


@pytest.mark.parametrize(
    ("syntax", "widen"),
    [(JPEG2000Lossless, _widened_j2k), (JPEGLSLossless, _widened_jpeg), (JPEGLossless, _widened_jpeg)],
)
def test_compressed_data_of_another_size_are_not_decoded(
    tmp_path: Path, syntax: str, widen: Callable[[bytes], bytes]
) -> None:
    path = write(tmp_path, syntax=syntax)
    data = get_frame(pydicom.dcmread(path).PixelData, 0, number_of_frames=1)
    edit(path, PixelData=encapsulate([widen(data)]))
    with pytest.raises(LidcCdamError, match=r"compressed pixels instead of 64 x 80"):
        SlicePixels(path)


@pytest.mark.data
def test_real_slices(shared_data: Path) -> None:
    series = indexed(shared_data / "LIDC-IDRI" / "LIDC-IDRI-0001")
    for one in series.slices[::40]:
        dataset = pydicom.dcmread(one.path)
        np.testing.assert_array_equal(read_hu(one), dataset.pixel_array + int(dataset.RescaleIntercept))
