from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from small_lidc import CORNER_MM, SLICES, nodules, stack_of, write_cohort

from lidc_cdam import artifacts, crop_files
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.quality import INCOMPLETE_SERIES, TURNED
from preprocessing import volumes
from preprocessing.annotations import IndexBox, consensus, reader_counts
from preprocessing.crops import Block
from preprocessing.extract import extract
from preprocessing.series import index_series
from preprocessing.volumes import FORMATS, Volume, VolumeReader, find_volumes

HOLDERS = nodules()
SCAN = HOLDERS[0].scan
UID = SCAN.series_uid
TURNED_ROUND = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0)
USUAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


@pytest.fixture(scope="module")
def dicom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dicom")
    stack_of(SCAN).write(root)
    return root


@pytest.fixture(scope="module")
def converted(dicom: Path) -> sitk.Image:
    """The series as SimpleITK reads it, the way LUNA16 was made."""
    return convert(dicom)


@pytest.fixture(scope="module")
def lungs() -> np.ndarray:
    """Voxels [slice, row, column]: the nodules that were marked, in lung."""
    hu = np.full((SLICES[1] - SLICES[0], 512, 512), -800, np.int16)
    for nodule in HOLDERS:
        box = consensus(nodule)[1]
        counts, _ = reader_counts(nodule, box)
        part = IndexBox(box.row, box.column, tuple(index - SLICES[0] for index in box.slice))
        rows, columns, slices = part.within(IndexBox((0, 512), (0, 512), (0, len(hu))))
        dense = 2 * counts.astype(int) >= len(nodule.readings)
        hu[slices, rows, columns][dense.transpose(2, 0, 1)] = 50
    return hu


def convert(folder: Path) -> sitk.Image:
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


def image_of(
    hu: np.ndarray, direction: tuple[float, ...] = USUAL, corner: tuple[float, float] = CORNER_MM
) -> sitk.Image:
    image = sitk.GetImageFromArray(hu)
    z = SCAN.slice_z_mm[SLICES[0]] if direction[8] > 0 else SCAN.slice_z_mm[SLICES[1] - 1]
    image.SetOrigin((*corner, z))
    image.SetSpacing((SCAN.pixel_spacing_mm, SCAN.pixel_spacing_mm, 2.5))
    image.SetDirection(direction)
    return image


def saved(image: sitk.Image, folder: Path, ending: str = ".mhd", compressed: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{UID}{ending}"
    sitk.WriteImage(image, str(path), compressed)
    return path


def block_of(path: Path) -> tuple[Block, tuple[str, ...]]:
    """A box around the first nodule."""
    reader = VolumeReader(Volume(UID, path), HOLDERS)
    tight = consensus(HOLDERS[0])[1]
    box = IndexBox((tight.row[0] - 6, tight.row[1] + 3), (tight.column[0] - 9, tight.column[1] + 1), tight.slice)
    return reader.read(HOLDERS[0], box), reader.flags(box)


def assert_same(one: Block, other: Block) -> None:
    np.testing.assert_array_equal(one.hu, other.hu)
    np.testing.assert_array_equal(one.readers, other.readers)
    assert one.z_mm == other.z_mm
    for row, column in ((0.0, 0.0), (100.0, 7.0)):
        assert one.frame.position_mm(row, column) == pytest.approx(other.frame.position_mm(row, column), abs=1e-4)


@pytest.mark.parametrize(
    ("ending", "compressed", "tolerance"),
    [(".mhd", False, 0), (".mhd", True, 0), (".mha", False, 0), (".nrrd", True, 0), (".nii.gz", True, 1)],
)
def test_crops_equal_those_from_dicom(
    dicom: Path, converted: sitk.Image, tmp_path: Path, ending: str, compressed: bool, tolerance: int
) -> None:
    saved(converted, tmp_path / "volumes" / "subset3", ending, compressed)
    for name, source in (("one", {"dicom": dicom}), ("other", {"volumes": tmp_path / "volumes"})):
        write_cohort(tmp_path / name)
        extract(tmp_path / name, **source)
    _compare(tmp_path / "one", tmp_path / "other", tolerance)
    assert {one.source for one in artifacts.read_dataset(tmp_path / "other").nodules.values()} == {"volume"}


def _compare(one: Path, other: Path, tolerance: int) -> None:
    records, others = (artifacts.read_dataset(folder).nodules for folder in (one, other))
    assert list(records) == list(others) != []
    for name, record in records.items():
        crop, again = (crop_files.read_crop(folder, name) for folder in (one, other))
        # NIfTI keeps positions in single precision, so what lies between two whole HU may round to the other.
        assert np.abs(crop.hu.astype(int) - again.hu).max() <= tolerance
        assert np.mean(crop.hu != again.hu) < 0.01
        np.testing.assert_array_equal(crop.readers, again.readers)
        (masks, readers), (masks_again, readers_again) = (
            crop_files.read_reader_masks(each, name) for each in (one, other)
        )
        np.testing.assert_array_equal(masks, masks_again)
        assert readers == readers_again
        assert again.origin_mm == pytest.approx(crop.origin_mm, abs=1e-4)
        assert (record.flags, record.padded_share) == (others[name].flags, others[name].padded_share)


def test_only_what_is_needed_is_read_of_a_plain_metaimage(
    lungs: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(image_of(lungs), tmp_path)
    monkeypatch.setattr(volumes.sitk, "ReadImage", lambda *_: pytest.fail("the whole volume was read"))
    block, flags = block_of(path)
    assert flags == (INCOMPLETE_SERIES,)
    np.testing.assert_array_equal(block.hu == 50, 2 * block.readers.astype(int) >= len(HOLDERS[0].readings))


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int32, np.int8])
def test_any_kind_of_number_will_do(lungs: np.ndarray, tmp_path: Path, kind: type) -> None:
    hu = np.where(lungs < 0, -100, 50)
    assert_same(
        block_of(saved(image_of(hu.astype(kind)), tmp_path / "a"))[0],
        block_of(saved(image_of(hu.astype(np.int16)), tmp_path / "b"))[0],
    )


@pytest.mark.parametrize(
    ("signs", "flag"), [((1, 1, -1), False), ((1, -1, 1), True), ((-1, 1, 1), True), ((-1, -1, 1), True)]
)
def test_a_reoriented_volume_is_read_in_dicoms_order(
    lungs: np.ndarray, tmp_path: Path, signs: tuple[int, int, int], flag: bool
) -> None:
    reordered = np.ascontiguousarray(lungs[:: signs[2], :: signs[1], :: signs[0]])
    corner = tuple(
        start + (511 * SCAN.pixel_spacing_mm if sign < 0 else 0) for start, sign in zip(CORNER_MM, signs, strict=False)
    )
    path = saved(image_of(reordered, tuple(np.diag(signs).ravel().astype(float)), corner), tmp_path / "a")
    block, flags = block_of(path)
    assert_same(block, block_of(saved(image_of(lungs), tmp_path / "b"))[0])
    assert (TURNED in flags) == flag


@pytest.mark.parametrize("known", [True, False])
def test_a_scan_whose_dicom_is_turned_keeps_its_pixels(
    lungs: np.ndarray, tmp_path: Path, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volumes, "TURNED_PATIENTS", frozenset({SCAN.patient_id} if known else ()))
    made = stack_of(SCAN)
    turned = type(made)(made.hu, made.z_mm, UID, made.shape, made.spacing_mm, (170.0, 180.0), TURNED_ROUND)
    turned.write(tmp_path / "dicom")
    image = convert(tmp_path / "dicom")
    assert image.GetDirection()[:5] == (-1, 0, 0, 0, -1)
    frame = index_series(tmp_path / "dicom").series[UID].frame()
    block, flags = block_of(saved(image_of(lungs, image.GetDirection(), image.GetOrigin()[:2]), tmp_path / "volume"))
    np.testing.assert_array_equal(block.hu == 50, 2 * block.readers.astype(int) >= len(HOLDERS[0].readings))
    assert block.frame.position_mm(3.0, 5.0) == pytest.approx(frame.position_mm(3.0, 5.0), abs=1e-6)
    assert (TURNED in flags) == (not known)


def test_an_orientation_that_the_readings_do_not_tell_is_refused(tmp_path: Path) -> None:
    flat = np.full((40, 512, 512), -500, np.int16)
    path = saved(image_of(flat, (-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0)), tmp_path)
    with pytest.raises(LidcCdamError, match=r"must have the axes of the DICOM series, .* the readings do not tell how"):
        block_of(path)


def _shifted(image: sitk.Image) -> None:
    image.SetOrigin((*image.GetOrigin()[:2], image.GetOrigin()[2] + 0.7))


def _other_steps(image: sitk.Image) -> None:
    image.SetSpacing((*image.GetSpacing()[:2], 2.4))


def _elsewhere(image: sitk.Image) -> None:
    image.SetOrigin((*image.GetOrigin()[:2], 5000.0))


def _coarser(image: sitk.Image) -> None:
    image.SetSpacing((1.0, 1.0, 2.5))


def _oblique(image: sitk.Image) -> None:
    image.SetDirection((1.0, 0, 0, 0, 0.995, 0.0998, 0, -0.0998, 0.995))


def _sagittal(image: sitk.Image) -> None:
    image.SetDirection((0, 0, 1.0, 1.0, 0, 0, 0, 1.0, 0))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_shifted, "must have its slices at the z of the readings, 140 from"),
        (_other_steps, "in steps of 2.4 mm; convert the scan's own DICOM series, or use --dicom"),
        (_elsewhere, "has 40 from 5000 mm"),
        (_coarser, r"must have the scan's pixel spacing of 0\.820312 mm, but has 1 and 1 mm"),
        (_oblique, "must have its axes along the patient's left, back and head"),
        (_sagittal, "must have its axes along the patient's left, back and head"),
    ],
)
def test_another_scans_geometry_is_refused(
    lungs: np.ndarray, tmp_path: Path, spoil: Callable[[sitk.Image], None], said: str
) -> None:
    image = image_of(lungs)
    spoil(image)
    with pytest.raises(LidcCdamError, match=said):
        block_of(saved(image, tmp_path))


def test_a_volume_with_slices_between_those_of_the_readings_is_refused(lungs: np.ndarray, tmp_path: Path) -> None:
    z_mm = SCAN.slice_z_mm
    nodule = replace(HOLDERS[0], scan=replace(SCAN, slice_z_mm=z_mm[: SLICES[1] - 3] + z_mm[SLICES[1] - 2 :]))
    with pytest.raises(LidcCdamError, match="must have its slices at the z of the readings, 139 from"):
        VolumeReader(Volume(UID, saved(image_of(lungs), tmp_path)), [nodule])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda hu: hu[:, :256],
            r"must hold 512 x 512 x slices single values, .* but holds 512 x 256 x 40 with 1 each",
        ),
        (lambda hu: hu + 1024, "must hold Hounsfield units, but no voxel around the nodule is below 0"),
        (lambda hu: np.where(hu > 0, np.nan, hu).astype(np.float32), "must hold numbers, but some voxels"),
    ],
)
def test_voxels_that_are_not_the_scans_are_refused(
    lungs: np.ndarray, tmp_path: Path, change: Callable[[np.ndarray], np.ndarray], said: str
) -> None:
    with pytest.raises(LidcCdamError, match=said):
        block_of(saved(image_of(np.ascontiguousarray(change(lungs))), tmp_path))


def test_colours_are_refused(tmp_path: Path) -> None:
    image = sitk.Image([512, 512, 3], sitk.sitkVectorUInt8, 3)
    with pytest.raises(LidcCdamError, match="512 x 512 x 3 with 3 each"):
        block_of(saved(image, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("ending", FORMATS)
def test_a_file_that_ends_too_early_is_a_sentence(
    lungs: np.ndarray, tmp_path: Path, ending: str, compressed: bool
) -> None:
    path = saved(image_of(lungs[:, ::-1]), tmp_path, ending, compressed)
    parts = sorted(tmp_path.iterdir(), key=lambda part: part.stat().st_size)
    content = parts[-1].read_bytes()
    for keep in (0, 100, 2000, len(content) // 20):
        parts[-1].write_bytes(content[:keep])
        with pytest.raises(
            LidcCdamError, match=r"is damaged or incomplete: its voxels cannot be read \(.+\); make the"
        ):
            block_of(path)
    if len(parts) == 2:
        parts[0].write_bytes(b"")
        with pytest.raises(LidcCdamError, match="is damaged or incomplete"):
            block_of(path)


@pytest.mark.parametrize(
    ("ending", "cut"), [(".nii", 1), (".nii", 200000), (".nii.gz", 1), (".nii.gz", 2000), (".mhd", 20_000_000)]
)
def test_a_lost_end_is_noticed(
    lungs: np.ndarray, tmp_path: Path, ending: str, cut: int, capfd: pytest.CaptureFixture[str]
) -> None:
    path = saved(image_of(lungs), tmp_path, ending)
    voxels = path.with_suffix(".raw") if ending == ".mhd" else path
    voxels.write_bytes(voxels.read_bytes()[:-cut])
    with pytest.raises(
        LidcCdamError, match=r"is damaged or incomplete: its voxels cannot be read \(.+\); make the file"
    ):
        block_of(path)
    assert capfd.readouterr().err == "", "ITK's own words"


def test_a_volume_of_a_part_of_the_scan_serves_the_nodules_in_it(
    converted: sitk.Image, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    middle = sorted(int(consensus(nodule)[1].centre[2]) for nodule in HOLDERS)
    cut = middle[-1] - SLICES[0] + 3
    saved(converted[:, :, :cut], tmp_path / "volumes")
    write_cohort(tmp_path / "data")
    extract(tmp_path / "data", volumes=tmp_path / "volumes")
    failed = artifacts.read_table(tmp_path / "data" / artifacts.FAILED, artifacts.FAILED_COLUMNS, "extract")
    assert len(artifacts.read_dataset(tmp_path / "data").nodules) + len(failed) == len(HOLDERS)
    assert failed["reason"].str.contains("must have a slice at each z of the readings, but").all()
    shown = capfd.readouterr()
    assert "holds 3 of the cohort's 3 nodules" in shown.out
    assert shown.err == ""


def test_volumes_are_found_by_name_in_any_folder(tmp_path: Path) -> None:
    for name in ("subset0/1.2.3.mhd", "subset0/1.2.3.raw", "subset1/1.2.4.nii.gz", "subset1/9.9.mhd", "1.2.4.nrrd"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find_volumes(tmp_path, {"1.2.3", "1.2.4", "1.2.5"})
    names = {uid: volume.path.name for uid, volume in found.items()}
    assert names == {"1.2.3": "1.2.3.mhd", "1.2.4": "1.2.4.nrrd"}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda root: None, "--volumes must be a folder of volume files, but .* is missing"),
        (lambda root: root.touch(), "--volumes must be a folder of volume files, but .* is a file"),
        (lambda root: root.mkdir(), rf"--volumes must hold files named by .* \(<series UID>{FORMATS[0]}, .*has none"),
    ],
)
def test_a_folder_without_volumes(tmp_path: Path, make: Callable[[Path], None], said: str) -> None:
    make(tmp_path / "volumes")
    write_cohort(tmp_path / "data")
    with pytest.raises(LidcCdamError, match=said):
        extract(tmp_path / "data", volumes=tmp_path / "volumes")


@pytest.mark.data
def test_real_crops_equal_those_from_dicom(shared_data: Path, tmp_path: Path) -> None:
    root = shared_data / "LIDC-IDRI"
    (folder,) = (path for path in root.glob(f"{SCAN.patient_id}/*/*") if path.is_dir())
    saved(convert(folder), tmp_path / "volumes")
    for name, source in (("one", {"dicom": root}), ("other", {"volumes": tmp_path / "volumes"})):
        write_cohort(tmp_path / name)
        extract(tmp_path / name, **source)
    _compare(tmp_path / "one", tmp_path / "other", 0)
