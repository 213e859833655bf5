from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_factory import AXIAL, Stack, edit, flat, linear
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian, RLELossless

from lidc_cdam.errors import LidcCdamError
from preprocessing.headers import PLACE, SYNTAX, read_header
from preprocessing.pixels import SlicePixels, read_hu
from preprocessing.series import index_series

Z = (10.0, 12.5, 15.0, 17.5)


def stack(**settings: object) -> Stack:
    return Stack(**{"hu": flat(-800), "z_mm": Z, "shape": (16, 24), **settings})


@pytest.mark.parametrize("name", ["1-{:03d}.dcm", "IM{}", "{}.bin"])
def test_any_layout_gives_slices_by_ascending_z(tmp_path: Path, name: str) -> None:
    stack(z_mm=Z[::-1]).write(tmp_path / "a" / "deep" / "tree", name)
    (series,) = index_series(tmp_path).series.values()
    assert series.positions_mm == Z
    assert [one.number for one in series.slices] == [4, 3, 2, 1]
    assert (series.shape, series.spacing_mm, series.orientation) == ((16, 24), (0.75, 0.75), AXIAL)
    assert series.flags() == ()


def test_what_is_not_wanted_ct_is_counted_by_kind(tmp_path: Path) -> None:
    paths = stack(series_uid="1.2.3").write(tmp_path, "a-{}.dcm")
    stack(series_uid="1.2.4").write(tmp_path, "b-{}.dcm")
    edit(paths[0], SOPClassUID="1.2.840.10008.5.1.4.1.1.88.22")
    edit(paths[1], ImagePositionPatient=None)
    edit(paths[2], ImageOrientationPatient=[0, 1, 0, 0, 0, 1])
    stack(series_uid="1.2.3", z_mm=(1.0, 2.0)).write(tmp_path, "c-{}.dcm")
    (tmp_path / "notes.txt").write_text("not DICOM")
    index = index_series(tmp_path, {"1.2.3"})
    assert list(index.series) == ["1.2.3"]
    assert index.series["1.2.3"].positions_mm == (1.0, 2.0, 17.5)
    assert index.others == {
        "Enhanced SR Storage": 1,
        "CT image without a position": 1,
        "CT image off its series' grid": 1,
        "CT image of a series not asked for": 4,
        "not DICOM": 1,
    }
    assert "1 wanted CT series with 3 slices" in index.summary()


def test_a_broken_header_is_counted_and_the_rest_goes_on(tmp_path: Path) -> None:
    broken = stack().write(tmp_path)[0]
    broken.write_bytes(broken.read_bytes()[:200])
    index = index_series(tmp_path)
    assert sum(index.others.values()) == 1
    assert len(next(iter(index.series.values())).slices) == 3


@pytest.mark.parametrize(
    ("z_mm", "flags"),
    [
        ((0.0, 1.0, 1.0, 2.0), ("duplicate slices",)),
        ((0.0, 1.0, 2.0, 5.0, 6.0), ("irregular z", "gap")),
        ((0.0, 0.6, 1.2, 2.4, 3.0), ("irregular z",)),
        ((-3.0, -2.0, -1.0, 0.0), ()),
    ],
)
def test_flags(tmp_path: Path, z_mm: tuple[float, ...], flags: tuple[str, ...]) -> None:
    stack(z_mm=z_mm).write(tmp_path)
    (series,) = index_series(tmp_path).series.values()
    assert series.flags() == flags


@pytest.mark.parametrize(
    ("make", "found"),
    [(lambda root: None, "is missing"), (lambda root: root.mkdir(), "is empty"), (lambda root: root.touch(), "a file")],
)
def test_a_root_that_is_no_root(tmp_path: Path, make: object, found: str) -> None:
    make(tmp_path / "root")
    with pytest.raises(LidcCdamError, match=f"--dicom must be a folder of DICOM files, but .*root .*{found}"):
        index_series(tmp_path / "root")


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
@pytest.mark.parametrize("long", [False, True])
def test_headers_equal_pydicom_in_every_encoding(tmp_path: Path, syntax: str, long: bool) -> None:
    path = stack().write(tmp_path)[0]
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
    (series,) = index_series(tmp_path).series.values()
    assert (read_hu(series.slices[0]) == -800).all()


@pytest.mark.parametrize(("slope", "intercept"), [(1, -1024), (2, -1000), (0.5, -900.5)])
@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.1", ImplicitVRLittleEndian, RLELossless])
def test_hu_equal_pydicom(tmp_path: Path, slope: float, intercept: float, syntax: str) -> None:
    made = stack(hu=linear((7, 3, 0), -900), slope=slope, intercept=intercept, syntax=syntax)
    made.write(tmp_path)
    (series,) = index_series(tmp_path).series.values()
    dataset = pydicom.dcmread(series.slices[1].path)
    wanted = np.rint(dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept))
    hu = read_hu(series.slices[1])
    assert hu.dtype == np.int16
    np.testing.assert_array_equal(hu, wanted)
    np.testing.assert_array_equal(SlicePixels(series.slices[1].path).hu((3, 9)), wanted[3:9])


@pytest.mark.parametrize(
    ("syntax", "lost"), [("1.2.840.10008.1.2.1", 1), ("1.2.840.10008.1.2.1", 300), (RLELossless, 300)]
)
@pytest.mark.filterwarnings("ignore:End of file reached")
def test_truncated_pixels_are_named(tmp_path: Path, lost: int, syntax: str) -> None:
    path = stack(hu=linear((7, 3, 0)), syntax=syntax).write(tmp_path)[1]
    path.write_bytes(path.read_bytes()[:-lost])
    (series,) = index_series(tmp_path).series.values()
    with pytest.raises(LidcCdamError, match=r"1-002\.dcm is damaged: its pixels cannot be read .*fetch the file again"):
        read_hu(series.slices[1])


def test_slices_that_are_not_axial_are_refused(tmp_path: Path) -> None:
    stack(orientation=(1.0, 0.0, 0.0, 0.0, 0.98, -0.2)).write(tmp_path)
    (series,) = index_series(tmp_path).series.values()
    with pytest.raises(LidcCdamError, match="must have axial slices stacked along z"):
        series.frame()


@pytest.mark.data
def test_real_slices(shared_data: Path) -> None:
    index = index_series(shared_data / "LIDC-IDRI" / "LIDC-IDRI-0001")
    (series,) = index.series.values()
    assert (len(series.slices), series.flags(), index.others) == (133, (), {})
    for one in series.slices[::40]:
        dataset = pydicom.dcmread(one.path)
        np.testing.assert_array_equal(read_hu(one), dataset.pixel_array + int(dataset.RescaleIntercept))
        assert (one.z_mm, one.number) == (dataset.ImagePositionPatient[2], dataset.InstanceNumber)
