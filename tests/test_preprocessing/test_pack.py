import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
from small_lidc import PATIENT, contents, nodules, stack_of, write_cohort

from lidc_cdam import artifacts, crop_files
from lidc_cdam.errors import LidcCdamError
from preprocessing.annotations import consensus
from preprocessing.extract import extract
from preprocessing.jobs import pack_jobs
from preprocessing.pack import COLUMNS, FRAME_COLUMNS, NODULES, cutout_path, pack, read_cutout, read_pack

HOLDERS = tuple(nodules())
NAMES = tuple(nodule.nodule_id for nodule in HOLDERS)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dicom")
    stack_of(HOLDERS[0].scan).write(folder / "any")
    return folder


@pytest.fixture(scope="module")
def pristine(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packs") / "pack"
    pack(root, folder)
    return folder


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "pack"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_cohort(tmp_path / "data")
    return tmp_path / "data"


def test_the_table_has_the_published_columns_and_the_frame(pristine: Path) -> None:
    table = read_pack(pristine)
    assert tuple(table.columns) == (*COLUMNS, *FRAME_COLUMNS)
    assert tuple(table.index) == tuple(sorted(NAMES))
    for nodule in HOLDERS:
        row, (block, flags) = table.loc[nodule.nodule_id], read_cutout(pristine, table.loc[nodule.nodule_id].to_dict())
        _, box = consensus(nodule)
        spacing = nodule.scan.pixel_spacing_mm
        assert (box.row[0] - block.box.row[0]) * spacing >= 24
        assert (block.box.column[1] - box.column[1]) * spacing >= 24
        assert block.z_mm[0] <= nodule.scan.slice_z_mm[box.slice[0]] - 24
        assert block.z_mm[-1] >= nodule.scan.slice_z_mm[box.slice[1] - 1] + 24
        x, y = block.frame.position_mm(block.box.row[0], block.box.column[0])
        assert (x, y, block.z_mm[0]) == pytest.approx((row["origin_x"], row["origin_y"], row["origin_z"]))
        np.testing.assert_allclose(block.hu[0, 0], -100 + 2 * x - 1.5 * y + 3 * np.array(block.z_mm), atol=0.51)
        assert flags == ("incomplete series",)


def test_cubes_from_a_pack_equal_those_from_dicom(root: Path, pristine: Path, data: Path, tmp_path: Path) -> None:
    write_cohort(tmp_path / "direct")
    extract(tmp_path / "direct", dicom=root)
    extract(data, pack=pristine)
    direct, packed = contents(tmp_path / "direct"), contents(data)
    for name in NAMES:
        for kind in ("crops", "masks"):
            assert packed[f"{kind}/{name}.nii.gz"] == direct[f"{kind}/{name}.nii.gz"]
    assert {record.geometry for record in artifacts.read_dataset(data).nodules.values()} == {"patient"}


def test_a_second_source_adds_to_the_first(root: Path, folder: Path, data: Path) -> None:
    table = read_pack(folder)
    table.iloc[:1].to_csv(folder / NODULES, index=False)
    extract(data, pack=folder)
    first = contents(data)
    assert len(artifacts.read_dataset(data).nodules) == 1
    extract(data, dicom=root)
    records = artifacts.read_dataset(data).nodules
    assert tuple(records) == NAMES
    assert [record.source for record in records.values()].count("pack") == 1
    assert {name: contents(data)[name] for name in first if name.endswith(".gz")} == {
        name: value for name, value in first.items() if name.endswith(".gz")
    }


def test_a_finished_pack_is_left_alone_and_an_interrupted_one_goes_on(
    root: Path,
    folder: Path,
    pristine: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    pack(root, folder)
    assert "nothing to do" in capsys.readouterr().out
    save = np.savez_compressed
    calls: list[str] = []

    def interrupted(stream: object, **arrays: object) -> None:
        calls.append("")
        if len(calls) == 2:
            raise KeyboardInterrupt
        save(stream, **arrays)

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez_compressed", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pack(root, tmp_path / "again")
    assert len(list((tmp_path / "again" / "cutouts").iterdir())) == 1
    pack(root, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(pristine)


def test_another_margin_is_refused(root: Path, folder: Path) -> None:
    with pytest.raises(LidcCdamError, match=r"made by `pack` with margin_mm = 24\.0, but this call has margin_mm = 10"):
        pack(root, folder, margin_mm=10)


def test_settings_and_roots_are_checked(root: Path, tmp_path: Path) -> None:
    with pytest.raises(LidcCdamError, match=r"--margin-mm must be at least 0 .* got -1 and 3"):
        pack(root, tmp_path / "out", margin_mm=-1)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "a.txt").write_text("text")
    with pytest.raises(LidcCdamError, match=r"must hold CT series of LIDC-IDRI, but .* 1 x not DICOM"):
        pack(tmp_path / "foreign", tmp_path / "out")


def test_a_damaged_slice_fails_its_nodules(root: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(root, tmp_path / "copy"))
    for path in (copy / "any").iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(LidcCdamError, match=r"No nodule with 3 readers could be cut out of .* is damaged"):
        pack(copy, tmp_path / "out")
    assert len(pd.read_csv(tmp_path / "out" / artifacts.FAILED)) == 3
    pack(root, tmp_path / "out")
    assert not (tmp_path / "out" / artifacts.FAILED).exists()


def test_without_the_frame_a_cube_lies_in_the_scans_own(folder: Path, data: Path) -> None:
    read_pack(folder)[list(COLUMNS)].to_csv(folder / NODULES, index=False)
    extract(data, pack=folder)
    spacing = HOLDERS[0].scan.pixel_spacing_mm
    for nodule in HOLDERS:
        assert artifacts.read_dataset(data).nodules[nodule.nodule_id].geometry == "scan"
        row, column, _ = consensus(nodule)[1].centre
        origin = crop_files.read_crop(data, nodule.nodule_id).origin_mm
        assert origin[:2] == pytest.approx((column * spacing - 16, row * spacing - 16), abs=1e-4)


def _lose(path: Path) -> None:
    path.unlink()


def _damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-500])


def _reshape(path: Path) -> None:
    np.savez_compressed(path, hu=np.zeros((3, 3, 3), np.int16), readers=np.zeros((3, 3, 3), np.uint8))


def _empty(path: Path) -> None:
    with np.load(path) as stored:
        hu, readers = stored["hu"], stored["readers"]
    np.savez_compressed(path, hu=hu, readers=0 * readers)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_lose, "is missing; run `lidc-cdam pack` first"),
        (_damage, "must be an NPZ file with hu, readers, but it cannot be read"),
        (_reshape, "must hold int16 hu and uint8 readers of the shape"),
        (_empty, "no voxel was marked by 50% of the readers"),
    ],
)
def test_a_spoilt_cut_out_is_a_row_and_the_others_go_on(
    folder: Path, data: Path, spoil: Callable[[Path], None], reason: str
) -> None:
    spoil(cutout_path(folder, NAMES[1]))
    extract(data, pack=folder)
    table = artifacts.read_table(data / artifacts.FAILED, artifacts.FAILED_COLUMNS, "extract")
    assert list(table["nodule_id"]) == [NAMES[1]]
    assert reason in table["reason"][0]
    assert set(artifacts.read_dataset(data).nodules) == {NAMES[0], NAMES[2]}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda table: table.drop(columns="slice_z_mm"), "slice_z_mm is missing"),
        (lambda table: table.iloc[[0, 0]], "each once"),
        (lambda table: table.iloc[:0], "at least one nodule"),
        (lambda table: table.assign(nodule_id=table["nodule_id"] + "x"), "none of the 3 in .* is among the 3 of"),
    ],
)
def test_a_spoilt_table_is_an_error(folder: Path, data: Path, change: Callable, reason: str) -> None:
    change(read_pack(folder)).to_csv(folder / NODULES, index=False)
    with pytest.raises(LidcCdamError, match=reason):
        extract(data, pack=folder)


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("row_start", "left", "must place the cut-out by numbers, but one is none"),
        ("row_stop", np.nan, "must place the cut-out by numbers, but one is none"),
        ("slice_z_mm", "1.0 two", "must place the cut-out by numbers, but one is none"),
        ("slice_z_mm", "1.0", "one ascending z for each slice"),
        ("pixel_spacing_mm", 0, "must have a positive pixel_spacing_mm"),
        ("origin_x", "here", "must place the cut-out by numbers, but one is none"),
    ],
)
def test_a_spoilt_row_is_a_failure_and_the_others_go_on(
    folder: Path, data: Path, column: str, value: object, reason: str
) -> None:
    table = read_pack(folder).astype({column: object})
    table.loc[NAMES[1], column] = value
    table.to_csv(folder / NODULES, index=False)
    extract(data, pack=folder)
    failed = artifacts.read_table(data / artifacts.FAILED, artifacts.FAILED_COLUMNS, "extract")
    assert list(failed["nodule_id"]) == [NAMES[1]]
    assert reason in failed["reason"][0]


def test_a_pack_that_is_not_there(data: Path, tmp_path: Path) -> None:
    with pytest.raises(LidcCdamError, match=r"--pack must be a folder with nodules\.csv"):
        extract(data, pack=tmp_path / "none")
    (tmp_path / "none").mkdir()
    with pytest.raises(LidcCdamError, match=r"nodules\.csv is missing"):
        extract(data, pack=tmp_path / "none")


@pytest.mark.data
def test_a_real_pack_equals_real_dicom(shared_data: Path, tmp_path: Path) -> None:
    pack(shared_data / "LIDC-IDRI", tmp_path / "pack")
    for name in ("direct", "packed"):
        write_cohort(tmp_path / name, ("LIDC-IDRI-0001", PATIENT))
    extract(tmp_path / "direct", dicom=shared_data / "LIDC-IDRI")
    extract(tmp_path / "packed", pack=tmp_path / "pack")
    one, other = contents(tmp_path / "direct"), contents(tmp_path / "packed")
    cubes = [name for name in one if name.endswith(".gz")]
    assert len(cubes) == 8
    for name in cubes:
        assert one[name] == other[name]


@pytest.mark.data
def test_the_sample_holds_the_dicoms_voxels(shared_data: Path) -> None:
    folder = shared_data / "nodule-pack"
    row = read_pack(folder).loc["LIDC-IDRI-0001_n01"].to_dict()
    block, flags = read_cutout(folder, row)
    assert flags == ()
    files = [pydicom.dcmread(path) for path in (shared_data / "LIDC-IDRI" / "LIDC-IDRI-0001").rglob("*.dcm")]
    files.sort(key=lambda file: file.ImagePositionPatient[2])
    chosen = files[slice(*block.box.slice)]
    assert [float(file.ImagePositionPatient[2]) for file in chosen] == list(block.z_mm)
    volume = np.stack([file.pixel_array + int(file.RescaleIntercept) for file in chosen], axis=2)
    np.testing.assert_array_equal(block.hu, volume[slice(*block.box.row), slice(*block.box.column)])


@pytest.mark.data
def test_the_sample_holds_711_labelled_nodules(shared_data: Path, cohorts: dict[str, Path], tmp_path: Path) -> None:
    cohort = artifacts.read_cohort(cohorts["all"])
    held, jobs = pack_jobs(tmp_path, shared_data / "nodule-pack", cohort, True)
    # Eight more are clusters of more than four readings, which no preset takes.
    assert held == "1132 nodules, 1124 of the cohort's 1378"
    labelled = cohort.loc[[job.nodule_ids[0] for job in jobs], "label"].notna()
    assert labelled.sum() == 711
    for job in jobs[::50]:
        assert job.run() == []
        crop = crop_files.read_crop(tmp_path, job.nodule_ids[0])
        assert (2 * crop.readers.max(axis=0).astype(int) >= cohort.loc[job.nodule_ids[0], "readers"]).any()
