from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_factory import AXIAL, Stack, edit, flat, linear

from lidc_cdam.errors import LidcCdamError
from lidc_cdam.quality import FLAGS, LOSSY, RESCALE_DIFFERS, SIDEWAYS_DRIFT
from preprocessing.pixels import read_hu
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


FAULTS = {
    "slices at one position (0085, 0146, 0418, 0572, 0979)": ((0.0, 1.0, 1.0, 2.0), ("duplicate slices",)),
    "three at one position": ((0.0, 1.0, 1.0, 1.0, 2.0), ("duplicate slices",)),
    "a gap of 38 mm (0514)": ((0.0, 2.0, 4.0, 42.0, 44.0), ("irregular z", "gap")),
    "steps of 0.625 and 1.25 mm (0672)": ((0.0, 0.625, 1.25, 2.5, 3.125, 3.75), ("irregular z",)),
    "steps of 0.5 mm among others (0123, 0267)": ((0.0, 2.0, 4.0, 4.5, 6.5), ("irregular z",)),
    "rounded positions": ((0.0, 0.63, 1.25, 1.88, 2.5), ()),
    "below zero": ((-3.0, -2.0, -1.0, 0.0), ()),
    "one slice": ((5.0,), ()),
}
"""Faults of slice positions that are known of LIDC-IDRI, with patients' numbers."""


@pytest.mark.parametrize(("z_mm", "flags"), FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("order", [1, -1])
def test_faults_of_positions_are_flagged(
    tmp_path: Path, z_mm: tuple[float, ...], flags: tuple[str, ...], order: int
) -> None:
    stack(z_mm=z_mm[::order], values={"SliceThickness": 5}).write(tmp_path)
    (series,) = index_series(tmp_path).series.values()
    assert series.flags() == flags
    assert series.positions_mm == tuple(sorted(set(z_mm)))
    assert set(flags) <= set(FLAGS)


def test_two_series_of_one_patient_in_one_folder_stay_apart(tmp_path: Path) -> None:
    stack(series_uid="1.2.1").write(tmp_path, "a{}")
    stack(series_uid="1.2.2", spacing_mm=(0.5, 0.5), z_mm=Z[:2]).write(tmp_path, "b{}")
    series = index_series(tmp_path).series
    assert {uid: (one.positions_mm, one.spacing_mm) for uid, one in series.items()} == {
        "1.2.1": (Z, (0.75, 0.75)),
        "1.2.2": (Z[:2], (0.5, 0.5)),
    }


def test_the_first_of_duplicates_is_that_with_the_lowest_number(tmp_path: Path) -> None:
    paths = stack(z_mm=(1.0, 2.0, 2.0, 2.0, 3.0)).write(tmp_path)
    edit(paths[1], InstanceNumber=9)
    (series,) = index_series(tmp_path).series.values()
    assert [one.number for one in series.by_position[1]] == [3, 4, 9]


ORIENTATIONS = {
    "usual": AXIAL,
    "turned (0262, 0291 and others)": (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0),
    "rows to the front": (1.0, 0.0, 0.0, 0.0, -1.0, 0.0),
    "columns to the right": (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
    "rows and columns swapped": (0.0, 1.0, 0.0, 1.0, 0.0, 0.0),
    "rotated in the plane": (0.8, 0.6, 0.0, -0.6, 0.8, 0.0),
}


@pytest.mark.parametrize("orientation", ORIENTATIONS.values(), ids=ORIENTATIONS)
def test_every_pixel_lies_where_the_orientation_says(tmp_path: Path, orientation: tuple[float, ...]) -> None:
    place = {"corner_mm": (-20.0, 30.0), "spacing_mm": (0.75, 0.5), "orientation": orientation}
    stack(hu=linear((20, 7, 0)), **place).write(tmp_path)
    (series,) = index_series(tmp_path).series.values()
    row, column = np.mgrid[:16, :24].astype(float)
    x, y = series.frame().position_mm(row, column)
    np.testing.assert_allclose(read_hu(series.slices[0]), 20 * x + 7 * y, atol=0.51)
    back = series.frame().index(x, y)
    np.testing.assert_allclose(back, (row, column), atol=1e-9)


@pytest.mark.parametrize(
    "values",
    [
        {"PixelSpacing": [0.75, 0.8]},
        {"ImageOrientationPatient": [1, 0, 0, 0, 0.995, 0.0998]},
        {"ImageOrientationPatient": [0, 1, 0, 1, 0, 0]},
    ],
)
def test_a_slice_on_another_grid_is_left_out(tmp_path: Path, values: dict[str, object]) -> None:
    paths = stack().write(tmp_path)
    edit(paths[0], **values)
    index = index_series(tmp_path)
    (series,) = index.series.values()
    assert (series.positions_mm, series.off_grid, series.spacing_mm) == (Z[1:], 1, (0.75, 0.75))
    assert index.others == {"CT image off its series' grid": 1}


def test_a_grid_that_differs_by_rounding_is_the_same(tmp_path: Path) -> None:
    paths = stack().write(tmp_path)
    edit(paths[0], PixelSpacing=[0.75001, 0.75], ImageOrientationPatient=[1, 0.00001, 0, 0, 1, 0])
    index = index_series(tmp_path)
    (series,) = index.series.values()
    assert (len(series.slices), series.spacing_mm, series.orientation, index.others) == (4, (0.75, 0.75), AXIAL, {})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Rows", 60000),
        ("PixelSpacing", [1e-9, 1]),
        ("PixelSpacing", [0.75]),
        ("ImageOrientationPatient", [1, 0, 0, 1, 0, 0]),
        ("ImageOrientationPatient", [0, 0, 0, 0, 0, 0]),
        ("ImagePositionPatient", [0, 0, 1e30]),
        ("RescaleSlope", 0),
        ("SeriesInstanceUID", ""),
    ],
)
def test_values_that_no_slice_can_have_are_damage(tmp_path: Path, name: str, value: object) -> None:
    edit(stack().write(tmp_path)[0], **{name: value})
    index = index_series(tmp_path)
    assert index.others == {"CT image with a damaged header": 1}
    assert sum(len(series.slices) for series in index.series.values()) == 3


@pytest.mark.parametrize("name", ["RescaleSlope", "RescaleIntercept", "PixelRepresentation", "PixelSpacing", "Rows"])
def test_a_slice_that_lacks_an_element_is_not_guessed_at(tmp_path: Path, name: str) -> None:
    edit(stack().write(tmp_path)[0], **{name: None})
    assert index_series(tmp_path).others == {"CT image without a position": 1}


@pytest.mark.parametrize(
    ("values", "flag"),
    [
        ({"RescaleIntercept": -1000}, RESCALE_DIFFERS),
        ({"RescaleSlope": 1.5}, RESCALE_DIFFERS),
        ({"PixelRepresentation": 0}, RESCALE_DIFFERS),
        ({"LossyImageCompression": "01"}, LOSSY),
        ({"ImagePositionPatient": [0.1, 0, 12.5]}, SIDEWAYS_DRIFT),
    ],
)
def test_slices_that_contradict_each_other_are_flagged(tmp_path: Path, values: dict[str, object], flag: str) -> None:
    stack(z_mm=tuple(range(0, 200, 10))).write(tmp_path, "a{}")
    edit(stack(z_mm=(12.5,)).write(tmp_path, "b{}")[0], **values)
    (series,) = index_series(tmp_path).series.values()
    assert flag in series.flags()
    assert series.frame().corner_mm == (0, 0), "one slice beside the others does not move them"


def test_each_slices_own_rescale_is_followed(tmp_path: Path) -> None:
    paths = stack(hu=flat(100), slope=1, intercept=-1000).write(tmp_path)
    edit(paths[1], RescaleSlope=0.25, RescaleIntercept=-500.5)
    (series,) = index_series(tmp_path).series.values()
    assert [int(read_hu(one)[0, 0]) for one in series.slices] == [100, round(1100 / 4 - 500.5), 100, 100]


@pytest.mark.parametrize(
    ("make", "found"),
    [(lambda root: None, "is missing"), (lambda root: root.mkdir(), "is empty"), (lambda root: root.touch(), "a file")],
)
def test_a_root_that_is_no_root(tmp_path: Path, make: object, found: str) -> None:
    make(tmp_path / "root")
    with pytest.raises(LidcCdamError, match=f"--dicom must be a folder of DICOM files, but .*root .*{found}"):
        index_series(tmp_path / "root")


@pytest.mark.parametrize(
    ("orientation", "sideways", "said"),
    [
        (
            (1.0, 0.0, 0.0, 0.0, 0.98, -0.198997),
            0.0,
            r"tilted by 11\.48 degrees and drift sideways by 0\.000 mm per mm",
        ),
        (AXIAL, 0.25, r"tilted by 0\.00 degrees and drift sideways by 0\.100 mm per mm"),
    ],
)
def test_a_tilted_gantry_is_refused(tmp_path: Path, orientation: tuple[float, ...], sideways: float, said: str) -> None:
    for place, path in enumerate(stack(orientation=orientation).write(tmp_path)):
        edit(path, ImagePositionPatient=[0, sideways * place, Z[place]])
    (series,) = index_series(tmp_path).series.values()
    with pytest.raises(LidcCdamError, match=f"axial slices stacked along z, but they are {said}; leave the series out"):
        series.frame()


@pytest.mark.data
def test_real_slices(shared_data: Path) -> None:
    index = index_series(shared_data / "LIDC-IDRI" / "LIDC-IDRI-0001")
    (series,) = index.series.values()
    assert (len(series.slices), series.flags(), index.others) == (133, (), {})
    for one in series.slices[::40]:
        dataset = pydicom.dcmread(one.path, stop_before_pixels=True)
        assert (one.z_mm, one.number) == (dataset.ImagePositionPatient[2], dataset.InstanceNumber)


def test_the_documentation_explains_every_flag() -> None:
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    assert [line for line in text.splitlines() if line.startswith("| ")][1:] == [
        f"| {flag} | {meaning} |" for flag, meaning in FLAGS.items()
    ]


@pytest.mark.parametrize(
    ("sop_class", "kind"),
    [
        ("1.2.840.10008.5.1.4.1.1.1.1", "Digital X-Ray Image Storage - For Presentation"),
        ("1.2.840.10008.5.1.4.1.1.1", "Computed Radiography Image Storage"),
        ("1.2.840.10008.5.1.4.1.1.66.4", "Segmentation Storage"),
        ("1.2.840.10008.5.1.4.1.1.88.33", "Comprehensive SR Storage"),
        ("1.2.840.1\x1b[2J", "DICOM of no known kind"),
    ],
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_other_kinds_are_counted_by_name(tmp_path: Path, sop_class: str, kind: str) -> None:
    edit(stack().write(tmp_path)[0], SOPClassUID=sop_class)
    assert index_series(tmp_path).others == {kind: 1}
