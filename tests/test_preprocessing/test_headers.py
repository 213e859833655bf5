import struct
from pathlib import Path

import pydicom
import pytest
from dicom_factory import Stack, flat
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from preprocessing.headers import PLACE, SYNTAX, pixel_layout, read_header
from preprocessing.pixels import SlicePixels


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (path,) = Stack(flat(-800), (10.0,), shape=(16, 24)).write(tmp_path)
    return path


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
@pytest.mark.parametrize("long", [False, True])
def test_headers_equal_pydicom_in_every_encoding(path: Path, syntax: str, long: bool) -> None:
    dataset = pydicom.dcmread(path)
    dataset.SeriesDescription = "made for a test"
    dataset.ReferencedImageSequence = [pydicom.Dataset()]
    dataset["ReferencedImageSequence"].is_undefined_length = not long
    dataset.ImageComments = "x" * (9000 if long else 3)
    dataset.AdmittingDiagnosesDescription = ["y" * 64] * (200 if long else 1)
    if syntax == ExplicitVRBigEndian:
        dataset.PixelData = dataset.pixel_array.astype(">i2").tobytes()
    dataset.file_meta.TransferSyntaxUID = syntax
    pydicom.dcmwrite(
        path,
        dataset,
        little_endian=syntax != ExplicitVRBigEndian,
        implicit_vr=syntax == ImplicitVRLittleEndian,
        enforce_file_format=True,
    )
    header = read_header(path)
    assert header is not None
    assert set(PLACE.values()) - set(header) == {"LossyImageCompression"}
    assert header.pop(SYNTAX) == syntax
    for name in header:
        wanted = pydicom.dcmread(path)[name].value
        assert header[name].split("\\") == (
            [str(v) for v in wanted] if isinstance(wanted, pydicom.multival.MultiValue) else [str(wanted)]
        )
    assert (SlicePixels(path).hu() == -800).all()


@pytest.mark.parametrize("name", ["RescaleIntercept", "ImagePositionPatient"])
def test_an_element_that_comes_twice_with_two_values_is_refused(path: Path, name: str) -> None:
    raw = path.read_bytes()
    tag = pydicom.datadict.tag_for_keyword(name)
    place = raw.index(struct.pack("<HH", tag >> 16, tag & 0xFFFF))
    element = raw[place : place + 8 + int.from_bytes(raw[place + 6 : place + 8], "little")]
    other = (element.rstrip(b" ")[:-1] + b"7").ljust(len(element))
    path.write_bytes(raw[:place] + element + raw[place:])
    assert read_header(path) is not None, "the same value twice does no harm"
    path.write_bytes(raw[:place] + other + raw[place:])
    with pytest.raises(ValueError, match=f"{name} comes twice"):
        read_header(path)


def test_pixels_after_a_header_that_is_too_long_are_left_to_pydicom(path: Path) -> None:
    assert pixel_layout(path) is not None
    dataset = pydicom.dcmread(path)
    dataset.ImageComments = "x" * 9000
    dataset.save_as(path)
    assert pixel_layout(path) is None
    assert (SlicePixels(path).hu() == -800).all()
